"""`helper.check_data` as a user runs it: everything that is damaged is named, nothing dies of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest

from helper.check_data import main
from tests import browser

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "assets"


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """Run the check with the miniature's models, and a cache of its own."""
    folder = tmp_path_factory.mktemp("cache")

    def run(*words: object, workers: int = 1) -> int:
        models = ["--lm_model_name_or_path", ASSETS / "tiny_llama"]
        models += ["--vision_model_name_or_path", ASSETS / "tiny_clip", "--data_cache_path", folder]
        command = [*models, "--max_seq_len", 512, "--check_workers", workers, *words]
        return main([str(word) for word in command])

    return run


def bad_samples(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "bad_samples.jsonl").read_text().splitlines()]


def test_all_that_is_damaged_is_named(check, damage, tmp_path, capsys) -> None:
    """Images, records and files; nothing else, and the order is that of training's list."""
    words = ("--data_path", damage.root, "--dataset_names", *damage.names, "--output_dir", tmp_path)
    assert check(*words) == 1
    rows = bad_samples(tmp_path)
    found = {(row["dataset"], row["file"], row["index"]): row["reason"] for row in rows}
    bad = len(damage.expected)
    assert len(found) == len(rows) == bad
    for dataset, file, index, reason in damage.expected:
        own = Path(damage.root, dataset)
        place = (str(own), str(own), index) if own.is_file() else (dataset, file, index)
        assert reason in found[place], (place, found[place])
    page = unescape((tmp_path / "data_report.html").read_text())
    for row in rows:
        assert row["reason"] in page
        assert (row["file"] if row["index"] is None else f"{row['file']}#{row['index']}") in page
    assert (
        "Training would stop." in page
        and f"{bad / damage.records:.2%} of the records".replace("%", " %") in page
    )
    printed = capsys.readouterr().err
    assert f"{bad} bad of {damage.records} records" in printed and "Traceback" not in printed

    first = (tmp_path / "bad_samples.jsonl").read_bytes()
    check(*words, workers=0)  # in this process, and from the cache
    assert (tmp_path / "bad_samples.jsonl").read_bytes() == first


def train(damage, output: Path, *words: object) -> subprocess.CompletedProcess:
    """A training in a process of its own over everything once, on the miniature's models."""
    command = [sys.executable, "-m", "training.main", "--data_path", damage.root, "--output_dir", output]
    command += ["--lm_model_name_or_path", ASSETS / "tiny_llama", "--num_train_epochs", 1]
    command += ["--vision_model_name_or_path", ASSETS / "tiny_clip", "--attention", "mmca"]
    command += ["--data_train_split_ratio", 1, "--max_seq_len", 512, "--per_device_train_batch_size", 8]
    command += ["--save_strategy", "no", "--data_cache_path", output / "cache", *words]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.slow
def test_training_lists_what_the_check_lists(check, damage, tmp_path) -> None:
    """With batches in which nothing is left; packed too, where lengths were counted without the pictures."""
    where = ("--data_path", damage.root, "--output_dir", tmp_path / "check", "--attention", "mmca")
    check(*where, "--dataset_names", *damage.names)
    expected = (tmp_path / "check" / "bad_samples.jsonl").read_bytes()
    names = ("--dataset_names", *damage.names, "--max_bad_fraction", 1)
    for name, flags in {"plain": ("--dataloader_num_workers", 1), "packed": ("--packing",)}.items():
        done = train(damage, tmp_path / name, *names, *flags)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"left out: {len(damage.expected)} bad of {damage.records} records" in done.stderr
        assert (tmp_path / name / "bad_samples.jsonl").read_bytes() == expected
        assert (tmp_path / name / "final" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "flags", "stops_at"),
    [
        (["llava", "truncated.json"], [], "truncated.json is damaged at byte 1"),
        (["truncated.json"], ["--max_bad_fraction", "1"], "no record of"),
    ],
)
def test_training_stops_in_one_line_that_says_why(damage, tmp_path, names, flags, stops_at) -> None:
    names = [damage.root / name if "." in name else name for name in names]
    done = train(damage, tmp_path, "--dataset_names", *names, *flags)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert stops_at in line and "Traceback" not in done.stderr
    assert bad_samples(tmp_path)


