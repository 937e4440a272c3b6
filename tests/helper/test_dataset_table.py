"""docs/datasets.md lists the datasets as the registry has them."""

from pathlib import Path

from helper.dataset_table import PAGE, dataset_table, with_table
from utils.data import DATASETS


def test_the_page_has_the_table_of_today() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page) == page, "run `python -m helper.dataset_table`"


def test_every_dataset_has_a_row_with_its_files_and_their_origin() -> None:
    rows = dataset_table().splitlines()[2:]
    assert len(rows) == len(DATASETS) == 13
    for row, (name, spec) in zip(rows, sorted(DATASETS.items()), strict=True):
        assert row.startswith(f"| {name} |")
        for part in (*spec.annotations, *spec.images):
            assert f"`{part.path}" in row and part.origin in row
            assert all(f"`{Path(later).name}" in row for later in part.alternatives)
