"""All tables of docs/performance.md, one after the other, each in a process of its own.

    python -m benchmarks.everything                 # processor time on one core of a CPU
    python -m benchmarks.everything --threads 2     # with several, wall time on an idle machine

For a GPU there is `benchmarks.gpu`.
"""

import argparse
import subprocess
import sys
import time

_TABLES = [
    ["attention"],
    ["attention", "--layouts"],
    ["layer"],
    ["train_step"],
    ["generate"],
    ["chat"],
    ["evaluation"],
    ["serving", "--dtype", "bfloat16"],
]


def main() -> int:
    """Print the tables; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--only", nargs="+", help="tables by name")
    arguments = parser.parse_args()
    failed = []
    for name, *flags in _TABLES:
        if arguments.only and name not in arguments.only:
            continue
        command = [sys.executable, "-m", f"benchmarks.{name}", *flags, "--threads", str(arguments.threads)]
        started = time.monotonic()
        print(f"\n== {' '.join(command[1:])}", flush=True)
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
        print(f"== {time.monotonic() - started:.0f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
