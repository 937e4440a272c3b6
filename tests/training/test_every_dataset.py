"""Training runs from each dataset that `--dataset_names` knows, and from each shape of own data."""

import re
from pathlib import Path

import pytest

from helper.miniature.published import write_layouts
from tests.helper.test_published import LEFT_OUT, OWN
from utils.data import DATASETS

pytestmark = pytest.mark.slow

RECORDS = 6
NAMES = (*DATASETS, *OWN)


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
        data_cache_path=layouts.parent / "cache",
        **flags,
    )


@pytest.mark.parametrize("packing", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("name", NAMES)
def test_training_runs_from(forks, trainings, layouts, tmp_path, name: str, packing: bool) -> None:
    printed = forks.run(arguments(trainings, layouts, tmp_path, [name], packing=packing), ranks=1)
    assert re.search(r"step 2/2 .* loss \d+\.\d+", printed)
    assert (tmp_path / "final" / "config.json").is_file()
    assert f"final checkpoint: {tmp_path / 'final'}" in printed
    left_out = re.findall(rf"{name}: (\d+) of \d+ records left out", printed)
    assert sum(map(int, left_out)) == LEFT_OUT.get(name, 0)
    bad = tmp_path / "bad_samples.jsonl"
    assert not bad.exists() or not bad.read_text().strip(), bad.read_text()


def test_all_together_joined_packed_and_on_two_processes(forks, trainings, layouts, tmp_path) -> None:
    flags = {"dataset_concatenate_samples": 3, "packing": True, "zero_stage": 3}
    printed = forks.run(arguments(trainings, layouts, tmp_path, NAMES, **flags))
    assert re.search(r"step 2/2 .* loss \d+\.\d+", printed)
    assert (tmp_path / "final" / "config.json").is_file()