def test_the_verdict_is_that_of_training(check, damage, tmp_path, capsys) -> None:
    words = ("--data_path", damage.root, "--output_dir", tmp_path, "--dataset_names")
    assert check(*words, "llava_dial", "--max_bad_fraction", 0.5) == 0
    assert "Training would go on." in (tmp_path / "data_report.html").read_text()
    assert check(*words, "llava_dial", "--max_bad_fraction", 0.4) == 1
    assert "33 of 66 records are bad (50.00%), more than --max_bad_fraction 0.4" in capsys.readouterr().err
    assert check(*words, "llava_dial", "--max_bad_fraction", 0.5, "--strict") == 1
    assert "--strict allows no bad record, and there are 33" in capsys.readouterr().err
    assert len(bad_samples(tmp_path)) == 33  # strict or not, all are found
    assert check(*words, damage.root / "truncated.json", "--max_bad_fraction", 1) == 1
    assert "training would stop" in capsys.readouterr().err  # nothing is left to train on


def test_mistakes_cost_a_line(check, damage, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        check("--max_bad_fractions", 1)
    assert "unknown flag --max_bad_fractions: did you mean --max_bad_fraction?" in capsys.readouterr().err
    words = ("--output_dir", tmp_path, "--data_path")
    assert check(*words, tmp_path / "nowhere") == 2
    assert capsys.readouterr().err.startswith("error: --data_path")
    assert check(*words, damage.root, "--dataset_names", "lava") == 2
    assert "error: unknown dataset lava" in capsys.readouterr().err
    assert check(*words, damage.root, "--dataset_names", "aokvqa") == 2
    assert "aokvqa_v1p0_train.json" in capsys.readouterr().err


@pytest.fixture(scope="module")
def pages(check, damage, tmp_path_factory) -> dict[str, Path]:
    """A report on damaged data, and one of packed rows; with what every flag of training would be given."""
    folder = tmp_path_factory.mktemp("pages")
    words = ("--data_path", damage.root, "--dataset_names", "llava", "llava_dial", "--output_dir", folder)
    check(*words, "--report", folder / "damaged.html", "--zero_stage", 3, "--learning_rate", 1e-3)
    check(*words, "--report", folder / "packed.html", "--packing", "--max_bad_fraction", 1)
    return {name: folder / f"{name}.html" for name in ("damaged", "packed")}


def test_pages_need_nothing_else(pages) -> None:
    for page in pages.values():
        text = page.read_text()
        assert not re.search(r"url\(|@import|<script|https?:", text)
        assert all(link.startswith("data:") for link in re.findall(r'(?:src|href)="([^"]*)"', text))
        assert text.count("data:image/jpeg;base64,") >= 5
    packed = pages["packed"].read_text()
    assert packed.count('class="border"') >= 12 and "packed rows" in packed
    assert re.search(r"\d+ of 512 tokens", packed)


LOOKS = """() => {
  const page = document.documentElement;
  const boxes = [...document.querySelectorAll("main > *, .figure, .chart, .sample, .picture")];
  const over = boxes.filter(box => box.getBoundingClientRect().right > innerWidth + 1).length;
  const broken = [...document.images].filter(image => !image.naturalWidth).length;
  const ground = getComputedStyle(document.body).backgroundColor;
  const learned = document.querySelectorAll(".t.l").length;
  return {scroll: page.scrollWidth, over, broken, ground, learned, images: document.images.length};
}"""


@pytest.mark.slow
@browser.NEEDED
@pytest.mark.parametrize("name", ["damaged", "packed"])
def test_pages_fit_wide_and_narrow_windows_light_and_dark(pages, name) -> None:
    grounds = set()
    for width in (1280, 390):
        with browser.opened(pages[name].as_uri(), width, 900, dark=width == 390) as page:
            seen = page.evaluate(LOOKS)
        assert seen["scroll"] <= width, seen
        assert seen["over"] == seen["broken"] == 0, seen
        assert seen["learned"] > 10 and seen["images"] >= 6, seen
        grounds.add(seen["ground"])
    assert len(grounds) == 2  # light, dark


@pytest.mark.parametrize("answer, warned", [("a red ball", False), ("XKQZ", True)])
def test_answers_that_fall_into_letters_or_bytes_are_warned_of(
    check, tmp_path, capsys, answer, warned
) -> None:
    said = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "two"}]
    said += [said[0], {"role": "assistant", "content": answer}]
    file = tmp_path / "own.json"
    file.write_text(json.dumps([{"messages": said}] * 10))
    assert (
        check("--dataset_names", file, "--data_train_split_ratio", 1, "--output_dir", tmp_path, workers=0)
        == 0
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if "single letters" in line]
    assert len(lines) == warned
    if warned:
        assert lines[0].startswith("10 of 20 ") and "'XKQZ' into " in lines[0] and "lower case" in lines[0]
