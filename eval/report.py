"""Writes one HTML page about an evaluation: all dialogues with their images, scores and charts.

    python -m eval.report RESULTS.json [ANOTHER.json ...] [--output report.html] [--names a b ...]

Reads the results of `eval.batch_generation`. Several checkpoints on one set are shown side by side, several sets one
after the other. The page is self-contained: it needs no network and no other files.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from rich.console import Console

from eval.results import ResultsError, picture_url, read_results
from eval.scores import Row, Score, Scores, scores_of
from utils.atomic import atomic_write
from utils.commands import Parser, command, end_process, writable_folder
from utils.images import is_data_url

_PAGE = Path(__file__).parent / "report_page"


@dataclass(frozen=True)
class Results:
    """The answers of one checkpoint to one set."""

    name: str
    set_name: str
    settings: dict[str, Any]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Turn:
    """A question with its new pictures (a data URL and a name each) and all checkpoints' answers.

    `tags` are what the filters of the page look for: right, wrong, differ.
    """

    question: str
    kind: str
    pictures: tuple[tuple[str | None, str, int], ...]
    references: tuple[str, ...]
    answers: tuple[Row, ...]
    tags: str


@dataclass(frozen=True)
class Dialogue:
    """Turns that follow each other; `images` is their number of pictures."""

    name: str
    images: int
    turns: tuple[Turn, ...]


Chart = dict[str, list[Score | None]]
"""Accuracy by group, say by kind of question: each checkpoint's score, None where it has no such question."""


@dataclass(frozen=True)
class Section:
    """One set: the dialogues, and what each checkpoint scored."""

    name: str
    checkpoints: tuple[str, ...]
    settings: tuple[dict[str, Any], ...]
    scores: tuple[Scores | None, ...]
    charts: dict[str, Chart]  # by title
    dialogues: tuple[Dialogue, ...]

    @property
    def kinds(self) -> list[str]:
        """The kinds of question that the page can filter by."""
        return sorted({turn.kind for dialogue in self.dialogues for turn in dialogue.turns if turn.kind})

    @property
    def questions(self) -> int:
        """How many questions were asked of each checkpoint."""
        return sum(len(dialogue.turns) for dialogue in self.dialogues)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = Parser(prog="python -m eval.report", description="Make a page of one or more evaluations.")
    parser.add_argument(
        "results", nargs="+", type=Path, help="the .json files that eval.batch_generation wrote"
    )
    parser.add_argument(
        "--names", nargs="*", help="what to call the results, one each (default: the checkpoint's)"
    )
    parser.add_argument("--output", type=Path, help="the page (default: beside the first results)")
    parser.add_argument("--title", default="Evaluation")
    parsed = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    if parsed.names and len(parsed.names) != len(parsed.results):
        parser.error(
            f"--names has {len(parsed.names)} names for {len(parsed.results)} results: give one each"
        )
    output = parsed.output or parsed.results[0].with_suffix(".html")
    writable_folder(output.parent, "--output")
    names = parsed.names or [None] * len(parsed.results)
    write_report(
        output,
        [_read(path, name) for path, name in zip(parsed.results, names, strict=True)],
        parsed.title,
    )
    console.print(f"the report: {output}", markup=False)
    return 0


def write_report(path: Path, results: Sequence[Results], title: str) -> None:
    """Write the page; it appears complete under its name, or not at all.

    Raises `ResultsError` where results of one set do not answer the same questions.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    sets: dict[str, list] = {each.set_name: [] for each in results}
    for each in results:
        sets[each.set_name].append(each)
    sections = [_section(name, group) for name, group in sets.items()]
    page = environment.get_template("page.html.j2").render(title=title, sections=sections)
    atomic_write(path, page)


def _read(path: Path, name: str | None) -> Results:
    settings, rows = read_results(path)
    try:
        checkpoint, data = Path(settings["checkpoint"]), Path(settings["eval_data"])
    except (KeyError, TypeError) as error:
        raise ResultsError(
            f"{path}: its settings name no checkpoint and no set; evaluate once more"
        ) from error
    return Results(name or "/".join(checkpoint.parts[-2:]), data.stem, settings, tuple(rows))


def _section(name: str, group: Sequence[Results]) -> Section:
    asked = [[(row.test_name, row.question) for row in each.rows] for each in group]
    for each, questions in zip(group, asked, strict=True):
        if questions != asked[0]:
            raise ResultsError(
                f"{each.name} and {group[0].name} answer different questions, though both are called {name}:"
                " evaluate them on the same file"
            )
    names = tuple(_told_apart([each.name for each in group]))
    scores = tuple(scores_of(each.rows) for each in group)
    return Section(
        name, names, tuple(each.settings for each in group), scores, _charts(scores), _dialogues(group)
    )


def _told_apart(names: Sequence[str]) -> Iterable[str]:
    for number, name in enumerate(names):
        yield name if names.count(name) == 1 else f"{name} ({names[: number + 1].count(name)})"


def _charts(scores: Sequence[Scores | None]) -> dict[str, Chart]:
    """Accuracy overall and by kind, and by number of images; none where nothing can be scored."""
    if not any(scores):
        return {}

    def column(pick: Any) -> list[Score | None]:
        return [None if each is None else pick(each) for each in scores]

    kinds = sorted({kind for each in scores if each for kind in each.kinds if kind})
    by_kind = {"overall": column(lambda each: each.overall)}
    by_kind |= {kind: column(lambda each, kind=kind: each.kinds.get(kind)) for kind in kinds}
    numbers = sorted({number for each in scores if each for number in each.images})
    by_images = {
        "1 image" if number == 1 else f"{number} images": column(
            lambda each, number=number: each.images.get(number)
        )
        for number in numbers
    }
    charts = {"Exact match by kind of question": by_kind}
    if len(by_images) > 1:
        charts["Exact match by images in the dialogue so far"] = by_images
    return charts


def _dialogues(group: Sequence[Results]) -> tuple[Dialogue, ...]:
    dialogues: dict[str, list[Turn]] = {}
    images: dict[str, int] = {}
    for rows in zip(*(each.rows for each in group), strict=True):
        first = rows[0]
        shown = first.images_so_far - len(first.images)
        pictures = tuple(
            (picture_url(file), "" if is_data_url(file) else Path(file).name, shown + number)
            for number, file in enumerate(first.images, start=1)
        )
        turns = dialogues.setdefault(first.test_name, [])
        turns.append(Turn(first.question, first.kind, pictures, first.references, rows, _tags(rows)))
        images[first.test_name] = first.images_so_far
    return tuple(Dialogue(name, images[name], tuple(turns)) for name, turns in dialogues.items())


def _tags(rows: Sequence[Row]) -> str:
    tags = {
        "wrong": any(row.correct is False for row in rows),
        "right": all(row.correct for row in rows),
        "differ": len({row.answer for row in rows}) > 1,
    }
    return " ".join(tag for tag, holds in tags.items() if holds)


if __name__ == "__main__":
    end_process(main())
