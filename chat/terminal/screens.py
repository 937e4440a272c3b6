"""What is shown: to a person with colours, to a pipe as plain text, to a program as JSON lines.

None of them lets a text do things to a terminal, at which a pipe's or a program's output may be looked at too.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict
from typing import Protocol, TextIO

from rich.console import Console

from chat.cost import Cost


class Screen(Protocol):
    """Where a chat shows what it has to say. `failed` becomes true with the first complaint."""

    failed: bool

    def note(self, text: str) -> None:
        """Something to know."""

    def complain(self, text: str) -> None:
        """A mistake of the user's."""

    def question(self, text: str) -> None:
        """What is about to be answered."""

    def piece(self, text: str) -> None:
        """More of the answer."""

    def end(self, answer: str, cost: Cost | None) -> None:
        """The answer is complete; no cost where it was broken off before it began."""


class ColourScreen:
    """For a person at a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.failed = False

    def note(self, text: str) -> None:
        self._print(text, style="dim")

    def complain(self, text: str) -> None:
        self.failed = True
        self._print(text, style="red")

    def question(self, text: str) -> None:
        pass  # it was typed there a moment ago

    def piece(self, text: str) -> None:
        self._print(text, end="")

    def end(self, answer: str, cost: Cost | None) -> None:
        self._print("")
        if cost is not None:
            self._print(str(cost), style="dim")
            self._print("")

    def _print(self, text: str, style: str | None = None, end: str = "\n") -> None:
        self._console.print(
            harmless(text), style=style, end=end, markup=False, highlight=False, emoji=False, soft_wrap=True
        )


class PlainScreen:
    """Answers on standard output, one after the other; everything else on standard error."""

    def __init__(self, output: TextIO | None = None, errors: TextIO | None = None) -> None:
        self._output, self._errors = output or sys.stdout, errors or sys.stderr
        self.failed = False

    def note(self, text: str) -> None:
        print(harmless(text), file=self._errors)

    def complain(self, text: str) -> None:
        self.failed = True
        print(f"error: {harmless(text)}", file=self._errors)

    def question(self, text: str) -> None:
        pass

    def piece(self, text: str) -> None:
        print(harmless(text), end="", flush=True, file=self._output)

    def end(self, answer: str, cost: Cost | None) -> None:
        print(flush=True, file=self._output)


class JsonScreen:
    """One line of JSON for each answer and each mistake, on standard output."""

    def __init__(self, output: TextIO | None = None, errors: TextIO | None = None) -> None:
        self._output, self._errors = output or sys.stdout, errors or sys.stderr
        self._question = ""
        self.failed = False

    def note(self, text: str) -> None:
        print(harmless(text), file=self._errors)

    def complain(self, text: str) -> None:
        self.failed = True
        self._write({"error": text})

    def question(self, text: str) -> None:
        self._question = text

    def piece(self, text: str) -> None:
        pass

    def end(self, answer: str, cost: Cost | None) -> None:
        said = {"question": self._question, "answer": answer}
        if cost is not None:
            figures = {
                name: round(value, 4) if isinstance(value, float) else value
                for name, value in asdict(cost.statistics).items()
            }
            said |= {"images": cost.images, "tokens_per_second": round(cost.tokens_per_second, 1), **figures}
        self._write(said)

    def _write(self, line: dict[str, object]) -> None:
        text = json.dumps(line, ensure_ascii=False)  # control characters beyond ASCII's it leaves as they are
        escaped = re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)
        print(escaped, flush=True, file=self._output)


def harmless(text: str) -> str:
    """Without the control characters by which a text could do things to a terminal."""
    return "".join(_visible(text))


def _visible(text: str) -> Iterable[str]:
    for character in text:
        if character in "\n\t" or unicodedata.category(character) != "Cc":
            yield character
        else:
            yield "\N{REPLACEMENT CHARACTER}"
