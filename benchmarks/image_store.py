"""Image stores: how long a large base64 JSON takes to convert, how much memory, and how fast pictures come back.

    python -m benchmarks.image_store --gigabytes 3

It writes a JSON object `{id: base64}` of the given size into a temporary folder, converts it in a fresh
process, reads pictures at random in another, prints what both took, and removes everything. Both processes
measure their peak memory (resident, mapped files included) above what they used before they began.
"""

import argparse
import base64
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from utils.commands import in_units
from utils.data.readers.conversion_cache import use_cache_folder
from utils.data.readers.image_archive import ImageArchive, open_image_archive

_SMALLEST, _LARGEST = 20_000, 60_000  # bytes of a picture, as JPEGs of 480 x 320 pixels have
_READS = 20_000


def main() -> None:
    """Run the benchmark, or the part of it that a process of its own runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.0, help="size of the JSON file")
    parser.add_argument("--folder", help="where the temporary files go; needs twice that size")
    parser.add_argument("--part", choices=["convert", "read"], help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        use_cache_folder(arguments.path.parent / "cache")
        print(json.dumps(_PARTS[arguments.part](arguments.path)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "pictures.json"
        count, size = write(path, int(arguments.gigabytes * 1e9)), path.stat().st_size
        print(f"file      {in_units(size)}, {count:,} pictures as base64")
        done = _in_a_process("convert", path)
        assert done["pictures"] == count
        print(
            f"convert   {done['seconds']:.1f} s, {size / done['seconds'] / 1e6:,.0f} MB/s; of that"
            f" {done['computing']:.1f} s of one core, {size / done['computing'] / 1e6:,.0f} MB/s;"
            f" peak memory {in_units(done['memory'])} above the {in_units(done['base'])} of the process"
        )
        done = _in_a_process("read", path)
        print(
            f"open      {done['open']:.3f} s\n"
            f"look up   {done['look_up'] * 1e6:.1f} us an id\n"
            f"read      {done['seconds'] * 1e6:.0f} us a picture, {done['bytes'] / 1e6 / done['total']:,.0f} MB/s,"
            f" {_READS:,} at random, peak memory {in_units(done['memory'])} above the process's"
            f" {in_units(done['base'])}"
        )


def write(path: Path, size: int) -> int:
    """Write random bytes as base64 under ids until the file has `size` bytes; returns how many."""
    rng = random.Random(0)
    written, count = 0, 0
    with path.open("w") as file:
        while written < size:
            picture = base64.b64encode(rng.randbytes(rng.randint(_SMALLEST, _LARGEST))).decode()
            written += file.write(f'{", " if count else "{"}"SN_IMG_{count:08d}": "{picture}"')
            count += 1
        file.write("}")
    return count


def convert(path: Path) -> dict[str, float]:
    """The first opening of a store."""
    base, start, computing = _resident(), time.perf_counter(), time.process_time()
    store = open_image_archive(path)
    return {
        "seconds": time.perf_counter() - start,
        "computing": time.process_time() - computing,
        "pictures": len(store),
        **_memory(base),
    }


def read(path: Path) -> dict[str, float]:
    """A later opening, and pictures in random order."""
    base, start = _resident(), time.perf_counter()
    store = open_image_archive(path)
    opened = time.perf_counter() - start
    rng = random.Random(1)
    names = [f"SN_IMG_{rng.randrange(len(store)):08d}" for _ in range(_READS)]
    look_up = _time(lambda: sum(name in store for name in names))
    fetched: list[int] = []
    total = _time(lambda: fetched.extend(_sizes(store, names)))
    return {
        "open": opened,
        "look_up": look_up / _READS,
        "seconds": total / _READS,
        "total": total,
        "bytes": sum(fetched),
        **_memory(base),
    }


_PARTS: dict[str, Callable[[Path], dict[str, float]]] = {"convert": convert, "read": read}


def _in_a_process(part: str, path: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.image_store", "--part", part, "--path", str(path)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _sizes(store: ImageArchive, names: list[str]) -> list[int]:
    return [len(store[name]) for name in names]


def _time(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _resident() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def _memory(base: int) -> dict[str, float]:
    return {"base": base, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - base}


if __name__ == "__main__":
    main()
