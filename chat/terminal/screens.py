"""What is shown: to a person with colours, to a pipe as plain text, to a program as JSON lines.

None of them lets a text do things to a terminal, at which a pipe's or a program's output may be looked at too.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console

from chat.session import Cost


class Screen:
    """Where a chat shows what it has to say; `failed` becomes true with the first complaint.

    Answers go to standard output, everything else to standard error.
    """

    def __init__(self, output: TextIO | None = None, errors: TextIO | None = None) -> None:
        self._output, self._errors = output or sys.stdout, errors or sys.stderr
        self.failed = False

    def note(self, text: str) -> None:
        """Something to know."""
        print(harmless(text), file=self._errors)

    def complain(self, text: str) -> None:
        """A mistake of the user's."""
        self.failed = True
        self.note(f"error: {text}")

    def question(self, text: str) -> None:
        """What is about to be answered."""

    def piece(self, text: str) -> None:
        """More of the answer."""

    def end(self, answer: str, cost: Cost | None) -> None:
        """The answer is complete; no cost where it was broken off before it began."""


class WordWrap:
    """Breaks a text that comes in pieces between its words, `width` cells a line; what has no end yet is held back.

    Between wide characters (Chinese, Japanese, Korean) a line may break too, but not before a closing mark or behind
    an opening one. A word that is longer than a line begins one, and the terminal breaks it: an address stays whole
    to be copied. Spaces at the beginning of a line are kept, and `hanging` more stand before lines that go on.
    """

    def __init__(self, hanging: int = 0) -> None:
        self._hanging = " " * hanging
        self._column = 0  # cells that stand in the line
        self._space = self._word = ""  # not yet given out

    @property
    def begun(self) -> bool:
        """Whether something stands in the line already, or is about to."""
        return bool(self._column or self._word)

    def push(self, text: str, width: int) -> str:
        """What is certain of the text now, with line breaks."""
        return "".join(self._steps(text, width))

    def finish(self, width: int) -> str:
        """The rest; the next text begins a new line."""
        rest = self._placed(width)
        self._column, self._space = 0, ""
        return rest

    def _steps(self, text: str, width: int) -> Iterator[str]:
        for character in text:
            if character == "\n":
                yield self._placed(width) + "\n"
                self._column, self._space = 0, ""
            elif character.isspace() and character not in _NO_BREAK:
                yield self._placed(width)
                self._space += "    " if character == "\t" else character
            elif self._word and _may_break(self._word[-1], character):
                yield self._placed(width)
                self._word = character
            else:
                self._word += character

    def _placed(self, width: int) -> str:
        """The word, in this line or the next."""
        if not self._word:
            return ""
        placed, cells = self._space + self._word, cell_len(self._word)
        if self._column and self._column + len(self._space) + cells > width:
            placed, self._column = f"\n{self._hanging}{self._word}", len(self._hanging)
        else:
            self._column += len(self._space)
        self._column = (self._column + cells - 1) % width + 1
        self._space = self._word = ""
        return placed


_NO_BREAK = "\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}"


def _may_break(before: str, after: str) -> bool:
    """Whether a line may break between two characters that are no spaces: where one of them is wide."""
    wide = unicodedata.east_asian_width(before) in "WF" or unicodedata.east_asian_width(after) in "WF"
    opening, closing = unicodedata.category(before) in ("Ps", "Pi"), unicodedata.category(after)
    return (
        wide and not opening and closing not in ("Pe", "Pf", "Po", "Mn", "Me") and after not in "ー々\u200d"
    )


class ColourScreen(Screen):
    """For a person at a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._answer = WordWrap()

    def note(self, text: str) -> None:
        self._print(text, style="dim")

    def complain(self, text: str) -> None:
        self.failed = True
        self._print(text, style="red")

    def piece(self, text: str) -> None:
        self._show(self._answer.push(harmless(text), self._console.width))

    def end(self, answer: str, cost: Cost | None) -> None:
        self._show(self._answer.finish(self._console.width) + "\n")
        if cost is not None:
            self._print(f"{cost}\n", style="dim")

    def _print(self, text: str, style: str | None = None) -> None:
        """Lines of their own; what stands in columns goes on in the last one."""
        if self._answer.begun:  # it failed
            self._show(self._answer.finish(self._console.width) + "\n")
        for line in harmless(text).split("\n"):
            width = self._console.width
            columns = re.match(r" *\S.*?  +(?=\S)| *", line)
            wrap = WordWrap(len(columns[0]) if columns and len(columns[0]) <= width / 2 else 0)
            self._show(wrap.push(line, width) + wrap.finish(width) + "\n", style)

    def _show(self, text: str, style: str | None = None) -> None:
        self._console.print(
            text, style=style, end="", markup=False, highlight=False, emoji=False, soft_wrap=True
        )


class PlainScreen(Screen):
    """Answers as plain text, one after the other."""

    def piece(self, text: str) -> None:
        print(harmless(text), end="", flush=True, file=self._output)

    def end(self, answer: str, cost: Cost | None) -> None:
        print(flush=True, file=self._output)


class JsonScreen(Screen):
    """One line of JSON for each answer and each mistake, on standard output."""

    _question = ""

    def complain(self, text: str) -> None:
        self.failed = True
        self._write({"error": text})

    def question(self, text: str) -> None:
        self._question = text

    def end(self, answer: str, cost: Cost | None) -> None:
        said: dict[str, object] = {"question": self._question, "answer": answer}
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
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(each) == "Cc" and each not in "\n\t" else each
        for each in text
    )
