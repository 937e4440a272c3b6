"""Lets another model mark the answers from 1 to 10, through any OpenAI-compatible endpoint.

    OPENAI_API_KEY=... python -m eval.judge RESULTS.json --base_url https://... --model NAME [--with_images]

Adds the marks to the results of `eval.batch_generation`; `eval.report` shows them. The prompt is
`eval/judge_prompt.md`, or the file that `--prompt` names. Existing marks are kept: run it again after an interruption,
or if some requests failed.
"""

import argparse
import json
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openai
from rich.console import Console
from tqdm import tqdm

from chat.arguments import positive
from eval.results import ResultsError, picture_url, read_results, write_results
from eval.scores import Row, scores_of
from utils.commands import Parser, command, complain, end_process

PROMPT = Path(__file__).parent / "judge_prompt.md"
MARKS = (1, 10)
_SAVED_EVERY = 20  # answers


class JudgementError(ValueError):
    """The judge did not give a mark; the message holds what it said."""


@dataclass(frozen=True)
class Judge:
    """A model behind an OpenAI-compatible endpoint."""

    client: openai.OpenAI
    model: str
    prompt: str
    with_images: bool = False
    max_tokens: int = 300

    def mark(self, rows: Sequence[Row]) -> float:
        """The mark of the last row's answer, given the rows of its dialogue up to it.

        Raises `JudgementError` where there is none in the reply, `openai.OpenAIError` where none came.
        """
        reply = self.client.chat.completions.create(
            model=self.model,
            messages=[
                {"role": "system", "content": self.prompt},
                {"role": "user", "content": self._content(rows)},
            ],
            temperature=0,
            max_tokens=self.max_tokens,
        )
        return parse_mark(reply.choices[0].message.content or "")

    def _content(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        if self.with_images:
            for row in rows:
                for path in row.images:
                    url = picture_url(path)
                    if url is None:
                        raise ResultsError(
                            f"{path}: this picture cannot be read any more; judge without --with_images"
                        )
                    parts.append({"type": "image_url", "image_url": {"url": url}})
        return [*parts, {"type": "text", "text": dialogue_text(rows)}]


def dialogue_text(rows: Sequence[Row]) -> str:
    """The rows of a dialogue as the judge reads them, the last one to be judged."""
    lines = []
    for row in rows:
        first = row.images_so_far - len(row.images) + 1
        lines += [f"[image {number} is shown]" for number in range(first, row.images_so_far + 1)]
        lines.append(f"User: {row.question}")
        if row is not rows[-1]:
            lines.append(f"Assistant: {row.answer or ''}")
    if rows[-1].references:
        lines.append(f"\nReference answer: {' / '.join(dict.fromkeys(rows[-1].references))}")
    lines.append(f"\nThe assistant's answer, to be judged: {rows[-1].answer or '(nothing)'}")
    return "\n".join(lines)


def parse_mark(reply: str) -> float:
    """The mark in the judge's reply: of its last JSON object that has one. Raises `JudgementError`."""
    for text in reversed(re.findall(r"\{[^{}]*\}", reply)):
        try:
            mark = json.loads(text)["mark"]
        except (ValueError, KeyError):
            continue
        if isinstance(mark, int | float) and MARKS[0] <= mark <= MARKS[1]:
            return float(mark)
    raise JudgementError(f"no mark from {MARKS[0]} to {MARKS[1]} in the judge's reply: {reply!r:.200}")


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 1 where some answers could not be judged."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    key = os.environ.get(parsed.api_key_env)
    if key is None:
        parser.error(
            f"the environment has no {parsed.api_key_env}: set it, to anything if the endpoint needs none"
        )
    try:
        prompt = parsed.prompt.read_text(encoding="utf-8")
        settings, rows = read_results(parsed.results)
        client = openai.OpenAI(api_key=key, base_url=parsed.base_url, max_retries=parsed.max_retries)
        judge = Judge(client, parsed.model, prompt, parsed.with_images)
        settings = {**settings, "judge": parsed.model, "judge_sees_images": parsed.with_images}
        failed = _judge_all(judge, parsed, settings, rows)
    except OSError as error:
        return complain(error)
    marks = [row.judged for row in rows if row.judged is not None]
    if marks:
        Console(highlight=False).print(
            f"mean mark {sum(marks) / len(marks):.2f} of 10, over {len(marks)} answers"
        )
    for message in failed[:5]:
        errors.print(f"not judged: {message}", style="yellow", markup=False)
    if failed:
        count = f"{len(failed)} answer{'s' if len(failed) > 1 else ''}"
        errors.print(f"error: no mark for {count}; run the command again", style="red")
    return 1 if failed else 0


def _judge_all(
    judge: Judge, parsed: argparse.Namespace, settings: dict[str, Any], rows: list[Row]
) -> list[str]:
    """Put the missing marks into `rows` and the file; returns what went wrong, by answer."""
    places = [place for place, row in enumerate(rows) if row.judged is None and row.answer is not None]
    failed, lock, since_saved = [], threading.Lock(), 0

    def save() -> None:
        write_results(parsed.results, rows, scores_of(rows), settings)

    def judge_one(place: int) -> None:
        nonlocal since_saved
        begin = place
        while begin and rows[begin - 1].test_name == rows[place].test_name:
            begin -= 1
        try:
            mark = judge.mark(rows[begin : place + 1])
        except (JudgementError, openai.OpenAIError) as error:
            with lock:
                failed.append(f"{rows[place].test_name}: {error}")
            return
        with lock:
            rows[place] = replace(rows[place], judged=mark)
            since_saved += 1
            if since_saved % _SAVED_EVERY == 0:
                save()

    with (
        ThreadPoolExecutor(parsed.concurrency) as pool,
        tqdm(total=len(places), desc="judging", unit="answer") as progress,
    ):
        try:
            for _ in pool.map(judge_one, places):
                progress.update()
        finally:
            pool.shutdown(cancel_futures=True)
            save()
    return failed


def _parser() -> Parser:
    parser = Parser(
        prog="python -m eval.judge", description="Let a model judge the answers of an evaluation."
    )
    parser.add_argument("results", type=Path, help="the .json file that eval.batch_generation wrote")
    parser.add_argument("--model", required=True, help="the judge's name at the endpoint")
    parser.add_argument("--base_url", help="the endpoint (default: $OPENAI_BASE_URL, or OpenAI's)")
    parser.add_argument(
        "--api_key_env", default="OPENAI_API_KEY", help="the environment variable that holds the key"
    )
    parser.add_argument(
        "--with_images", action="store_true", help="send the judge the images too, in reduced size"
    )
    parser.add_argument(
        "--prompt", type=Path, default=PROMPT, help="another prompt than eval/judge_prompt.md"
    )
    parser.add_argument(
        "--concurrency", type=positive, default=4, help="requests at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--max_retries",
        type=int,
        default=5,
        help="retries of a request that fails for the moment (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    end_process(main())
