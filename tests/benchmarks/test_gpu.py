"""`benchmarks.gpu`: runs to the end in miniature with the packages of a bare GPU machine; parts may fail or hang."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from benchmarks import gpu, parity
from utils.model import mmca_kernels

ROOT = Path(__file__).parents[2]
REQUIREMENTS = (ROOT / "requirements.txt").read_text()
PACKAGES = [
    *(
        "torch",
        "torchvision",
        "transformers",
        "accelerate",
        "peft",
        "safetensors",
        "triton",
        "timm",
        "tokenizers",
    ),
    *("sentencepiece", "protobuf", "jinja2", "pillow", "numpy", "scipy", "matplotlib", "rich", "packaging"),
    *("pytest", "psutil"),
]
"""What a bare GPU machine has, beside what these need."""

BLOCKER = """
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec

def find_what_is_there(name, path=None, target=None):
    return None if name.partition(".")[0] in {blocked} else find_spec(name, path, target)

PathFinder.find_spec = staticmethod(find_what_is_there)
"""
"""Modules of packages that a bare GPU machine lacks are not found."""


def needed(packages: list[str]) -> set[str]:
    """These distributions and all that they require, by normalised name."""
    found: set[str] = set()
    waiting = list(packages)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        requirements = map(Requirement, required)
        waiting += [
            each.name for each in requirements if not each.marker or each.marker.evaluate({"extra": ""})
        ]
    return found


@pytest.mark.slow
def test_a_bare_gpu_machine_suffices(tmp_path: Path) -> None:
    known = needed(PACKAGES) | {"visualchat"}  # this project, where it is installed
    # In a process of its own: setuptools, once imported, shows the packages inside it as if they were installed.
    show = (
        "import importlib.metadata as installed, json; print(json.dumps(installed.packages_distributions()))"
    )
    shown = subprocess.run([sys.executable, "-c", show], check=True, capture_output=True, text=True).stdout
    blocked = {
        module
        for module, owners in json.loads(shown).items()
        if not any(owner.lower().replace("_", "-") in known for owner in owners)
    }
    assert {"deepspeed", "datasets", "open_clip", "simplejpeg"} <= blocked
    (tmp_path / "sitecustomize.py").write_text(BLOCKER.format(blocked=sorted(blocked)))
    done = miniature(Path(sys.executable), tmp_path, {"PYTHONPATH": str(tmp_path)})
    assert done["parts"]["generate"]["results"][-1]["note"] == "bitsandbytes is not installed"


@pytest.mark.long
def test_the_oldest_supported_versions_suffice(tmp_path: Path) -> None:
    """An environment of its own, with the lowest torch and transformers of requirements.txt; 5 GB on the disk."""
    lowest = re.findall(r"^(torch|torchvision|transformers)>=([\d.]+)", REQUIREMENTS, re.MULTILINE)
    assert len(lowest) == 3
    pinned = {name: f"{name}=={version}.*" for name, version in lowest}
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "environment"], check=True)
    packages = [pinned.get(name, name) for name in PACKAGES]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    miniature(python, tmp_path, {})


def miniature(python: Path, folder: Path, environment: dict[str, str]) -> dict:
    """Run all parts; each has to come to its end, and to find what it looks at right."""
    output = folder / "results.json"
    command = [str(python), "-m", "benchmarks.gpu", "--miniature", "--minutes", "12", "--output", str(output)]
    # A compiler's cache of its own: headers that an earlier environment compiled may be gone with it.
    own = {"OMP_NUM_THREADS": "2", "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")}
    environment = {**os.environ, **own, **environment}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(output.read_text())
    assert list(record["parts"]) == list(gpu.TITLES)
    results = [result for part in record["parts"].values() for result in part["results"]]
    assert len(results) > 40
    wrong = [
        f"{each['kernel']}, {each['case']}: {each['note']}" for each in results if each.get("right") is False
    ]
    assert wrong == []
    return record


RESULT = "import sys, time; file = open(sys.argv[1], 'a'); print('{\"n\": 1}', file=file, flush=True);"


def test_a_part_that_fails_or_hangs_costs_its_share_of_the_time(tmp_path: Path) -> None:
    parts = {
        "fails": f"{RESULT} raise ValueError('no such kernel')",
        "hangs": f"{RESULT} time.sleep(600)",
        "leaves half a line": f"{RESULT} file.write('{{'); file.flush()",
    }
    commands = {name: [sys.executable, "-c", code] for name, code in parts.items()}
    output = tmp_path / "results.json"
    record = gpu.run_parts(commands, {"fails": 0.9, "hangs": 0.25, "leaves half a line": 0.9}, 20, output)
    assert record == json.loads(output.read_text())
    found = record["parts"]
    assert [part["status"] for part in found.values()] == ["failed", "out of time", "done"]
    assert all(part["results"] == [{"n": 1}] for part in found.values())
    assert "no such kernel" in found["fails"]["error"]
    assert record["seconds"] < 20


def test_results_fill_the_document(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text((ROOT / "docs" / "performance.md").read_text())
    record = {
        "command": "python -m benchmarks.gpu",
        "host": "Linux",
        "seconds": 471.2,
        "parts": {
            "machine": {
                "status": "done",
                "seconds": 9,
                "results": [{"device": "H200", "copy, GB/s": 4312.5}],
            },
            "train": {"status": "failed", "seconds": 3, "error": "a\nOutOfMemoryError: 7 GB", "results": []},
        },
    }
    for _ in range(2):  # the second replaces the first
        gpu.fill_document(document, record)
    text = document.read_text()
    assert text.count("| H200 | 4,312 |") == 1
    assert "This part is incomplete, failed after 3 s: OutOfMemoryError: 7 GB." in text
    assert text.startswith((ROOT / "docs" / "performance.md").read_text()[:500])


def test_without_a_gpu_it_says_what_to_do() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2 and "--miniature" in done.stderr


WRONG = [case for case in parity.cases(("masked",), ("4/2x8",)) if "compiled" not in str(case)]


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_the_cases_find_what_is_wrong(case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel whose result is off by a tenth fails every case."""
    attend = mmca_kernels.registered.attend
    monkeypatch.setattr(mmca_kernels.registered, "attend", lambda *args: 1.1 * attend(*args))
    _, error = case.errors("cpu")
    assert error > case.tolerance
