"""A conversation's text and where its answers are in it, from any chat template, checked against inference.

What the model learns must be what it is asked for later: each answer has to follow, in the text of the whole
dialogue, the very prompt that asks for it. Whether a template keeps to that is found out by rendering those
prompts too, once for each shape of conversation (who speaks in which order, with how many images), with marks
in the place of the texts. A conversation of a known shape then takes one rendering, or none where the template
is known to change nothing of a text but the white space around it.

`DEFAULT_CHAT_TEMPLATE` is the published dialogue format, a Jinja template that is saved with every checkpoint:
images numbered from a conversation's beginning to its end, one BOS, and an EOS after each answer::

    {system}

    ### Image 1: <image>
    ### Question: {question}
    ### Answer: {answer}</s>

    ### Image 2: <image>
    ### Image 3: <image>
    ### Question: ...
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

Messages = list[dict[str, Any]]
Apply = Callable[[list[Messages], bool], list[str]]
"""Renders several lists of messages, with the prompt for an answer at their end or without."""

DEFAULT_SYSTEM = "You are a powerful vision-language assistant."

DEFAULT_CHAT_TEMPLATE = (
    r"""
{%- macro text_of(content) -%}
    {%- if content is string -%}
        {{- content | trim -}}
    {%- else -%}
        {{- content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\n') | trim -}}
    {%- endif -%}
{%- endmacro -%}
{%- set count = namespace(images=0) -%}
{%- if messages[0].role == 'system' -%}
    {{- bos_token ~ text_of(messages[0].content) -}}
    {%- set rounds = messages[1:] -%}
{%- else -%}
    {{- bos_token ~ '"""
    + DEFAULT_SYSTEM
    + r"""' -}}
    {%- set rounds = messages -%}
{%- endif -%}
{%- for message in rounds -%}
    {%- if message.role != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
        {{- raise_exception('the roles must be: system (optional), then user and assistant in turn') -}}
    {%- endif -%}
    {%- if message.role == 'user' -%}
        {{- '\n\n' -}}
        {%- if message.content is not string -%}
            {%- for part in message.content if part.type == 'image' -%}
                {%- set count.images = count.images + 1 -%}
                {{- '### Image ' ~ count.images ~ ': <image>\n' -}}
            {%- endfor -%}
        {%- endif -%}
        {{- '### Question: ' ~ text_of(message.content) -}}
    {%- else -%}
        {{- '\n### Answer:' -}}
        {%- generation -%}{{- ' ' ~ text_of(message.content) ~ eos_token -}}{%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '\n### Answer:' -}}
{%- endif -%}
"""
)

_MARK = "\ue000{}\ue001"  # of the private use area: no template's own text
_MARKS = re.compile("\ue000([0-9]+)\ue001")
_MOST_SHAPES = 4096


class TemplateError(ValueError):
    """A template under which training and inference would differ; the message says how."""


@dataclass(frozen=True)
class Rendered:
    """The text of a conversation. Answer k begins at `starts[k]`, where the prompt that asks for it ends, and
    ends behind its EOS at `ends[k]`.
    """

    text: str
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    def expanded(self, mark: str, texts: Sequence[str]) -> "Rendered":
        """The same with other texts in the places of a mark, which no answer holds: one for each."""
        pieces = self.text.split(mark)
        borders = list(accumulate(len(piece) + len(mark) for piece in pieces[:-1]))  # behind each mark
        grown = list(accumulate((len(text) - len(mark) for text in texts), initial=0))
        starts, ends = (
            tuple(place + grown[bisect_right(borders, place)] for place in places)
            for places in (self.starts, self.ends)
        )
        whole = "".join(text for pair in zip(pieces, [*texts, ""], strict=True) for text in pair)
        return Rendered(whole, starts, ends)


class Renderer:
    """Renders conversations with one template, whose shapes it remembers.

    `only_strips` says that the template writes every text as it is but for white space around it.
    """

    def __init__(self, eos: str, only_strips: bool = False) -> None:
        self._eos, self._only_strips = eos, only_strips
        self._skeletons: dict[tuple, _Skeleton | None] = {}

    def render(self, messages: Messages, apply: Apply) -> Rendered:
        """Raises `TemplateError` where the template would make training differ from inference."""
        shape = _shape(messages)
        if shape not in self._skeletons:
            if len(self._skeletons) >= _MOST_SHAPES:
                self._skeletons.clear()
            self._skeletons[shape] = None if None in shape else self._skeleton(messages, apply)
        skeleton = self._skeletons[shape]
        if skeleton is not None:
            rendered = skeleton.filled([message["content"][-1]["text"].strip() for message in messages])
            if self._only_strips or rendered.text == _whole(messages, apply):
                return rendered
        return self._checked(messages, apply)

    def _skeleton(self, messages: Messages, apply: Apply) -> "_Skeleton | None":
        """Of the shape of `messages`; None where this template cannot render it as it should."""
        marked = [
            {**message, "content": [*message["content"][:-1], {"type": "text", "text": _MARK.format(number)}]}
            for number, message in enumerate(messages)
        ]
        try:
            return _Skeleton.of(self._checked(marked, apply))
        except TemplateError:
            return None

    def _checked(self, messages: Messages, apply: Apply) -> Rendered:
        """Render the whole and the prompt of each answer.

        The prompts are rendered, not searched for, so that a template under which training and inference would
        differ is found out, whatever it is.
        """
        answers = [position for position, message in enumerate(messages) if message["role"] == "assistant"]
        text = _whole(messages, apply)
        prompts = apply([messages[:end] for end in answers], True) if answers else []
        ends = []
        for position, prompt, following in zip(answers, prompts, [*prompts[1:], text], strict=False):
            closing = text.find(self._eos, len(prompt), len(following))
            end = closing + len(self._eos)
            if not text.startswith(prompt):
                problem = "renders the dialogue before an answer differently than the prompt that asks for it"
            elif closing < 0:
                problem = f"does not close an answer with {self._eos}"
            elif messages[position]["content"][0]["text"].strip() not in text[len(prompt) : end]:
                problem = "does not put an answer right after its prompt"
            else:
                ends.append(end)
                continue
            raise TemplateError(
                f"the chat template {problem}; use another template (prompt: ...{prompt[-60:]!r})"
            )
        return Rendered(text, tuple(map(len, prompts)), tuple(ends))


@dataclass(frozen=True)
class _Skeleton:
    """What a template writes around the texts of one shape of conversation.

    Text `order[k]` stands between `literals[k]` and `literals[k + 1]`; a place is a literal and an offset in it.
    """

    literals: tuple[str, ...]
    order: tuple[int, ...]
    starts: tuple[tuple[int, int], ...]
    ends: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, marked: Rendered) -> "_Skeleton | None":
        """Read off a text with marks; None where an answer would begin or end within one."""
        pieces = _MARKS.split(marked.text)
        borders = [0, *(mark.end() for mark in _MARKS.finditer(marked.text))]  # where literals begin

        def place(position: int) -> tuple[int, int]:
            literal = sum(border <= position for border in borders) - 1
            return literal, position - borders[literal]

        literals = tuple(pieces[::2])
        starts, ends = (tuple(map(place, positions)) for positions in (marked.starts, marked.ends))
        if any(offset > len(literals[literal]) for literal, offset in (*starts, *ends)):
            return None
        return cls(literals, tuple(map(int, pieces[1::2])), starts, ends)

    def filled(self, texts: Sequence[str]) -> Rendered:
        """The conversation with these texts in the places of the marks."""
        pieces = [piece for pair in zip(self.literals, map(texts.__getitem__, self.order)) for piece in pair]  # noqa: B905
        pieces.append(self.literals[-1])
        begins = list(accumulate(map(len, pieces), initial=0))  # of literals at even places
        return Rendered(
            "".join(pieces),
            tuple(begins[2 * literal] + offset for literal, offset in self.starts),
            tuple(begins[2 * literal] + offset for literal, offset in self.ends),
        )


def _whole(messages: Messages, apply: Apply) -> str:
    return apply([messages], messages[-1]["role"] == "user")[0]


def _shape(messages: Messages) -> tuple:
    """Roles and kinds of contents; holds None where a message has other contents than images, then one text."""
    shape = []
    for message in messages:
        kinds = [part["type"] for part in message["content"]]
        plain = kinds[-1:] == ["text"] and kinds[:-1] == ["image"] * (len(kinds) - 1)
        shape.append((message["role"], len(kinds)) if plain else None)
    return tuple(shape)
