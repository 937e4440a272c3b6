"""Measures of the house: `make house` prints them, tests/test_structure.py holds each at its limit.

The core does the whole job: it trains, saves, answers at a terminal and evaluates. It never imports a wing; what is in
no wing is core.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ("utils", "training", "chat", "eval", "helper")

WINGS = {  # the folders and files (without ending) of each
    "kernels": "utils/model/mmca_fused utils/model/mmca_flex utils/model/mmca_kernels utils/model/compiled_library",
    "encoders": "utils/model/open_clip_vision utils/model/qwen_vit",
    "image_kv": "chat/image_kv",
    "archives": "utils/data/readers/image_archive utils/data/readers/parquet",
    "user_config": "training/user_config",
    "vision_feature_cache": "training/vision_features utils/data/batching/vision_feature_cache",
    "fault_tolerance": "training/fault_tolerance",
    "memory_plan": "training/memory helper/plan_memory helper/dry_run helper/needs utils/model/sizes",
    "metrics": "training/metrics",
    "reports": "training/data_report training/run_report eval/report helper/check_data",
    "serving": "chat/serving chat/server_setup",
    "page": "chat/page chat/web",
    "judging": "eval/judge eval/lmms_eval_model",
    "export": "helper/export_checkpoint helper/checkpoint_forms helper/extract_qwen_vl helper/qwen_vl_encoder",
    "miniature": "helper/miniature helper/demonstration helper/comparison helper/demo helper/compare"
    " helper/make_tiny_models helper/make_tiny_world",
}

# What transformers copies into checkpoints, with all that these import.
TRAVEL = tuple(f"utils.model.{kind}_visual_chat" for kind in ("configuration", "modeling", "processing"))


@cache
def modules() -> dict[str, Path]:
    """The library's modules by name."""
    paths = [path.relative_to(ROOT) for part in LIBRARY for path in sorted((ROOT / part).rglob("*.py"))]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): ROOT / path for path in paths}


@cache
def wing(module: str) -> str | None:
    """The wing that a module is in; None: the core."""
    path = module.replace(".", "/") + "/"
    names = (name for name, places in WINGS.items() for each in places.split() if path.startswith(f"{each}/"))
    return next(names, None)


@cache
def imported(path: Path, everywhere: bool = True) -> frozenset[str]:
    """Modules of the library that a file imports: everywhere, or without those in functions and for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    tests = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    later = {child for node in (*functions, *tests) for child in ast.walk(node)}
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(tree):
        if node in later and not everywhere:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else ())))
            found |= {full if (full := f"{base}.{name.name}") in modules() else base for name in node.names}
    return frozenset(name for name in found if modules().get(name) not in (None, path))


def closure(*starts: str, packages: bool = True, everywhere: bool = False) -> set[str]:
    """Modules that these import, and so on; with packages, since Python runs their `__init__`."""
    found: set[str] = set()
    left = list(starts)
    while left:
        if (name := left.pop()) in modules() and name not in found:
            found.add(name)
            left += imported(modules()[name], everywhere)
            left += [name.rpartition(".")[0]] if packages else []
    return found


def circles() -> list[str]:
    """Modules that import one another in a ring, imports in functions and for type checkers included."""
    above = modules().items()
    reach = {name: closure(*imported(path), packages=False, everywhere=True) for name, path in above}
    rings = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in reach}
    return sorted(" <-> ".join(ring) for ring in rings if ring)


def imports_of(wanted: str) -> list[tuple[str | None, str]]:
    """Imports of a wing from outside: by which wing (None: the core, which should have none), and the import."""
    each = ((name, other) for name, path in modules().items() for other in sorted(imported(path)))
    return [
        (wing(name), f"{name} imports {other}") for name, other in each if wing(other) == wanted != wing(name)
    ]


def imports_by_core() -> list[str]:
    return [said for name in WINGS for by, said in imports_of(name) if by is None]


def deletable() -> set[str]:
    """Wings that can be deleted together: nothing else imports one of them."""
    left = set(WINGS)
    while kept := {name for name in left if not left >= {by for by, _ in imports_of(name)}}:
        left -= kept
    return left


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def measures() -> dict[str, tuple[int, int]]:
    """Every measure by name, with its goal; less is better."""
    sizes = {name: lines(path) for name, path in modules().items()}
    core = [name for name in sizes if wing(name) is None]
    travel = closure(*TRAVEL, packages=False, everywhere=True)
    return {
        "library: lines": (sum(sizes.values()), 24_000),
        "tests: lines": (sum(map(lines, (ROOT / "tests").rglob("*.py"))), 17_000),
        "core: lines": (sum(sizes[name] for name in core), 11_000),
        "core: files": (len(core), 75),
        "core: imports of wings": (len(imports_by_core()), 0),
        "files above 400 lines": (sum(size > 400 for size in sizes.values()), 0),
        "circles of imports": (len(circles()), 0),
        "a training step: modules loaded": (len(closure("training.trainer")), 45),
        "a chat turn: modules loaded": (len(closure("chat.session")), 25),
        "MMCA: files": (len(closure("utils.model.mmca", packages=False)), 3),
        "in checkpoints: files": (len(travel), 20),
        "in checkpoints: lines": (sum(sizes[name] for name in travel), 3_000),
    }


def main() -> None:
    for name, (value, goal) in measures().items():
        print(f"{name:34}{value:8,}   goal {goal:6,}")
    print("\nwings that can be deleted together:", ", ".join(sorted(deletable())))
    print("circles:", *circles(), sep="\n    ")
    print("the core imports wings:", *imports_by_core(), sep="\n    ")


if __name__ == "__main__":
    main()
