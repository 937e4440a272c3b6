"""What is shown: to a person with colours, to a pipe as plain text, to a program as JSON lines.

None of them lets a text do things to a terminal, at which a pipe's or a program's output may be looked at too.
"""

import json
import re
import sys
from dataclasses import asdict
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

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

    def end(self, answer: str, cost: Cost) -> None:
        """The answer is complete, or broken off."""


class WordWrap:
    """Breaks a text that comes in pieces between its words, `width` cells a line; the last word is held back.

    Wide characters (Chinese, Japanese, Korean) count as words. A word that is longer than a line begins one, and the
    terminal breaks it: an address stays whole to be copied.
    """

    def __init__(self) -> None:
        self._column = 0  # cells that stand in the line
        self._rest = ""

    @property
    def begun(self) -> bool:
        """Whether something stands in the line already, or is about to."""
        return bool(self._column or self._rest)

    def push(self, text: str, width: int) -> str:
        """What is certain of the text now, with line breaks."""
        *words, self._rest = _WORD.findall(self._rest + text) or [""]
        return "".join(self._placed(word, width) for word in words)

    def finish(self, width: int) -> str:
        """The rest; the next text begins a new line."""
        rest, self._rest = self._placed(self._rest, width), ""
        self._column = 0
        return rest

    def _placed(self, word: str, width: int) -> str:
        """The word with the space before it, in this line or the next."""
        if word == "\n":
            self._column = 0
        elif self._column and self._column + cell_len(word) > width and word.strip():
            word = word.lstrip()
            self._column = cell_len(word)
            return f"\n{word}"
        else:
            self._column += cell_len(word)
        return word


_WORD = re.compile(r"\n|[^\S\n]*(?:[\u2e80-\uffef]|[^\s\u2e80-\uffef]+)|[^\S\n]+")


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

    def end(self, answer: str, cost: Cost) -> None:
        self._show(self._answer.finish(self._console.width) + "\n")
        self._print(f"{cost}\n", style="dim")

    def _print(self, text: str, style: str) -> None:
        """Lines of their own."""
        if self._answer.begun:  # it failed
            self._show(self._answer.finish(self._console.width) + "\n")
        self._console.print(Text(harmless(text)), style=style)

    def _show(self, text: str) -> None:
        self._console.print(Text(text), end="", soft_wrap=True)


class PlainScreen(Screen):
    """Answers as plain text, one after the other."""

    def piece(self, text: str) -> None:
        print(harmless(text), end="", flush=True, file=self._output)

    def end(self, answer: str, cost: Cost) -> None:
        print(flush=True, file=self._output)


class JsonScreen(Screen):
    """One line of JSON for each answer and each mistake, on standard output."""

    _question = ""

    def complain(self, text: str) -> None:
        self.failed = True
        self._write({"error": text})

    def question(self, text: str) -> None:
        self._question = text

    def end(self, answer: str, cost: Cost) -> None:
        figures = {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(cost.statistics).items()
        }
        said = {"question": self._question, "answer": answer, "images": cost.images}
        self._write({**said, "tokens_per_second": round(cost.tokens_per_second, 1), **figures})

    def _write(self, line: dict[str, object]) -> None:
        text = json.dumps(line, ensure_ascii=False)  # control characters beyond ASCII's it leaves as they are
        escaped = re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)
        print(escaped, flush=True, file=self._output)


def harmless(text: str) -> str:
    """Without the control characters by which a text could do things to a terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)
