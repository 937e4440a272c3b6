"""Modules of the user's own, named by `--plugin`: each registers datasets or visual encoders when it is imported.

`utils.data.register_dataset` and `utils.model.register_encoder` are what they call; docs/add-a-dataset.md and
docs/add-an-encoder.md show one of each. `found` imports modules of the project that may be deleted.
"""

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from utils.commands import UsageError


def load_plugins(names: Iterable[str]) -> None:
    """Import modules, each once: `my_module.py`, or `my_module` where that is installed or in the working folder.

    Raises `UsageError` with one line that names the plugin and, where its code fails, the line.
    """
    for name in names:
        try:
            file = _file(name)
            if file is None:
                importlib.import_module(name)
            else:
                _import_file(file)
        except UsageError as error:
            raise UsageError(f"--plugin {name}: {error}") from error
        except Exception as error:  # whatever the user's own code raises
            raise UsageError(f"--plugin {name}: {_where(error)}{type(error).__name__}: {error}") from error


def add_plugin_argument(parser: ArgumentParser) -> None:
    """`--plugin` of the commands that read a checkpoint; its modules are imported as soon as their names are read."""
    parser.add_argument(
        "--plugin",
        nargs="+",
        type=_plugin,
        default=[],
        metavar="MODULE",
        help="modules of your own (my_module.py) that register the checkpoint's visual encoder",
    )


def _plugin(name: str) -> str:
    try:
        load_plugins([name])
    except UsageError as error:
        raise ArgumentTypeError(str(error).removeprefix("--plugin ")) from error
    return name


def lasting_name(name: str) -> str:
    """The name by which a plugin is found from any folder: the whole path, if it is a file."""
    file = Path(name if name.endswith(".py") else f"{name}.py").expanduser()
    return str(file.absolute()) if file.is_file() else name


def code_of(kind: type) -> str:
    """A hash of the file that defines a class, for caches: a plugin may change what the same weights compute."""
    try:
        return hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()
    except (OSError, TypeError):  # typed at a prompt
        return ""


def _file(name: str) -> Path | None:
    """The file that is meant; None for a module that Python finds by itself."""
    path = Path(name).expanduser()
    if path.suffix == ".py":
        if not path.is_file():
            raise UsageError(f"there is no file {path.absolute()}; check the path")
        return path
    if _spec(name) is not None:
        return None
    beside = Path(f"{name}.py")
    if not beside.is_file():
        raise UsageError(
            f"there is no installed module of this name, and no file {beside.absolute()}; give the path of a .py file"
        )
    return beside


def _spec(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):  # of a package that is not there; no name of a module
        return None


def _import_file(file: Path) -> None:
    """Import a file as the module of its name, under which worker processes find it, spawned ones too."""
    name, file = file.stem, file.resolve()
    found = _spec(name)
    if found is not None and Path(found.origin or "").resolve() != file:
        raise UsageError(f"there is another module called {name}; rename the file")
    if found is None:
        sys.path.append(str(file.parent))  # last, so that nothing else is hidden
        importlib.invalidate_caches()
    importlib.import_module(name)


def _where(error: Exception) -> str:
    """The line of code that raised, for a message."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and "importlib" not in frame.filename]
    return f"{Path(own[0].filename).name}, line {own[0].lineno}: " if own else ""


def found(name: str) -> Any:
    """What a module that may be deleted has under a dotted name; None where it is."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if module != error.name and not module.startswith(f"{error.name}."):
            raise  # the module is there, what it needs is not
        return None


def wing(name: str, flag: str) -> Any:
    """What a flag needs, by its dotted name; `UsageError` where its module is deleted."""
    needed = found(name)
    if needed is None:
        raise UsageError(f"{flag} needs {name}, which this copy of the code lacks: leave out {flag}")
    return needed
