"""One page of HTML that needs nothing else: no network, no files beside it."""

import base64
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from training.data_report.samples import SampledRow, draw_samples
from training.extension import Extension, Prepared
from utils.atomic import atomic_write
from utils.data import EncodedDataset, PackedDataset
from utils.data.bad_records import BadRecord
from utils.data.mixing.index import RecordCounts
from utils.distributed import is_main_process

_MOST_BAD = 1000  # listed on the page; all are in the file
_TEMPLATE = "page.html.j2"
_DEBUG_SAMPLES = 10
_MOST_BARS = 24


@dataclass(frozen=True)
class Report:
    """What the page tells.

    `verdict` is what training would stop with, None where it would go on. Without `measured` (rows alone are
    looked at) there are no counts.
    """

    title: str
    settings: Mapping[str, str]
    rows: Sequence[SampledRow]
    total_records: int = 0
    bad: Sequence[BadRecord] = ()
    bad_file: str = ""
    verdict: str | None = None
    record_counts: Mapping[str, RecordCounts] | None = None
    measured: pd.DataFrame | None = None  # a row of `measure.Facts` for each conversation
    max_seq_len: int | None = None
    packed_rows: int | None = None
    packed_fill: float = 0.0  # share of their tokens that are no padding


def write_report(report: Report, path: Path) -> None:
    """Write the page; it appears complete under its name, or not at all."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["short"] = short_name
    rows = _rows(report)
    page = environment.get_template(_TEMPLATE).render(
        report=report,
        rows=rows,
        together=_together(rows),
        histograms=_histograms(report),
        left_out=_left_out(report),
        shown_bad=list(report.bad)[:_MOST_BAD],
        kinds_of_bad=Counter(map(_kind, report.bad)).most_common(10),
    )
    atomic_write(path, page.encode("utf-8", "backslashreplace"))  # a file's name may be no Unicode


class SamplePage(Extension):
    """`--data_debug_path`: what the model is taught, on a page, and as text and images."""

    def prepare(self, parts: Prepared) -> None:
        if is_main_process():
            dump_samples(parts.learned, str(parts.data_arguments.data_debug_path), parts.arguments.seed)


def dump_samples(rows: EncodedDataset | PackedDataset, folder: str | Path, seed: int) -> None:
    """Write 10 conversations, or packed rows with at least as many: a page that shows them token by token, and of
    each conversation sample_N.txt, as the template renders it, and sample_N_image_M.png.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw_samples(rows, _DEBUG_SAMPLES, seed)
    write_report(Report("Training samples", {"--seed": str(seed)}, drawn), folder / "index.html")
    for number, sample in enumerate(sample for row in drawn for sample in row.samples):
        source = " + ".join(sample.sources)
        (folder / f"sample_{number}.txt").write_text(f"source: {source}\n\n{sample.text}\n")
        for position, image in enumerate(sample.conversation.images, start=1):
            image.open().save(folder / f"sample_{number}_image_{position}.png")


def short_name(dataset: str) -> str:
    """A dataset's name, or, of data of one's own, the last part of the path."""
    return Path(dataset).name


_SUMS = (
    *("records", "used", "left_out", "not_asked", "bad"),
    *("conversations", "images", "tokens", "learned", "cut"),
)


def _rows(report: Report) -> list[dict[str, Any]]:
    """The lines of the table of datasets."""
    if report.measured is None or report.record_counts is None:
        return []
    unread = Counter(each.place.dataset for each in report.bad if each.place.index is None)
    rows = []
    for name, account in report.record_counts.items():
        mine = report.measured[report.measured.dataset == name]
        used, images, tokens, learned = mine[["records", "images", "tokens", "learned"]].sum()
        row = {
            "name": name,
            "records": account.records,
            "used": used,
            "left_out": sum(account.left_out.values()),
            "not_asked": account.not_asked,
            # Not the places in the list, of which related records share one; a file counts as one.
            "bad": account.bad + account.used - used + unread[name],
            "conversations": len(mine),
            "images": images,
            "tokens": tokens,
            "learned": learned,
            "cut": (mine.cut_turns > 0).sum(),
        }
        rows.append(_with_shares(row))
    return rows


def _together(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    if not rows:
        return None
    return _with_shares({"name": "together"} | {key: sum(row[key] for row in rows) for key in _SUMS})


def _with_shares(row: dict[str, Any]) -> dict[str, Any]:
    mean, share = row["tokens"] / max(row["conversations"], 1), row["learned"] / max(row["tokens"], 1)
    return {**row, "mean_tokens": mean, "learned_share": share}


def _histograms(report: Report) -> str:
    """What conversations hold, as four histograms: a data URL; empty where there are none."""
    measured = report.measured
    if measured is None or not len(measured):
        return ""
    values = {name.capitalize(): measured[name] for name in ("tokens", "images", "turns")}
    values["% of tokens learned"] = 100 * measured.learned / measured.tokens
    figure = Figure(figsize=(11, 2.4), layout="constrained")
    for axes, (title, numbers) in zip(figure.subplots(1, len(values)), values.items(), strict=True):
        few = numbers.max() - numbers.min() < _MOST_BARS and title in ("Images", "Turns")
        edges = np.arange(numbers.min(), numbers.max() + 2) - 0.5 if few else _MOST_BARS
        axes.hist(numbers, bins=edges, rwidth=0.9)
        axes.set_title(f"{title}: median {numbers.median():,.0f}, max {numbers.max():,.0f}", fontsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=4)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if title == "Tokens" and report.max_seq_len and measured.cut_turns.any():
            axes.axvline(report.max_seq_len, color="tab:red", linestyle="--")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=160)
    return "data:image/png;base64," + base64.b64encode(drawn.getvalue()).decode()


def _left_out(report: Report) -> list[tuple[str, str, int]]:
    """Of each dataset, what is left out or mended, and how much of it."""
    listed = []
    for name, account in (report.record_counts or {}).items():
        listed += [(name, rule, count) for rule, count in account.left_out.items() if count]
        listed += [
            (name, f"conversations used with {repair}", count) for repair, count in account.repairs.items()
        ]
        if account.absent_images:
            absent = (
                "images that are named, but are not in the image store (the records are used without them)"
            )
            listed.append((name, absent, account.absent_images))
    return listed


def _kind(bad: BadRecord) -> str:
    """What is wrong, without its particulars: names, quotations and numbers."""
    if bad.place.index is None:
        return "file that cannot be read"
    return re.sub(r"'[^']*'|\S*\d\S*", "...", bad.reason)
