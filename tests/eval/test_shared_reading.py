"""What a batch of prompts over the store costs, and whom its rows see."""

import pytest

from chat.image_kv.encoder import CachedImageKV
from chat.image_kv.store import ImageStore
from eval.dialogues import EvalDialogue, EvalTurn
from eval.generation import DialogueRunner, GenerationSettings
from utils.conversation import Conversation, Image, Turn

SETTINGS = GenerationSettings(batch_size=5, max_new_tokens=6)


@pytest.fixture
def dialogues(pictures) -> list[EvalDialogue]:
    """Ten questions about each of three pairs of pictures, and five about none, mixed up."""
    shown = [Image(picture) for picture in pictures[:6]]
    asked = [
        EvalDialogue(
            f"{pair} {number}", (EvalTurn(f"Question {number}?" + " Why?" * (number % 3), images=images),)
        )
        for number in range(10)
        for pair, images in enumerate([tuple(shown[:2]), tuple(shown[2:4]), tuple(shown[4:6])])
    ]
    return asked + [EvalDialogue(f"no {number}", (EvalTurn(f"Hello {number}?"),)) for number in range(5)]


def test_pictures_and_what_prompts_start_with_are_read_once(model_and_processor, dialogues):
    model, processor = model_and_processor
    expected = DialogueRunner(model, processor, SETTINGS, keep_images=False).run(dialogues)
    store = ImageStore(model, processor)
    read: list[int] = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    answers = DialogueRunner(model, processor, SETTINGS, store).run(dialogues)
    hook.remove()
    assert answers == expected and len({text for turns in answers for text in turns}) > 3
    assert (store.statistics.encoded_images, store.statistics.image_tokens) == (6, 30)
    prompts = sum(
        len(processor.encode(_asked(dialogue), load_images=False).input_ids) for dialogue in dialogues
    )
    generated = len(dialogues) * (SETTINGS.max_new_tokens - 1)
    assert sum(read) - generated < prompts / 4  # the template's text is most of these prompts
    again = DialogueRunner(model, processor, SETTINGS, store)
    assert again.run(dialogues) == expected and store.statistics.encoded_images == 6


def test_rows_of_the_same_pictures_share_them_in_memory(model_and_processor, dialogues, monkeypatch):
    """Ten questions about each of three pairs: a batch of 30 reads over three sets of keys, of 12 over one or two."""
    model, processor = model_and_processor
    asked = [dialogue for dialogue in dialogues if dialogue.turns[0].images]
    expected = DialogueRunner(model, processor, SETTINGS, keep_images=False).run(asked)
    sets: list[int] = []
    attend = CachedImageKV.attend

    def spy(self, layer, *args, **kwargs):
        if not layer and len(args[0]) > 1 and args[0].shape[2] == 1:  # a step of a batch
            sets.append(len(self._images))
        return attend(self, layer, *args, **kwargs)

    monkeypatch.setattr(CachedImageKV, "attend", spy)
    for batch_size, kept in ((30, {3}), (12, {2, 1}), (10, {1})):
        settings = GenerationSettings(batch_size=batch_size, max_new_tokens=6)
        assert DialogueRunner(model, processor, settings).run(asked) == expected
        assert set(sets) == kept
        sets.clear()


def test_a_batch_stops_where_all_rows_have_ended(model_and_processor, dialogues):
    model, processor = model_and_processor
    steps: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda *args: steps.append(1))
    settings = GenerationSettings(batch_size=50, max_new_tokens=1)
    DialogueRunner(model, processor, settings).run(dialogues)
    hook.remove()
    assert len(steps) <= 2  # what all start with, and the prompts


def _asked(dialogue: EvalDialogue) -> Conversation:
    return Conversation(tuple(Turn(turn.question, None, turn.images) for turn in dialogue.turns))
