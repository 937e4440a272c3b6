"""The benchmarks of attention, layers and steps: their contenders are right, and their tables are printed."""

import subprocess
import sys

import pytest
import torch

from benchmarks import attention, everything, layer, train_step
from benchmarks.attention import Case, Shape
from benchmarks.layouts import Rows, between, many_layouts
from benchmarks.turns import take_turns
from benchmarks.two_softmaxes import dense
from utils.model.mmca import attend

pytestmark = pytest.mark.integration

LAYOUTS = (
    Rows("one", ((between(30, 2, 5),),)),
    Rows("packed", ((between(20, 1, 5), between(9, 2, 4), ((6, False),)),)),
    Rows("padded", ((between(20, 1, 5),), (between(40, 3, 5),))),
)


@pytest.mark.parametrize("rows", LAYOUTS, ids=lambda rows: rows.name)
def test_the_form_of_2023_computes_the_same(rows):
    case = Case(rows, Shape.of("4/2x8"), torch.float32, "cpu", backward=True)
    read = torch.ones_like(rows.kinds).bool() if rows.valid is None else rows.valid
    found = []
    for out in (
        attend(case.layout, *case.states, 8**-0.5),
        dense(*case.states, rows.visible("cpu"), rows.kinds, 8**-0.5),
    ):
        found.append((out[read], *torch.autograd.grad(out[read].square().sum(), case.states)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_attention(printed):
    out = printed(attention, "--sizes", "64+1", "64+0", "--heads", "2x16")
    lines = [line for line in out.splitlines() if line.startswith("| 2x16 |")]
    assert [line.split(" | ")[2:4] for line in lines] == [
        [size, which] for size in ("64 + 1", "64 + 0") for which in ("f", "fb")
    ]
    assert "least of with images" in out and "least of text alone" in out


def test_operations_are_those_of_the_definition():
    """Worked out by hand: 3 + 2 words around an image of 4; 5 * 6 / 2 pairs of text, 2 * 4 with the image."""
    rows = Rows("one", ((((3, False), (4, True), (2, False)),),))
    for backward, products in ((False, 2), (True, 7)):
        case = Case(rows, Shape.of("2x16"), torch.float32, "cpu", backward)
        assert case.operations == 2 * products * (15 + 8) * 2 * 16


def test_layouts_are_of_many_kinds():
    layouts = many_layouts()
    assert len({rows.name for rows in layouts}) == len(layouts) == 18
    assert any(rows.valid is not None for rows in layouts)


def test_layer(printed):
    out = printed(layer, "--sizes", "16+1")
    assert "| 16 + 1 | f |" in out and "| 16 + 1 | fb |" in out


@pytest.mark.parametrize("features", [(), ("--cached",)], ids=["pixels", "cached features"])
def test_train_step(printed, features):
    out = printed(train_step, "--size", "tiny", "--text", "64", "--images", "1", *features)
    assert "useful TFLOP/s" in out and "kept for the backward pass by as in 2023" in out


def test_who_does_not_fit_into_memory_drops_out(capsys):
    def too_large(number: int) -> float:
        raise torch.OutOfMemoryError("2 TB")

    assert take_turns({"small": float, "large": too_large}, 3) == {"small": [0.0, 1.0, 2.0]}
    assert capsys.readouterr().err == "large: it does not fit into memory\n"


def test_everything_goes_on_where_a_table_fails(capsys, monkeypatch):
    commands: list[list[str]] = []

    def run(command, check):
        commands.append(command[2:])
        return subprocess.CompletedProcess(command, int("benchmarks.layer" in command))

    monkeypatch.setattr(everything.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["everything", "--only", "layer", "chat"])
    assert everything.main() == 1
    assert [command[0] for command in commands] == ["benchmarks.layer", "benchmarks.chat"]
    assert "failed: layer" in capsys.readouterr().err
