"""From generated tokens to an answer: in pieces as they come, and as the later rounds will see it."""

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

EMPTY_ANSWER = "(no answer)"
"""Stands in a dialogue where the model answered with nothing: a turn cannot go without an answer."""

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Turns token ids into text as they arrive; the pieces joined are the answer, with no space at its ends.

    A piece is held back while it ends in half a character or in white space. Only the tokens since the last
    piece are decoded again, so a long answer costs no more per token than a short one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0  # tokens whose text has been taken over
        self._context = 0  # decoding starts here: the tokens of the piece before, which decide about spaces
        self._space = ""  # white space held back: it may be the answer's end
        self.text = ""

    def push(self, token: int) -> str:
        """Take one more token; returns the text that is now certain, often a word, sometimes nothing."""
        self._ids.append(token)
        return self._advance(final=False)

    def finish(self) -> str:
        """The rest, where the answer ends in an incomplete character."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        before = self._decoded(self._ids[self._context : self._shown])
        now = self._decoded(self._ids[self._context :])
        if len(now) <= len(before) or (now.endswith(_INCOMPLETE) and not final):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        grown = self._space + now[len(before) :]
        if not self.text:
            grown = grown.lstrip()
        piece = grown.rstrip()
        self._space = grown[len(piece) :]
        self.text += piece
        return piece

    def _decoded(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def recordable(answer: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """An answer as it can stand in the dialogue that the model reads next.

    A model may spell out a reserved string such as `<image>` letter by letter; it would be refused in the
    next round's prompt, so it is taken out here. An answer that is empty becomes `EMPTY_ANSWER`.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special.update(tokenizer.all_special_tokens)
    while found := [token for token in special if token in answer]:  # taking one out may put another together
        for token in found:
            answer = answer.replace(token, "")
    return answer.strip() or EMPTY_ANSWER
