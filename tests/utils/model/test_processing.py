"""The one renderer: the same ids for training and inference, labels on answers and their EOS only."""

import copy
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoProcessor,
    BatchFeature,
    BertTokenizerLegacy,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)

from utils.conversation import Conversation, ConversationError, Image, Turn
from utils.model.configuration_visual_chat import IGNORED_LABEL
from utils.model.processing_visual_chat import VisualChatProcessor

RED, GREEN, BLUE = (Image(PIL.Image.new("RGB", (20, 16), color)) for color in ("red", "lime", "blue"))

DIALOGUE = Conversation(
    (
        Turn("How many circles are there?", "There are 2.", (RED,)),
        Turn(" And here?\nLook closely. ", "  3 \n", (GREEN, BLUE)),
        Turn("Same colour?", "No."),
    ),
    source="set.json#7",
)


def answers_of(processor: VisualChatProcessor, encoded: BatchFeature) -> list[str]:
    """The text of each run of supervised tokens."""
    supervised = np.concatenate([[0], encoded.labels != IGNORED_LABEL, [0]]).astype(int)
    starts, ends = np.flatnonzero(np.diff(supervised) == 1), np.flatnonzero(np.diff(supervised) == -1)
    return [processor.tokenizer.decode(encoded.labels[a:b]) for a, b in zip(starts, ends, strict=True)]


def test_the_text_is_the_published_template(processor: VisualChatProcessor) -> None:
    assert processor.apply_chat_template(DIALOGUE.messages(load_images=False)) == (
        "<s>You are a powerful vision-language assistant.\n\n"
        "### Image 1: <image>\n### Question: How many circles are there?\n### Answer: There are 2.</s>\n\n"
        "### Image 2: <image>\n### Image 3: <image>\n"
        "### Question: And here?\nLook closely.\n### Answer: 3</s>\n\n"
        "### Question: Same colour?\n### Answer: No.</s>"
    )


def test_a_prompt_ends_where_its_answer_begins(processor: VisualChatProcessor) -> None:
    dialogue = Conversation((Turn("Why?"),), system="Be brief.")
    text = processor.tokenizer.decode(processor.encode(dialogue).input_ids)
    assert re.sub(r"^<s> ?", "", text) == "Be brief.\n\n### Question: Why?\n### Answer:"


def test_string_contents_render_as_lists_do(processor: VisualChatProcessor) -> None:
    listed = Conversation((Turn("one", "1"), Turn("two")), system="Be brief.").messages()
    plain = [{**message, "content": message["content"][0]["text"]} for message in listed]
    rendered = [processor.apply_chat_template(each, add_generation_prompt=True) for each in (listed, plain)]
    assert rendered[0] == rendered[1]


def test_images_take_their_tokens_and_labels_cover_answers_and_eos(
    any_processor: VisualChatProcessor,
) -> None:
    encoded = any_processor.encode(DIALOGUE)
    eos = any_processor.tokenizer.eos_token
    assert [each.strip() for each in answers_of(any_processor, encoded)] == [
        f"There are 2.{eos}",
        f"3{eos}",
        f"No.{eos}",
    ]
    is_image = encoded.input_ids == any_processor.image_token_id
    assert is_image.sum() == 3 * any_processor.image_seq_length
    assert np.array_equal(encoded.mm_token_type_ids, is_image)
    assert encoded.turn_ends[-1] == len(encoded.input_ids)
    for turns in (1, 2):
        shorter = any_processor.encode(Conversation(DIALOGUE.turns[:turns]))
        end = encoded.turn_ends[turns - 1]
        assert np.array_equal(shorter.input_ids, encoded.input_ids[:end])
        assert np.array_equal(shorter.labels, encoded.labels[:end])


