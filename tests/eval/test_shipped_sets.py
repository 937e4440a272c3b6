"""The evaluation sets that come with the project: complete, small, with named sources."""

import pytest

from eval.dialogues import EVAL_DATA, load_dialogues

SETS = {"eval_single": (9, 40), "eval_comprehensive": (11, 60), "eval_robustness": (8, 34)}
MEBIBYTE = 2**20


@pytest.mark.parametrize("name", SETS)
def test_dialogues_and_turns(name):
    dialogues = load_dialogues(name)
    assert (len(dialogues), sum(len(dialogue.turns) for dialogue in dialogues)) == SETS[name]
    for dialogue in dialogues:
        for turn in dialogue.turns:
            for image in turn.images:
                image.open()


def test_every_picture_is_used_small_and_has_a_source():
    folder = EVAL_DATA / "image"
    files = {path.name for path in folder.iterdir()}
    used = {image.source.name for name in SETS for dialogue in load_dialogues(name) for turn in dialogue.turns
            for image in turn.images}  # fmt: skip
    assert files == used
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1.5 * MEBIBYTE
    sources = (EVAL_DATA / "SOURCES.md").read_text()
    drawn = {name for name in files if name.endswith(".png")}  # "all `*.png`" in the sources
    assert all(f"`{name}`" in sources for name in files - drawn)
