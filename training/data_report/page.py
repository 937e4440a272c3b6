"""One page of HTML that needs nothing else: no network, no files beside it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np

from training.data_report.charts import Histogram, histogram
from training.data_report.measure import Measurement
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
    measured: Measurement | None = None
    max_seq_len: int | None = None
    packed_rows: int | None = None
    packed_fill: float = 0.0  # share of their tokens that are no padding


@dataclass(frozen=True)
class _Row:
    """A line of the table of datasets."""

    name: str
    records: int
    used: int
    left_out: int
    not_asked: int
    bad: int
    conversations: int
    images: int
    tokens: int
    mean_tokens: float
    learned_share: float
    cut: int


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
        kinds_of_bad=Counter(map(_kind, report.bad)).most_common(),
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


def _rows(report: Report) -> list[_Row]:
    if report.measured is None or report.record_counts is None:
        return []
    unread = Counter(each.place.dataset for each in report.bad if each.place.index is None)
    rows = []
    for name, account in report.record_counts.items():
        mine = report.measured.only(name)
        tokens, used = int(mine.tokens.sum()), int(mine.records.sum())
        rows.append(
            _Row(
                name=name,
                records=account.records,
                used=used,
                left_out=sum(account.left_out.values()),
                not_asked=account.not_asked,
                # Not the places in the list, of which related records share one; a file counts as one.
                bad=account.bad + account.used - used + unread[name],
                conversations=len(mine),
                images=int(mine.images.sum()),
                tokens=tokens,
                mean_tokens=tokens / max(len(mine), 1),
                learned_share=int(mine.learned.sum()) / max(tokens, 1),
                cut=int((mine.cut_turns > 0).sum()),
            )
        )
    return rows


def _together(rows: Sequence[_Row]) -> _Row | None:
    if not rows:
        return None
    counts = ("records", "used", "left_out", "not_asked", "bad", "conversations", "images", "tokens", "cut")
    sums = {name: sum(getattr(row, name) for row in rows) for name in counts}
    learned = sum(row.learned_share * row.tokens for row in rows)
    return _Row(
        name="together",
        mean_tokens=sums["tokens"] / max(sums["conversations"], 1),
        learned_share=learned / max(sums["tokens"], 1),
        **sums,
    )


def _histograms(report: Report) -> list[Histogram]:
    measured = report.measured
    if measured is None or not len(measured):
        return []
    return [
        histogram("Tokens", measured.tokens, "tokens", report.max_seq_len, "--max_seq_len"),
        histogram("Images", measured.images, "images"),
        histogram("Turns", measured.turns, "turns"),
        histogram(
            "Share of tokens that is learned",
            measured.learned / np.maximum(measured.tokens, 1),
            "",
            percent=True,
        ),
    ]


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
    """What is wrong, without its particulars."""
    if bad.place.index is None:
        return "file that cannot be read"
    return next((kind for phrase, kind in _KINDS.items() if phrase in bad.reason), "other")


_KINDS = {  # the first phrase that is found decides
    "there is no such image file": "image missing",
    "not an image, or of a format that Pillow does not read": "file that is no image",
    "the image is damaged": "damaged image",
    "scale the image down": "image too large",
    "times the other; crop the image": "image too narrow",
    "the image cannot be read": "image that cannot be opened",
    "not in the format of": "not in the dataset's format",
    "not a record": "not a record",
    "not valid JSON": "not valid JSON",
    "which is not read": "images under a key that is not read, videos or sound",
    "has no text": "message without a text",
    "expected ": "not question and answer in turn",
    "questions hold": "images and tags differ in number",
    " is empty": "question or answer empty",
    "half a character": "broken text",
    "which the tokenizer reserves": "reserved token in a text",
    "it has no answer to learn from": "nothing to learn",
    "its first turn takes": "first turn too long",
}