def test_pixels_are_in_the_order_of_the_images(processor: VisualChatProcessor) -> None:
    pixels = processor.encode(DIALOGUE).pixel_values  # the reversed order of 2023 put image 1 last
    assert pixels.shape == (3, 3, 16, 16)
    assert pixels.mean(dim=(2, 3)).argmax(dim=1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("prompt", [True, False])
def test_transformers_own_call_gives_the_same(
    any_processor: VisualChatProcessor, tmp_path: Path, prompt: bool
) -> None:
    paths = [tmp_path / f"{number}.jpg" for number in range(3)]
    for path in paths:
        PIL.Image.effect_noise((40, 30), 60).save(path)
    a, b, c = map(Image, paths)
    dialogue = Conversation((Turn("one", "1", (a, b)), Turn("two", None if prompt else "2", (c,))))
    encoded = any_processor.encode(dialogue)
    by_path = dialogue.messages(load_images=False)
    pictures = [part for message in by_path for part in message["content"] if part["type"] == "image"]
    for part, path in zip(pictures, paths, strict=True):
        part["path"] = str(path)
    for messages in (by_path, dialogue.messages()):
        inputs = any_processor.apply_chat_template(
            messages, add_generation_prompt=prompt, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert sorted(inputs) == ["attention_mask", "input_ids", "mm_token_type_ids", "pixel_values"]
        assert np.array_equal(inputs["input_ids"][0], encoded.input_ids)
        assert np.array_equal(inputs["mm_token_type_ids"][0], encoded.mm_token_type_ids)
        assert torch.equal(inputs["pixel_values"], encoded.pixel_values)


def test_a_batch_of_texts_is_padded_on_either_side(processor: VisualChatProcessor) -> None:
    texts = [
        processor.apply_chat_template(each.messages(False)) for each in (DIALOGUE, DIALOGUE.until_answer(0))
    ]
    pictures = [image.open() for image in (*DIALOGUE.images, RED)]
    for side, first_real in (("left", False), ("right", True)):
        batch = processor(images=pictures, text=texts, padding=True, padding_side=side, return_tensors="pt")
        assert bool(batch["attention_mask"][1, 0]) == first_real
        assert batch["mm_token_type_ids"].sum(dim=1).tolist() == [15, 5]
        assert batch["pixel_values"].shape == (4, 3, 16, 16)


def test_a_call_with_another_number_of_images_tells_both_numbers(processor: VisualChatProcessor) -> None:
    with pytest.raises(ValueError, match="1 <image> tokens, but 2 images"):
        processor(images=[RED.open(), GREEN.open()], text="look: <image>")


letters = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=12)
words = st.sampled_from(
    ["dog", " ", "  ", "\n", "\t", "\u3000", "3", "12", "...", "!", "'s", "é", "🦙", "ﬁ", "### Answer:"]
)
texts = st.lists(words | letters, min_size=1, max_size=6).map("".join).filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    shown = st.lists(st.just(RED), max_size=2)
    turns = draw(st.lists(st.builds(Turn, texts, texts, shown), min_size=1, max_size=4))
    return Conversation(tuple(turns), system=draw(st.none() | texts))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dialogue=conversations())
def test_training_prefixes_are_inference_prompts(
    any_processor: VisualChatProcessor, dialogue: Conversation
) -> None:
    try:
        encoded = any_processor.encode(dialogue, load_images=False)
    except ConversationError as error:
        assume("reserves" not in str(error))
        raise
    supervised = encoded.labels != IGNORED_LABEL
    for number in range(len(dialogue.turns)):
        prompt = any_processor.encode(dialogue.until_answer(number), load_images=False).input_ids
        assert np.array_equal(encoded.input_ids[: len(prompt)], prompt)
        assert supervised[len(prompt)] and not supervised[len(prompt) - 1]
    eos = any_processor.tokenizer.eos_token
    expected = [turn.answer.strip() + eos for turn in dialogue.turns]
    assert [each.removeprefix(" ") for each in answers_of(any_processor, encoded)] == expected
    assert np.array_equal(encoded.labels[supervised], encoded.input_ids[supervised])


@pytest.mark.parametrize("where", ["question", "answer", "system"])
@pytest.mark.parametrize("reserved", ["<image>", "</s>", "<s>"])
def test_reserved_text_is_refused_by_record(
    processor: VisualChatProcessor, where: str, reserved: str
) -> None:
    text = {"question": "q", "answer": "a", "system": None} | {where: f"see {reserved} here"}
    dialogue = Conversation((Turn(text["question"], text["answer"]),), "set.json#9", text["system"])
    with pytest.raises(ConversationError, match=rf"set\.json#9: .*'{reserved}'.*remove or rewrite"):
        processor.encode(dialogue)


