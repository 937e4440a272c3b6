"""The table of datasets in docs/datasets.md, made of the registry's rows: `python -m helper.dataset_table`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.atomic import atomic_write
from utils.commands import ROOT, Parser, command, end_process

if TYPE_CHECKING:
    from utils.data.spec import DatasetSpec, Part

PAGE = ROOT / "docs" / "datasets.md"

_BEGIN = "<!-- datasets: written by python -m helper.dataset_table -->\n"
_END = "<!-- end of datasets -->"


def dataset_table() -> str:
    """The rows of all datasets as a Markdown table: names, files under the data folder, where to get them."""
    from utils.data.registry import DATASETS

    rows = [_row(spec) for _, spec in sorted(DATASETS.items())]
    return "\n".join(["| dataset | files | from |", "|---|---|---|", *rows])


def with_table(page: str) -> str:
    """`page` with today's table between its two marks."""
    before, rest = page.split(_BEGIN)
    _, after = rest.split(_END)
    return f"{before}{_BEGIN}{dataset_table()}\n{_END}{after}"


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Write the table into docs/datasets.md."""
    Parser(prog="python -m helper.dataset_table", description=__doc__).parse_args(argv)
    atomic_write(PAGE, with_table(PAGE.read_text(encoding="utf-8")))


def _row(spec: DatasetSpec) -> str:
    parts = (*spec.annotations, *spec.images)
    files = ", ".join(map(_files, parts))
    origins = ", ".join(dict.fromkeys(part.origin for part in parts))
    return f"| {spec.name} | {files} | {origins} |"


def _files(part: Part) -> str:
    later = [_shown(Path(path).name) for path in part.alternatives]
    if not later:
        return _shown(part.path)
    return f"{_shown(part.path)} (or, of later releases, {', '.join(later[:-1])} or {later[-1]})"


def _shown(path: str) -> str:
    return f"`{path}`" if Path(path).suffix else f"`{path}/`"


if __name__ == "__main__":
    end_process(main())
