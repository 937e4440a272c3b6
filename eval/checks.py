"""Checks of evaluation dialogues before a model is loaded: damaged images, texts that cannot be asked.

A dialogue that fails is left out and listed; the others are answered.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm
from transformers import PreTrainedConfig
from transformers.processing_utils import ProcessorMixin

from eval.dialogues import BadDialogue, EvalDialogue, EvalSet
from eval.generation import GenerationSettings, history_answer
from utils.atomic import atomic_write
from utils.context_length import longest_dialogue
from utils.conversation import Conversation, Image, ImageError, Turn

_NAMED = 3  # bad dialogues in a message
_ANY_ANSWER = "-"  # in the place of those that the model will give


def with_sound_images(found: EvalSet) -> EvalSet:
    """The set without the dialogues of which an image cannot be decoded; each image is looked at once."""
    looked_at: dict[Image, ImageError | None] = {}

    def check(dialogue: EvalDialogue) -> None:
        for image in (image for turn in dialogue.turns for image in turn.images):
            if image not in looked_at:
                looked_at[image] = _fault(image)
            if (fault := looked_at[image]) is not None:
                raise fault
        progress.update()

    with tqdm(total=len(found.dialogues), desc="checking images", delay=5, leave=False) as progress:
        return found.checked(check)


def with_askable_texts(
    found: EvalSet, processor: ProcessorMixin, config: PreTrainedConfig, settings: GenerationSettings
) -> EvalSet:
    """The set without the dialogues that a checkpoint's processor refuses, or whose first question leaves no room
    for an answer.

    Raises `EvalDataError` where references are to be the history and one is missing.
    """
    longest = longest_dialogue(config, settings.max_seq_len)

    def check(dialogue: EvalDialogue) -> None:
        for turn in dialogue.turns:
            for text in (dialogue.name, turn.kind, *turn.references):
                if not text.isascii() and text.encode(errors="replace").decode() != text:
                    raise ValueError(
                        "a reference or a kind contains half a character, a lone surrogate (\\ud800 to \\udfff)"
                    )
        turns, last = [], len(dialogue.turns) - 1
        for number, asked in enumerate(dialogue.turns):
            answer = (
                None if number == last else history_answer(dialogue, number, _ANY_ANSWER, settings.history)
            )
            turns.append(Turn(asked.question, answer, asked.images))
        whole = Conversation(tuple(turns), dialogue.name, dialogue.system)
        processor.encode(whole, load_images=False)
        first = len(processor.encode(whole.until_answer(0), load_images=False).input_ids)
        if first >= longest:
            raise ValueError(
                f"its first question takes {first:,} tokens and leaves no room for an answer within {longest:,}"
                " (--max_seq_len, at most the decoder's positions)"
            )

    return found.checked(check)


def write_bad(path: Path, bad: Sequence[BadDialogue]) -> None:
    """List bad dialogues in a file, a JSON object a line; without any, the file of an earlier run is removed."""
    if bad:
        lines = "".join(f"{json.dumps(asdict(each), ensure_ascii=False)}\n" for each in bad)
        atomic_write(path, lines.encode("utf-8", "backslashreplace"))
    else:
        path.unlink(missing_ok=True)


def told(found: EvalSet, path: Path) -> str:
    """One line about the bad dialogues, which are listed in the file `path`."""
    count, total = len(found.bad), len(found.bad) + len(found.dialogues)
    named = "; ".join(f"{each.dialogue!r}: {each.reason}" for each in found.bad[:_NAMED])
    more = f"; and {count - _NAMED:,} more" if count > _NAMED else ""
    return f"{count:,} of {total:,} dialogues cannot be asked, listed in {path}: {named}{more}"


def _fault(image: Image) -> ImageError | None:
    try:
        image.pixels(1)  # a JPEG at the smallest fraction: quick, and damage shows all the same
    except ImageError as error:
        return error
    return None