def with_template(processor: VisualChatProcessor, template: str) -> VisualChatProcessor:
    return VisualChatProcessor(processor.image_processor, processor.tokenizer, 5, chat_template=template)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("Answer:'", "Answer: '"), "across the border of an answer"),
        (("~ eos_token", ""), "does not close an answer with </s>"),
        (("~ eos_token", "| upper ~ eos_token"), "does not put an answer right after its prompt"),
        (
            ("'### Question: '", "('### Question: ' if loop.last else '### Earlier: ')"),
            "renders the dialogue before an answer differently",
        ),
        (
            ("'### Image ' ~ count.images ~ ': <image>\\n'", "''"),
            "3 images, but the chat template wrote 0 <image>",
        ),
    ],
)
def test_a_template_that_would_mislead_is_found_out(
    processor: VisualChatProcessor, change: tuple[str, str], message: str
) -> None:
    template = processor.chat_template.replace(*change)
    if change[0] == "Answer:'":
        template = template.replace("' ' ~ text_of", "text_of")
    assert template != processor.chat_template
    with pytest.raises(ValueError, match=rf"set\.json#7: .*{message}"):
        with_template(processor, template).encode(DIALOGUE)


def test_trimmed_offsets_do_not_hide_a_token_across_the_border(
    image_processor: SiglipImageProcessor, llama_3_tokenizer: PreTrainedTokenizerFast
) -> None:
    processor = VisualChatProcessor(image_processor, llama_3_tokenizer, 5)
    template = processor.chat_template.replace("Answer:'", "Answer: '").replace("' ' ~ text_of", "text_of")
    with pytest.raises(ValueError, match="across the border"):
        with_template(processor, template).encode(Conversation((Turn("Which?", "the dogs"),)))


def test_roles_out_of_turn_are_refused(processor: VisualChatProcessor) -> None:
    user = {"role": "user", "content": "Hello"}
    with pytest.raises(Exception, match="user and assistant in turn"):
        processor.apply_chat_template([user, user])


def test_what_the_processor_needs_of_a_tokenizer(
    processor: VisualChatProcessor, sentencepiece_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no token <picture>"):
        VisualChatProcessor(processor.image_processor, sentencepiece_tokenizer, image_token="<picture>")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(ValueError, match="not a fast tokenizer"):
        VisualChatProcessor(processor.image_processor, BertTokenizerLegacy(tmp_path / "vocab.txt"))


def test_a_saved_processor_comes_back(processor: VisualChatProcessor, tmp_path: Path) -> None:
    changed = with_template(processor, processor.chat_template.replace("### Question", "### Ask"))
    changed.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is VisualChatProcessor
    assert (tmp_path / "chat_template.jinja").read_text() == changed.chat_template
    assert loaded.image_seq_length == 5 and loaded.image_token == "<image>"
    before, after = changed.encode(DIALOGUE), loaded.encode(DIALOGUE)
    assert np.array_equal(before.input_ids, after.input_ids)
    assert np.array_equal(before.labels, after.labels)
    assert torch.equal(before.pixel_values, after.pixel_values)


def test_a_summary_stands_behind_each_image_and_counts_as_text(processor: VisualChatProcessor) -> None:
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<sum>"]})
    with_summaries = VisualChatProcessor(
        processor.image_processor, tokenizer, processor.image_seq_length, image_summary_token="<sum>"
    )
    plain, found = processor.encode(DIALOGUE), with_summaries.encode(DIALOGUE)
    is_summary = found.input_ids == with_summaries.image_summary_token_id
    assert is_summary.sum() == len(DIALOGUE.images)
    for name in ("input_ids", "labels", "mm_token_type_ids"):
        assert np.array_equal(found[name][~is_summary], plain[name])
    assert not found.mm_token_type_ids[is_summary].any() and (found.labels[is_summary] == IGNORED_LABEL).all()
    before = np.flatnonzero(is_summary) - 1
    assert (found.input_ids[before] == processor.image_token_id).all()
    assert answers_of(with_summaries, found) == answers_of(processor, plain)
    assert found.turn_ends.tolist() == [
        end + is_summary[: end + count].sum() for end, count in zip(plain.turn_ends, (1, 3, 3), strict=True)
    ]
    called = with_summaries(text="<image> a", images=RED.open())
    assert called["input_ids"][0][processor.image_seq_length] == with_summaries.image_summary_token_id
    assert with_summaries.text_fingerprint != processor.text_fingerprint
    with pytest.raises(ConversationError, match="<sum>"):
        with_summaries.encode(Conversation((Turn("What is <sum>?", "x", (RED,)),)))
