"""The house's structure: imports point down, what travels in a checkpoint stands alone, no measure gets worse."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests import house

ROOT = Path(__file__).parent.parent
FOUNDATION = {
    "utils.answers",
    "utils.commands",
    "utils.conversation",
    "utils.images",
    "utils.plugins",
    "utils.distributed",
    "utils.hub",
    "utils.atomic",
}

# What each part may import of the project, itself and the foundation aside.
ALLOWED = {
    "utils/model": set(),
    "utils/data": set(),
    "training": {"utils.model", "utils.data"},
    "chat": {"utils.model", "utils.data"},
    "eval": {"utils.model", "utils.data", "chat"},
    "helper": {"utils.model", "utils.data", "training", "chat", "eval"},
}
LIMITS = {  # to be lowered with the measures of tests/house.py, never raised without a reason
    "library: lines": 32_186,
    "tests: lines": 24_598,
    "core: lines": 18_372,
    "core: files": 100,
    "core: imports of wings": 0,
    "files above 400 lines": 0,
    "circles of imports": 0,
    "a training step: modules loaded": 45,
    "a chat turn: modules loaded": 14,
    "MMCA: files": 3,
    "in checkpoints: files": 16,
    "in checkpoints: lines": 3_989,
}
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PROJECT = ("utils", "training", "chat", "eval", "helper", "tests")


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules |= {f"{node.module}.{name.name}" for name in node.names} | {node.module or ""}
    return {module for module in modules if module.split(".")[0] in PROJECT and module not in PROJECT}


def is_allowed(module: str, allowed: set[str]) -> bool:
    return any(module == each or module.startswith(each + ".") for each in allowed)


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_down(part: str) -> None:
    own = part.replace("/", ".")
    foundation = FOUNDATION if part != "utils/model" else set()
    allowed = ALLOWED[part] | foundation | {own}
    files = sorted((ROOT / part).rglob("*.py"))
    assert files, f"{part} has no Python files"
    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files
        for module in imported_modules(path)
        if not is_allowed(module, allowed) and module not in {"utils.model", "utils.data"} & allowed
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_foundation_imports_nothing_above_it() -> None:
    for module in FOUNDATION:
        path = ROOT / (module.replace(".", "/") + ".py")
        assert not {each for each in imported_modules(path) if not is_allowed(each, FOUNDATION)}


def test_no_file_edits_the_import_path() -> None:
    allowed = {Path(__file__), ROOT / "utils" / "plugins.py"}  # a user's own module, wherever it lies
    sources = [path for part in PROJECT for path in (ROOT / part).rglob("*.py") if path not in allowed]
    assert not [path for path in sources if "sys.path" in path.read_text()]


def test_the_places_that_the_architecture_names_are_there() -> None:
    parts = [path for part in (*ALLOWED, "utils", "benchmarks", "tests") for path in (ROOT / part).rglob("*")]
    there = {f"/{path.relative_to(ROOT)}" for path in (*parts, *ROOT.iterdir())}
    named = re.findall(r"`([\w/]+(?:/|\.\w+))`", ARCHITECTURE.read_text(encoding="utf-8"))
    assert len(named) > 40
    missing = [name for name in named if not any(path.endswith(f"/{name.rstrip('/')}") for path in there)]
    assert not missing, "docs/architecture.md names what is not there"


@pytest.fixture(scope="module")
def measures() -> dict[str, tuple[int, int]]:
    return house.measures()


@pytest.mark.parametrize("measure", LIMITS)
def test_no_measure_of_the_house_gets_worse(measure: str, measures: dict[str, tuple[int, int]]) -> None:
    value, goal = measures[measure]
    assert value <= LIMITS[measure], f"{measure}: see `make house`; the goal is {goal}"
    assert set(measures) == set(LIMITS)


def test_every_place_of_a_wing_is_there() -> None:
    places = [place for places in house.WINGS.values() for place in places.split()]
    assert not [
        place for place in places if not (ROOT / place).is_dir() and not (ROOT / f"{place}.py").is_file()
    ]
