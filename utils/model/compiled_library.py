"""C++ that stands beside this package, compiled for the machine it runs on: once, and kept for later processes.

What is compiled is kept in `TORCH_EXTENSIONS_DIR`, or ~/.cache/torch_extensions, as torch's own extensions are, by
the source, the compiler and the processor. `CXX` names the compiler.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

logger = logging.getLogger(__name__)

_COMPILERS = ("c++", "g++", "clang++")
_TUNED = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"


class CompileError(RuntimeError):
    """A library could not be made on this machine; the message says why, in one line."""


@lru_cache
def compiled_library(source: Path, flags: Sequence[str] = (_TUNED,)) -> ctypes.CDLL:
    """The library of a C++ file. Raises CompileError where there is no compiler, or where it fails.

    OpenMP's functions are left to the copy that torch has loaded, so that both share their threads.
    """
    if not source.is_file():
        raise CompileError(f"{source.name} is not beside the code")
    compiler = _compiler()
    command = [compiler, "-O3", "-std=c++17", "-fPIC", "-fopenmp", *flags]
    told = [source.read_bytes(), " ".join(command).encode(), _processor().encode()]
    name = f"{source.stem}_{hashlib.sha256(b'|'.join(told)).hexdigest()[:16]}.so"
    try:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / name).exists():
            try:
                return ctypes.CDLL(str(folder / name))
            except OSError:  # damaged, or of another system: made anew
                pass
        logger.info("compiling %s for this processor; it is kept in %s", source.name, folder)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            _run([*command, "-c", str(source), "-o", f"{place}/object.o"])
            _run([compiler, "-shared", f"{place}/object.o", "-o", f"{place}/{name}"])
            os.replace(f"{place}/{name}", folder / name)
        return ctypes.CDLL(str(folder / name))
    except OSError as error:
        raise CompileError(f"{source.name} cannot be compiled and loaded: {error}") from error


def _compiler() -> str:
    named = os.environ.get("CXX")
    for name in [named] if named else _COMPILERS:
        if found := shutil.which(name):
            return found
    raise CompileError(
        f"CXX names {named}, which is not installed" if named else "no C++ compiler is installed"
    )


def _folder() -> Path:
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    if named:
        return Path(named).expanduser()
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "torch_extensions" / "visualchat"
    )


def _processor() -> str:
    """What the compiler looks at to choose instructions: a home folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    told = {line.partition(":")[0].strip(): line.partition(":")[2] for line in reversed(lines)}
    return "".join(told.get(name, "") for name in ("model name", "model", "flags", "Features", "CPU part"))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise CompileError(f"{Path(command[0]).name} failed: {said[0].strip() if said else done.returncode}")
