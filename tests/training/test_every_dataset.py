"""Training runs from each dataset that `--dataset_names` knows, and from each shape of own data.

All trainings run one after the other in a single process, which imports the libraries once; each is a test of
its own, and looks at what that training left behind.
"""

import json
import re
from pathlib import Path

import pytest

from helper.miniature.published import write_layouts
from tests.helper.test_published import LEFT_OUT, OWN
from utils.data import DATASETS

pytestmark = pytest.mark.slow

RECORDS = 6
NAMES = (*DATASETS, *OWN)
TRAINS_ONE_AFTER_THE_OTHER = """
import json, sys, traceback
from pathlib import Path
import training.run

training.run.shut_down = lambda: None  # one process group serves all: DeepSpeed keeps parts of the first
codes = {}
for name, command in json.loads(Path(sys.argv[1]).read_text()).items():
    print(f"=== {name}", flush=True)
    try:
        codes[name] = training.run.main(command)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        codes[name] = repr(error)
Path(sys.argv[2]).write_text(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts") / "data"
    write_layouts(folder, RECORDS)
    return folder


def arguments(trainings, layouts: Path, output: Path, names: list[str], **flags: object) -> list[str]:
    """A command line for two steps from `names`."""
    return trainings.arguments(
        output,
        data_path=layouts,
        dataset_names=[layouts / "own" / name if name in OWN else name for name in names],
        image_folder=layouts / "own" / "images" if {*names} & {*OWN} else None,
        num_train_epochs=None,
        max_steps=2,
        max_seq_len=512,
        data_train_split_ratio=0.8,
        save_strategy="no",
        checkpoint_form="trained",
        **flags,
    )


@pytest.fixture(scope="module", params=[False, True], ids=["rows", "packed"])
def runs(request, trainings, layouts, tmp_path_factory) -> tuple[Path, dict[str, object], str]:
    """Two steps from every name: the folder of their outputs, their exit codes, and all that was printed."""
    folder = tmp_path_factory.mktemp("runs")
    commands = {
        name: arguments(trainings, layouts, folder / name, [name], packing=request.param) for name in NAMES
    }
    (folder / "commands.json").write_text(json.dumps(commands))
    codes = folder / "codes.json"
    command = [str(folder / "commands.json"), str(codes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISUALCHAT_CACHE", str(folder / "cache"))
        printed = trainings.run(command, launcher=["-c", TRAINS_ONE_AFTER_THE_OTHER])
    return folder, json.loads(codes.read_text()), printed


@pytest.mark.parametrize("name", NAMES)
def test_training_runs_from(runs, name: str) -> None:
    folder, codes, printed = runs
    about = printed.partition(f"=== {name}\n")[2].partition("\n=== ")[0]
    assert codes[name] == 0, about[-4000:]
    assert re.search(r"step 2/2 .* loss \d+\.\d+", about)
    assert (folder / name / "final" / "config.json").is_file()
    assert f"final checkpoint: {folder / name / 'final'}" in about
    left_out = re.findall(rf"{name}: (\d+) of \d+ records left out", about)
    assert sum(map(int, left_out)) == LEFT_OUT.get(name, 0)
    bad = folder / name / "bad_samples.jsonl"
    assert not bad.exists() or not bad.read_text().strip(), bad.read_text()


def test_all_together_joined_packed_and_on_two_processes(trainings, layouts, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VISUALCHAT_CACHE", str(tmp_path / "cache"))
    flags = {"dataset_concatenate_samples": 3, "packing": True, "zero_stage": 3}
    printed = trainings.run(arguments(trainings, layouts, tmp_path / "all", NAMES, **flags), processes=2)
    assert re.search(r"step 2/2 .* loss \d+\.\d+", printed)
    assert (tmp_path / "all" / "final" / "config.json").is_file()
