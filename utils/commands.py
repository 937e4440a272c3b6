"""What every command tells its user: how far long work has got (a bar on a terminal, else a line now and then), and how
it ends, with one line and with an exit code.

A command reads its flags before it imports anything that takes long, so that `--help` and a mistake are answered at
once; this module itself imports nothing that does.
"""

import argparse
import atexit
import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

from utils.distributed import get_logger

P = ParamSpec("P")

ROOT = Path(__file__).resolve().parents[1]
"""The folder that the project is in."""
GIB = 2**30
"""Bytes; flags and messages about memory are in GiB."""

FINISHED = 0
MISTAKE = 2
"""The exit code of what the user can mend: a wrong flag, a missing file, a folder that cannot be written."""
INTERRUPTED = 130
"""The exit code that shells give to what Ctrl-C ended."""


class Parser(argparse.ArgumentParser):
    """Reads a command's flags; a mistake costs one line, not a page of usage. `--help` keeps a description's lines."""

    def __init__(self, **settings: Any) -> None:
        if "\n" in (settings.get("description") or ""):
            settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        """End the program with code 2 and a line, which the first of several processes prints."""
        if message.startswith("the following arguments are required"):
            message += " (see --help)"
        raise SystemExit(complain(message))


class UsageError(ValueError):
    """A mistake of the user; the message is one line and says what to do."""


def command(main: Callable[P, int | None]) -> Callable[P, int]:
    """Make of `main` a command: a function that always returns an exit code (None counts as success).

    A mistake of the user (`UsageError`, or a file that the system refuses) and Ctrl-C, while libraries are being
    imported too, cost one line on standard error.
    """

    @wraps(main)
    def coded(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs) or FINISHED
        except KeyboardInterrupt:
            if _is_first():
                print("\ninterrupted" if sys.stderr.isatty() else "interrupted", file=sys.stderr)
            return INTERRUPTED
        except UsageError as error:
            return complain(error)
        except OSError as error:
            if error.filename is None or error.strerror is None:
                raise
            return complain(f"{error.filename}: {error.strerror}")

    return coded


def complain(error: Exception | str) -> int:
    """Say in one line what is wrong, in the first of several processes; returns the exit code of a user's mistakes."""
    if _is_first():
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return MISTAKE


def printable(value: Any, most: int = 60) -> str:
    """A value that came from elsewhere in ASCII, its end left out where it is longer than `most` characters."""
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= most else text[: most - 3] + "..."


def writable_folder(folder: Path, flag: str) -> Path:
    """The folder, made where it is missing; `UsageError` naming `flag` where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        reason = (
            "a file is in the way"
            if isinstance(error, FileExistsError | NotADirectoryError)
            else error.strerror
        )
        raise UsageError(
            f"{flag}: cannot write to the folder {folder}: {reason}; choose another folder"
        ) from error
    return folder


def end_process(code: int) -> NoReturn:
    """End this process with an exit code, also where a process group or threads of libraries are at work.

    Python's own end takes its lock away from threads for ever. A thread of torch's communication that is about to free
    a tensor then brings the process down with SIGABRT ("terminate called without an active exception"), and a run that
    has ended well looks like one that failed. So everything that is due at the end is done, and the rest left out.
    """
    if code == INTERRUPTED:  # nobody waits for what still reads weights
        if "multiprocessing" in sys.modules:
            for child in sys.modules["multiprocessing"].active_children():
                child.kill()
    else:
        threading._shutdown()  # type: ignore[attr-defined]  # tells idle pools to end, then waits for all threads
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or nobody reads it any more
            stream.flush()
    os._exit(code)


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


logger = get_logger(__name__)

LINE_EVERY = 30.0
"""Seconds between two lines, where there is no terminal."""


@contextmanager
def progress(label: str, total: int, unit: str = "", keep: bool = False) -> Iterator[Callable[..., None]]:
    """Show how far work on `total` things has got; a bar stays when all is done where `keep` says so.

    Yields what takes how many were just done, and counts to show beside them by their names (`bad=3`). The
    unit "B" stands for bytes.
    """
    from tqdm.auto import tqdm

    is_terminal = sys.stderr.isatty()
    in_words = in_units if unit == "B" else "{:,}".format
    start = said = time.perf_counter()
    done = 0
    with tqdm(
        total=total,
        desc=label,
        unit=unit if unit == "B" else f" {unit or 'items'}",
        unit_scale=unit == "B",
        dynamic_ncols=True,
        leave=keep,
        disable=not is_terminal,
    ) as bar:

        def advance(count: int, **beside: int) -> None:
            nonlocal done, said
            done += count
            if beside:
                bar.set_postfix(beside, refresh=False)
            bar.update(count)
            now = time.perf_counter()
            if not is_terminal and now - said >= LINE_EVERY:
                said = now
                things = f" {unit}" if unit and unit != "B" else ""
                others = "".join(f", {number:,} {name}" for name, number in beside.items())
                words = f"{in_words(done)} of {in_words(total)}{things}{others}"
                logger.info("%s: %s in %.0f s", label, words, now - start)

        yield advance


def in_units(count: float) -> str:
    """Bytes as people write them: 3.2 GB."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
