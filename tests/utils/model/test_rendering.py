"""One rendering, or none, gives what rendering every prompt gives, whatever the template."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils.conversation import Conversation, Image, Turn
from utils.model.processing_visual_chat import VisualChatProcessor

IMAGE = Image(b"never opened")
TEMPLATES = {
    "ours": None,
    "chatml": (
        "{%- for message in messages -%}{{- '<|im_start|>' ~ message.role ~ '\n' -}}"
        "{%- for part in message.content -%}{{- '<image>' if part.type == 'image' else part.text | trim -}}"
        "{%- endfor -%}{{- (eos_token if message.role == 'assistant' else '') ~ '\n' -}}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
    ),
    "capitals": (
        "{%- for message in messages -%}{%- for part in message.content -%}"
        "{{- ('Q:' if message.role == 'user' else '') ~ ((part.text | upper) if message.role == 'user' and"
        " part.type == 'text' else (part.text | trim) if part.type == 'text' else '<image>') -}}{%- endfor -%}"
        "{{- '|A:' if message.role == 'user' else eos_token -}}{%- endfor -%}"
    ),
    "as it is": (
        "{%- for message in messages -%}{%- for part in message.content -%}"
        "{{- part.text if part.type == 'text' else '<image>' -}}{%- endfor -%}"
        "{{- '|A:' if message.role == 'user' else eos_token -}}{%- endfor -%}"
    ),
}

words = st.sampled_from(
    ["dog", "DOG", " ", "\n", "\u3000", "3", "...", "é", "🦙", "\ue0000\ue001", "{{ x }}", "### "]
)
texts = st.lists(words, min_size=1, max_size=6).map("".join).filter(str.strip)
turns = st.builds(Turn, texts, texts, st.lists(st.just(IMAGE), max_size=2))


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    dialogue = Conversation(
        tuple(draw(st.lists(turns, min_size=1, max_size=4))), system=draw(st.none() | texts)
    )
    return dialogue.until_answer(len(dialogue.turns) - 1) if draw(st.booleans()) else dialogue


@pytest.fixture(params=TEMPLATES, scope="module")
def templated(request: pytest.FixtureRequest, processor: VisualChatProcessor) -> VisualChatProcessor:
    template = TEMPLATES[request.param] or processor.chat_template
    return VisualChatProcessor(processor.image_processor, processor.tokenizer, 5, chat_template=template)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dialogue=conversations())
def test_the_text_and_its_places_are_those_of_all_prompts_rendered(
    templated: VisualChatProcessor, dialogue: Conversation
) -> None:
    messages = dialogue.messages(load_images=False)
    renderer = templated._renderer()
    expected = renderer._checked(messages, templated._apply_template)
    for _ in range(2):  # as a new shape, and as one that is known
        assert renderer.render(messages, templated._apply_template) == expected


def dialogue(*answers: str) -> Conversation:
    return Conversation(tuple(Turn("q", answer) for answer in answers), "set.json#3")


def test_a_known_shape_is_not_rendered_again_by_our_template(processor: VisualChatProcessor) -> None:
    fresh = VisualChatProcessor(processor.image_processor, processor.tokenizer, 5)
    renderer, calls = fresh._renderer(), []

    def apply(*arguments: object) -> list[str]:
        calls.append(1)
        return fresh._apply_template(*arguments)

    for answers in (("a", "b"), ("c", "d"), ("e",), ("f",)):
        renderer.render(dialogue(*answers).messages(), apply)
    assert len(calls) == 4  # the whole and its prompts, of two shapes


def test_a_template_that_treats_some_texts_otherwise_is_found_out(processor: VisualChatProcessor) -> None:
    """A thought in an earlier answer is left out of what is rendered, but only where there is one."""
    thoughts = (
        "{%- for message in messages -%}{%- for part in message.content -%}"
        "{{- part.text.split('</think>')[-1] if message.role == 'user' or not loop.last or not loop.parent.last"
        " else part.text -}}{%- endfor -%}{{- '|A:' if message.role == 'user' else eos_token -}}{%- endfor -%}"
    ).replace("not loop.last or not loop.parent.last", "message != messages[-1]")
    strict = VisualChatProcessor(processor.image_processor, processor.tokenizer, 5, chat_template=thoughts)
    assert len(strict.encode(dialogue("a", "b")).turn_ends) == 2
    with pytest.raises(
        ValueError, match=r"set\.json#3: the chat template does not put an answer right after"
    ):
        strict.encode(dialogue("hm</think>a", "b"))


def test_another_template_is_another_renderer(processor: VisualChatProcessor) -> None:
    changed = VisualChatProcessor(processor.image_processor, processor.tokenizer, 5)
    before = changed.encode(dialogue("a"))
    changed.chat_template = changed.chat_template.replace("Question", "Asked")
    after = changed.encode(dialogue("a"))
    assert not np.array_equal(before.input_ids, after.input_ids)
    assert "Asked" in changed.tokenizer.decode(after.input_ids)
