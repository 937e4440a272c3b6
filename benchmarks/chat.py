"""Time to the first token of a question about pictures seen before, and what reading everything again costs.

    taskset -c 1 python -m benchmarks.chat --size 1b

A dialogue has eight pictures of 256 tokens; then comes a question of about 64 tokens. Contenders, over the same
random weights: ours, in the same dialogue (pictures and text are kept) and in another one (only the pictures
are); and everything read again, as in 2023 and as where all pictures are new, by our attention, with images in all
layers and in none, by causal attention and by the dense form of 2023.
"""

import argparse
import statistics
from collections.abc import Callable

from benchmarks.random_models import add_model_flags, attention, described, model_of, noise, words
from benchmarks.turns import peak_memory, print_machine, print_ratios, take_turns, timed
from chat.image_kv.store import ImageStore
from chat.session import ChatSession
from utils.conversation import Turn
from utils.model import VisualChatForConditionalGeneration, VisualChatProcessor

_WORDS = 61  # of a question; with what the template adds it is about 64 tokens
_AGAIN = {
    "again, ours": "ours",
    "again, ours, images in no layer": "ours, images in no layer",
    "again, causal": "causal",
    "again, dense as in 2023": "dense as in 2023",
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_flags(parser, size="1b")
    parser.add_argument("--images", type=int, default=8)
    arguments = parser.parse_args()
    model, processor = model_of(arguments)
    dialogue = Dialogue(model, processor, arguments.images)
    contenders: dict[str, Callable[[int], float]] = {
        "kept, same dialogue": dialogue.goes_on,
        "kept, another dialogue": dialogue.is_another,
    }
    for name, form in _AGAIN.items():
        contenders[name] = lambda number, form=form: dialogue.is_read_again(number, form)
    print(f"chat: first token of a question, {arguments.images} pictures seen before; {described(model)}")
    print_machine()
    measured = take_turns(contenders, arguments.rounds)
    print_ratios(measured, "ms", 1000, reference="kept, same dialogue")
    for name, cost in dialogue.costs.items():
        print(f"  {name}: {cost}")
    kept = statistics.median(measured["kept, same dialogue"])
    for name in _AGAIN:
        print(f"  kept is {statistics.median(measured[name]) / kept:.1f} times faster than {name}")
    new = statistics.median(measured["again, causal"]) / statistics.median(
        measured["again, ours, images in no layer"]
    )
    print(f"  all new: images in no layer are {new:.2f} times faster than causal")
    print(f"  peak memory {peak_memory()}")


class Dialogue:
    """A dialogue with pictures, in which questions are asked in several ways.

    costs: what the last question of each way computed.
    """

    def __init__(
        self, model: VisualChatForConditionalGeneration, processor: VisualChatProcessor, images: int
    ) -> None:
        self._model, self._processor = model, processor
        self._store = ImageStore(model, processor)
        self._kept = self._session(image_store=self._store)
        pictures = self._kept.open_images([noise(number) for number in range(images)])
        self._turns = (Turn(words(_WORDS, "compare"), "red circle", pictures),)
        self._kept.load(self._turns)
        self.costs: dict[str, str] = {}

    def goes_on(self, number: int) -> float:
        """The same session goes on; what its first round read is there."""
        if number < 0:
            self._ask("kept, same dialogue", self._kept, "first")
            self._kept.undo()
        seconds = self._ask("kept, same dialogue", self._kept, f"question {number + 1}")
        self._kept.undo()
        return seconds

    def is_another(self, number: int) -> float:
        """A new session, whose text differs from its first turn on."""
        session = self._session(image_store=self._store, system=f"system {number + 1}")
        session.load(self._turns, f"system {number + 1}")
        return self._ask("kept, another dialogue", session, "question")

    def is_read_again(self, number: int, form: str) -> float:
        """A new session without a store, under an attention."""
        with attention(self._model, form):
            session = self._session(keep_images=False)
            session.load(self._turns)
            return self._ask(f"again, {form}", session, f"question {number + 1}")

    def _session(self, **settings) -> ChatSession:
        return ChatSession(self._model, self._processor, max_new_tokens=1, max_seq_len=8192, **settings)

    def _ask(self, name: str, session: ChatSession, first: str) -> float:
        seconds = timed(lambda: list(session.ask(words(_WORDS, first))))
        cost = session.statistics[-1]
        self.costs[name] = (
            f"{cost.encoded_images} images encoded, {cost.computed_image_tokens:,} image tokens and"
            f" {cost.computed_tokens - cost.computed_image_tokens:,} text tokens through the decoder,"
            f" of {cost.prompt_tokens:,} of the prompt"
        )
        return seconds


if __name__ == "__main__":
    main()
