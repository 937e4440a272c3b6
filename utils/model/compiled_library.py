"""C++ that stands beside this package, compiled for the machine it runs on: once, and kept for later processes.

What is compiled is kept in `TORCH_EXTENSIONS_DIR`, or ~/.cache/torch_extensions, as torch's own extensions are, by
the source, the command and the processor. `CXX` names the compiler.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

logger = logging.getLogger(__name__)

_COMPILERS = ("g++", "c++")  # clang's OpenMP is another than torch's
_TUNED = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"


class CompileError(RuntimeError):
    """A library could not be made on this machine; the message says why, in one line."""


def compiled_library(source: Path, flags: tuple[str, ...] = (_TUNED,)) -> ctypes.CDLL:
    """The library of a C++ file. Raises CompileError where there is no compiler, or where it fails.

    OpenMP's functions are left to the copy that torch has loaded, so that both share their threads.
    """
    found = _found(source, flags)
    if isinstance(found, CompileError):
        raise found
    return found


@lru_cache
def _found(source: Path, flags: tuple[str, ...]) -> ctypes.CDLL | CompileError:
    """What this process found: a failure is not tried again and again."""
    if not source.is_file():
        return CompileError(f"{source.name} is not beside the code")
    try:
        command = [*_compiler(), "-O3", "-std=c++17", "-fPIC", "-fopenmp", *flags]
        told = [source.read_bytes(), shlex.join(command).encode(), _processor().encode()]
        stem = f"{source.stem}_{hashlib.sha256(b'|'.join(told)).hexdigest()[:16]}"
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        for kept in folder.glob(f"{stem}_*.so"):
            if kept.stem == f"{stem}_{_digest(kept)}":
                return ctypes.CDLL(str(kept))
        logger.info("compiling %s for this processor; it is kept in %s", source.name, folder)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            made = Path(place) / "made.so"
            _run([*command, "-c", str(source), "-o", f"{place}/object.o"])
            _run([*_compiler(), "-shared", f"{place}/object.o", "-o", str(made)])
            library = ctypes.CDLL(str(made))  # kept only if it can be loaded
            os.replace(made, folder / f"{stem}_{_digest(made)}.so")
            return library
    except CompileError as error:
        return error
    except (OSError, RuntimeError, ValueError) as error:  # folders, a home that is unknown, CXX's quotes
        return CompileError(f"{source.name} cannot be compiled and loaded: {error}")


def _digest(library: Path) -> str:
    """Of its bytes: a part of a library would end the process that loads it."""
    return hashlib.sha256(library.read_bytes()).hexdigest()[:16]


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [[name] for name in _COMPILERS]:
        if shutil.which(command[0]):
            return command
    raise CompileError(
        f"CXX names {named[0]}, which is not installed" if named else "no C++ compiler is installed"
    )


def _folder() -> Path:
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    if named:
        return Path(named).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "torch_extensions" / "visualchat"


def _processor() -> str:
    """What the compiler looks at to choose instructions: a home folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    told = {line.partition(":")[0].strip(): line.partition(":")[2] for line in reversed(lines)}
    return "".join(told.get(name, "") for name in ("model name", "model", "flags", "Features", "CPU part"))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise CompileError(f"{Path(command[0]).name} failed: {said[0].strip() if said else done.returncode}")
