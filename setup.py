"""Requirements and extras for pyproject.toml, read from the requirements files, which are the only lists."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent


def parts_of(name: str, part: str) -> dict[str, list[str]]:
    """The requirements of a file by part; `# [name]` begins one, and what stands before the first is in `part`."""
    parts: dict[str, list[str]] = {}
    for line in (HERE / name).read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"# \[(\w+)\]", line):
            part = heading[1]
        requirement = line.split(" #")[0].strip()
        if requirement and not requirement.startswith(("#", "-r ")):
            parts.setdefault(part, []).append(requirement)
    return parts


parts = parts_of("requirements.txt", "base")
for path in sorted(HERE.glob("requirements-*.txt")):  # requirements-dev.txt is the extra dev
    parts |= parts_of(path.name, path.stem.removeprefix("requirements-"))
setup(install_requires=parts.pop("base"), extras_require=parts)
