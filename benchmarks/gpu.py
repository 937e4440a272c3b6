"""All measurements on a GPU in one command: the most important first, within a few minutes.

    python -m benchmarks.gpu --minutes 8 --output results.json
    python -m benchmarks.gpu --document results.json    # put the tables into docs/performance.md
    python -m benchmarks.gpu --miniature                # tiny sizes on a CPU, to see that all of it runs

Each part (benchmarks/gpu_parts.py) runs in a process of its own, with its share of the time that is left. Results
are written as soon as they are known; a part that fails or runs out of time is told and passed over. Neither DeepSpeed
nor datasets is needed: torch, transformers and what these need, pillow, sentencepiece and jinja2 suffice.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from utils.atomic import atomic_write
from utils.commands import ROOT

DOCUMENT = ROOT / "docs" / "performance.md"
_BEGIN, _END = "<!-- measured by benchmarks.gpu: begin -->", "<!-- measured by benchmarks.gpu: end -->"
_KILLED_AFTER = 5.0
"""Seconds that a part has to end after it was asked to."""

TITLES = {
    "machine": "The machine",
    "kernels": "Kernels against float64",
    "train": "A training step at 7B",
    "attention": "Attention and a layer",
    "generate": "Generation at 7B",
    "learn": "Fifty training steps",
}


def main() -> int:
    """Run all parts, or one; 1 where a part did not come to its end."""
    arguments = _arguments()
    if arguments.document:
        fill_document(DOCUMENT, json.loads(arguments.document.read_text(encoding="utf-8")))
        return 0
    if arguments.part:
        _run_part(arguments.part, arguments.lines, arguments.miniature)
        return 0
    if not arguments.miniature and not _has_gpu():
        print(
            "error: there is no GPU here; --miniature tries everything with tiny sizes on a CPU",
            file=sys.stderr,
        )
        return 2
    from benchmarks.gpu_parts import PARTS

    flags = ["--miniature"] if arguments.miniature else []
    wanted = {name: share for name, (_, share) in PARTS.items() if name in (arguments.only or PARTS)}
    commands = {
        name: [sys.executable, "-m", "benchmarks.gpu", *flags, "--part", name, "--lines"] for name in wanted
    }
    results = run_parts(commands, wanted, arguments.minutes * 60, arguments.output)
    print("\n" + tables(results))
    print(f"written to {arguments.output}")
    return int(any(part["status"] != "done" for part in results["parts"].values()))


def run_parts(
    commands: dict[str, list[str]], shares: dict[str, float], seconds: float, output: Path
) -> dict[str, Any]:
    """Run each part's command, to which the path of a file for its results is added, a JSON object a line.

    shares: of the time that is left, for each part. Returns, and keeps in `output` from the first result on:
    {"command", "host", "seconds", "parts": {name: {"status", "seconds", "error", "results"}}}, where the status
    is "running", "done", "failed" or "out of time".
    """
    started = time.monotonic()
    record: dict[str, Any] = {
        "command": f"python -m benchmarks.gpu {' '.join(sys.argv[1:])}".strip(),
        "host": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "parts": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, command in commands.items():
            left = seconds - (time.monotonic() - started)
            part = record["parts"][name] = {"status": "running", "results": []}
            _say(f"== {name}: at most {max(left, 0) * shares[name]:.0f} s")
            lines, errors = Path(folder) / f"{name}.jsonl", Path(folder) / f"{name}.err"
            begun = time.monotonic()
            with errors.open("wb") as stderr:
                process = subprocess.Popen([*command, str(lines)], stderr=stderr, start_new_session=True)
                try:
                    while process.poll() is None and time.monotonic() - begun < left * shares[name]:
                        _collect(part, lines, record, output)
                        time.sleep(0.2)
                finally:
                    in_time = _ended(process)
            part["status"] = "out of time" if not in_time else "failed" if process.returncode else "done"
            part["seconds"] = round(time.monotonic() - begun, 1)
            if process.returncode:
                part["error"] = errors.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
            record["seconds"] = round(time.monotonic() - started, 1)
            _collect(part, lines, record, output, always=True)
            _say(f"== {name}: {part['status']} after {part['seconds']:.0f} s, {len(part['results'])} results")
            if part["status"] == "failed":
                _say("\n".join(part["error"].splitlines()[-3:]))
    return record


def tables(record: dict[str, Any]) -> str:
    """The results as Markdown, a table for each kind of result; what did not come to its end is said."""
    written = []
    for name, part in record["parts"].items():
        written.append(f"**{TITLES.get(name, name)}**")
        if part["status"] != "done":
            reason = part.get("error", "").splitlines()[-1:] or ["no error was printed"]
            why = f": {reason[0][:200]}" if part["status"] == "failed" else ""
            written.append(f"This part is incomplete, {part['status']} after {part['seconds']:.0f} s{why}.")
        by_columns: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for result in part["results"]:
            by_columns.setdefault(tuple(result), []).append(result)
        for columns, results in by_columns.items():
            rows = [list(columns), ["---"] * len(columns)]
            rows += [[_cell(result[column]) for column in columns] for result in results]
            written.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(written)


def fill_document(document: Path, record: dict[str, Any]) -> None:
    """Replace what stands between the document's two marks by the tables of a record."""
    text = document.read_text(encoding="utf-8")
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{document}: the lines {_BEGIN!r} and {_END!r} are missing")
    said = f"`{record['command']}`, {record['seconds']:.0f} s in all, {record['host']}:"
    atomic_write(document, f"{before}{begin}\n\n{said}\n\n{tables(record)}\n\n{end}{after}")


def _run_part(name: str, lines: Path, miniature: bool) -> None:
    from benchmarks.gpu_parts import PARTS, Place

    with lines.open("a", encoding="utf-8") as file:
        for result in PARTS[name][0](Place(miniature)):
            print("  " + ", ".join(f"{key} {_cell(value)}" for key, value in result.items()), flush=True)
            file.write(json.dumps(result) + "\n")
            file.flush()


def _collect(
    part: dict[str, Any], lines: Path, record: dict[str, Any], output: Path, always: bool = False
) -> None:
    """Take over the results that a part has written; its last line may be half of one."""
    text = lines.read_text(encoding="utf-8") if lines.exists() else ""
    whole = text[: text.rfind("\n") + 1].splitlines()
    if always or len(whole) > len(part["results"]):
        part["results"] = [json.loads(line) for line in whole]
        atomic_write(output, json.dumps(record, indent=1))


def _ended(process: subprocess.Popen) -> bool:
    """Whether the process has ended; one that has not is ended, with all that it started."""
    if process.poll() is not None:
        return True
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, number)
        try:
            process.wait(_KILLED_AFTER)
            break
        except subprocess.TimeoutExpired:
            continue
    return False


def _cell(value: object) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _say(line: str) -> None:
    print(line, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together (default: 8)")
    parser.add_argument("--output", type=Path, default=Path("results.json"), help="default: results.json")
    parser.add_argument("--only", nargs="+", choices=TITLES, help="these parts alone")
    parser.add_argument("--miniature", action="store_true", help="tiny sizes on a CPU")
    parser.add_argument("--document", type=Path, metavar="RESULTS", help="write docs/performance.md's tables")
    parser.add_argument("--part", choices=TITLES, help=argparse.SUPPRESS)
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
