"""All tables of docs/performance.md, one after the other, each in a process of its own.

    python -m benchmarks.everything                 # this machine's GPU where it has one, else its CPU
    python -m benchmarks.everything --threads 2     # of a CPU; with several, wall time on an idle machine

With a GPU the sizes are those of a 7B decoder in bfloat16.
"""

import argparse
import subprocess
import sys
import time

import torch

_TABLES = [
    ["attention"],
    ["attention", "--layouts"],
    ["layer"],
    ["train_step"],
    ["generate"],
    ["chat"],
    ["evaluation"],
]
_ON_GPU = ["--size", "7b", "--dtype", "bfloat16"]
_SIZED = ("generate", "chat", "evaluation")  # the others choose by the device themselves


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
        if torch.cuda.is_available() and name in _SIZED:
            command += _ON_GPU
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
