"""The one renderer of conversations: text, token ids, labels and pixels for training, chat and evaluation.

This file travels inside checkpoints as custom code, so it imports its neighbours, torch, numpy and
transformers only, and takes a conversation by its shape (`RendersToMessages`), not by its class.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch
from tokenizers import Encoding
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_transforms import to_pil_image
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .configuration_visual_chat import IGNORED_LABEL
from .image_preprocessing import Opened, OpensToPicture, Tile, preprocess, require_framing, tiles_of
from .rendering import DEFAULT_CHAT_TEMPLATE, Messages, Rendered, Renderer, TemplateError


class RendersToMessages(Protocol):
    """What the processor asks of a conversation."""

    source: str

    @property
    def images(self) -> Sequence[OpensToPicture]: ...

    def messages(self, load_images: bool = True) -> list[dict[str, Any]]: ...

    def error(self, message: str) -> Exception: ...


class VisualChatProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]  # a typed dictionary
    """Defaults of a call: the template writes the BOS itself, and the model wants to know each token's
    kind."""

    _defaults = {  # noqa: RUF012 (typed dictionaries take no ClassVar)
        "text_kwargs": {"padding": False, "add_special_tokens": False, "return_mm_token_type_ids": True}
    }


class VisualChatProcessor(ProcessorMixin):
    """An image processor and a fast tokenizer behind one chat template.

    Each image takes `image_seq_length` tokens, and with an `image_summary_token` that one behind them, which counts as
    text; `image_token` marks its place in the text. With `tiles` above 1 a large image is followed by up to so many
    parts of itself at the encoder's size, each behind a few words that say which it is, and each an image like any
    other for the model: see `views`. The chat template
    is saved with the processor and may be replaced by any that starts every answer where its generation
    prompt ends and closes it with EOS; `encode` says so where one does not.
    """

    valid_processor_kwargs = VisualChatProcessorKwargs

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_seq_length: int = 257,
        chat_template: str | None = None,
        image_token: str = "<image>",
        image_summary_token: str | None = None,
        tiles: int = 1,
    ) -> None:
        if tokenizer is None or not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} is not a fast tokenizer; labels need its character offsets"
            )
        if tokenizer.eos_token is None:
            raise ValueError(
                "the tokenizer has no EOS token, so an answer could never end; set tokenizer.eos_token"
            )
        if tiles < 1:
            raise ValueError(f"tiles is {tiles}; give a positive number, 1 for none")
        if tiles > 1 and image_processor is not None:
            require_framing(image_processor)
        self.image_seq_length = image_seq_length
        self.tiles = tiles
        self.image_token = image_token
        self.image_summary_token = image_summary_token
        known = tokenizer.get_vocab()
        for token in filter(None, (image_token, image_summary_token)):
            if token not in known:
                raise ValueError(f"the tokenizer has no token {token}; add it as a special token first")
        self.image_token_id = known[image_token]
        self.image_summary_token_id = known[image_summary_token] if image_summary_token else None
        _name_image_token(tokenizer, image_token)
        template = chat_template or DEFAULT_CHAT_TEMPLATE.replace("<image>", image_token)
        super().__init__(image_processor, tokenizer, chat_template=template)
        specials = {image_token, *tokenizer.all_special_tokens}
        specials |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._reserved = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))))
        self._offsets_cover_spaces = (
            sum(end - start for start, end in self._encodings(["a b"])[0].offsets) == 3
        )
        self._known_renderer: tuple[tuple[str, str], Renderer] | None = None

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "mm_token_type_ids", "pixel_values"]

    @property
    def unused_input_names(self) -> list[str]:
        return ["token_type_ids"]

    @property
    def placeholder_ids(self) -> list[int]:
        """The tokens that stand for images: never part of an answer."""
        both = (self.image_token_id, self.image_summary_token_id)
        return [token for token in both if token is not None]

    @property
    def text_fingerprint(self) -> str:
        """The same for processors that give every conversation the same token ids."""
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        state |= {"padding": None, "truncation": None}  # left by earlier calls; `encode` does neither
        known = [state, self.chat_template, self.image_token, self.image_seq_length]
        known += [self.image_summary_token] if self.image_summary_token else []
        known += [self.tiles, require_framing(self.image_processor).shown] if self.tiles > 1 else []
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """transformers' own call: texts that mark images, and those images, in any form that transformers takes."""
        if self.tiles > 1 and images is not None:
            images, text = self._in_tiles(images, text)
        return super().__call__(images=images, text=text, **kwargs)

    def views(self, images: Sequence[OpensToPicture]) -> list[OpensToPicture]:
        """What the encoder is shown of images, in order: each as a whole, and behind it its tiles."""
        if self.tiles == 1:
            return list(images)
        return [view for image in images for view in (image, *self._tiles_of(image))]

    def marked(self, text: str, images: Sequence[OpensToPicture]) -> str:
        """A rendered text with a mark for each view of its images, where it has one for each image."""
        return Rendered(text, (), ()).expanded(self.image_token, [self._marks(each) for each in images]).text

    def _tiles_of(self, image: OpensToPicture) -> list[Tile]:
        return tiles_of(self.image_processor, image, self.tiles)

    def _marks(self, image: OpensToPicture) -> str:
        """The text that stands for an image: a mark, and one for each of its tiles."""
        tiles = self._tiles_of(image) if self.tiles > 1 else []
        return self.image_token + "".join(
            f"\nTile {tile.row + 1},{tile.column + 1}: {self.image_token}" for tile in tiles
        )

    def _in_tiles(self, images: Any, text: Any) -> tuple[list[PIL.Image.Image], Any]:
        """Images and texts of a call, with each view an image of its own."""
        given = make_flat_list_of_images(self.image_processor.fetch_images(images))
        opened = [Opened(each if isinstance(each, PIL.Image.Image) else to_pil_image(each)) for each in given]
        shown = [view.open() for view in self.views(opened)]
        if text is None:
            return shown, None
        texts = [text] if isinstance(text, str) else list(text)
        self.validate_inputs(images=given, text=texts)
        waiting = iter(opened)
        texts = [self.marked(each, list(islice(waiting, each.count(self.image_token)))) for each in texts]
        return shown, texts[0] if isinstance(text, str) else texts

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """The text that stands for one image: transformers' own hook, called for each image of a call."""
        return self.image_token * self.image_seq_length + (self.image_summary_token or "")

    def validate_inputs(self, images: Any = None, text: list[str] | None = None, **kwargs: Any) -> None:
        """Raises `ValueError` where a call's texts mark another number of images than it brings."""
        marked = sum(each.count(self.image_token) for each in text or ())
        given = 0 if images is None else len(make_flat_list_of_images(images))
        if text is not None and marked != given:  # the oldest transformers that we support lets this pass
            raise ValueError(
                f"the text has {marked} {self.image_token} tokens, but {given} images were given"
            )
        super().validate_inputs(images=images, text=text, **kwargs)

    def encode(self, conversation: RendersToMessages, load_images: bool = True) -> BatchFeature:
        """Render, tokenise and label a conversation; one whose last answer is None becomes an inference
        prompt.

        Returns arrays of its S tokens [S] int64: `input_ids`, `labels` (the ids of answers and of the EOS that closes
        each, -100 elsewhere), `mm_token_type_ids` (0 text, 1 image); `turn_ends` [T], of each turn the number of
        tokens up to its end: cut there, the ids are those of the conversation of so many turns; and `pixel_values`
        [n, 3, H, W] of its images in order, each with its tiles, None without any or where they were not asked for.

        Raises the conversation's own error where a text contains a special token, and `ValueError` where the
        chat template or the tokenizer would make a training prefix differ from the inference prompt.
        """
        messages = conversation.messages(load_images=False)
        self._refuse_reserved(conversation, messages)
        try:
            rendered = self._renderer().render(messages, self._apply_template)
            if (marks := rendered.text.count(self.image_token)) != len(conversation.images):
                raise conversation.error(
                    f"it has {len(conversation.images)} images, but the chat template wrote {marks}"
                    f" {self.image_token}"
                )
            if self.tiles > 1:
                texts = [self._marks(image) for image in conversation.images]
                rendered = rendered.expanded(self.image_token, texts)
            ids, starts, ends = self._tokens(rendered)
        except TemplateError as error:
            raise ValueError(f"{conversation.source or 'conversation'}: {error}") from error

        supervised = np.zeros(len(ids) + 1, dtype=np.int64)
        supervised[starts] += 1
        supervised[ends] -= 1
        labels = np.where(supervised[:-1].cumsum() > 0, ids, IGNORED_LABEL)

        is_image = ids == self.image_token_id
        behind = self.image_summary_token_id is not None
        repeats = np.where(is_image, self.image_seq_length + behind, 1)  # one id per image token
        lengths = np.concatenate([[0], repeats.cumsum()])
        input_ids, kinds = ids.repeat(repeats), is_image.astype(np.int64).repeat(repeats)
        if behind:
            summaries = lengths[1:][is_image] - 1
            input_ids[summaries], kinds[summaries] = self.image_summary_token_id, 0
        answered = messages[-1]["role"] == "assistant"
        return BatchFeature(
            {
                "input_ids": input_ids,
                "labels": labels.repeat(repeats),
                "mm_token_type_ids": kinds,
                "turn_ends": lengths[ends if answered else np.append(ends, len(ids))],
                "pixel_values": self.pixel_values(self.views(conversation.images)) if load_images else None,
            }
        )

    def pixel_values(self, images: Sequence[OpensToPicture]) -> torch.Tensor | None:
        """Open and preprocess images, or views of them; returns [n, 3, H, W], or None for none."""
        return preprocess(self.image_processor, images) if images else None

    def _refuse_reserved(self, conversation: RendersToMessages, messages: list[dict[str, Any]]) -> None:
        texts = [part.get("text", "") for message in messages for part in message["content"]]
        if not self._reserved.search("\n".join(texts)):
            return
        for message in messages:
            for part in message["content"]:
                if found := self._reserved.search(part.get("text", "")):
                    raise conversation.error(
                        f"the text of a {message['role']} contains {found.group()!r}, which the tokenizer"
                        " reserves; remove or rewrite it (images belong in the turn's list of images)"
                    )

    def _renderer(self) -> Renderer:
        """For the template as it is now; what it has learned about shapes is kept as long as that stays."""
        key = (self.chat_template, self.tokenizer.eos_token)
        if self._known_renderer is None or self._known_renderer[0] != key:
            ours = DEFAULT_CHAT_TEMPLATE.replace("<image>", self.image_token)
            self._known_renderer = (key, Renderer(key[1], only_strips=self.chat_template == ours))
        return self._known_renderer[1]

    def _apply_template(self, dialogues: list[Messages], add_generation_prompt: bool) -> list[str]:
        return self.apply_chat_template(dialogues, add_generation_prompt=add_generation_prompt)

    def _tokens(self, rendered: Rendered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ids [S], and the indices of each answer's first token and of the one after its last [answers].

        Raises `TemplateError` where a token belongs to prompt and answer both.
        """
        encoding = self._encodings([rendered.text])[0]
        ids = np.array(encoding.ids, dtype=np.int64)
        ends = [encoding.char_to_token(end - 1) + 1 for end in rendered.ends]
        if self._offsets_cover_spaces:
            starts = [encoding.char_to_token(start) for start in rendered.starts]
            clean = [
                token is not None and encoding.token_to_chars(token)[0] == start
                for token, start in zip(starts, rendered.starts, strict=True)
            ]
        else:
            starts, clean = self._starts_by_ids(rendered, ids, ends)
        if not all(clean):
            prompt = rendered.text[: rendered.starts[clean.index(False)]]
            raise TemplateError(
                "a token lies across the border of an answer, so training would differ from inference (prompt:"
                f" ...{prompt[-60:]!r}); use a chat template whose generation prompt ends where a token ends,"
                " for instance without a trailing space"
            )
        return ids, np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64)

    def _starts_by_ids(
        self, rendered: Rendered, ids: np.ndarray, ends: list[int]
    ) -> tuple[list[int], list[bool]]:
        """Where trimmed offsets hide a space shared with the prompt: compare the ids of the prompts.

        Of each only the part from the EOS of the answer before it on, for no token reaches across that.
        """
        eos = len(self.tokenizer.eos_token)
        froms = [0, *(end - eos for end in rendered.ends[:-1])][: len(rendered.starts)]
        tails = [rendered.text[begin:start] for begin, start in zip(froms, rendered.starts, strict=True)]
        starts, clean = [], []
        for first, encoding in zip([0, *(end - 1 for end in ends)], self._encodings(tails), strict=False):
            starts.append(first + len(encoding.ids))
            clean.append(np.array_equal(ids[first : starts[-1]], encoding.ids))
        return starts, clean

    def _encodings(self, texts: list[str]) -> list[Encoding]:
        """Without padding and truncation, whatever an earlier call has set."""
        if not texts:
            return []
        encoded = self.tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return encoded.encodings


def _name_image_token(tokenizer: PreTrainedTokenizerBase, image_token: str) -> None:
    """Give a tokenizer `image_token` and `image_token_id`, as multi-modal tokenizers of transformers have them."""
    if "image_token" not in tokenizer.SPECIAL_TOKENS_ATTRIBUTES:
        tokenizer.SPECIAL_TOKENS_ATTRIBUTES = [*tokenizer.SPECIAL_TOKENS_ATTRIBUTES, "image_token"]
    tokenizer.image_token = image_token


VisualChatProcessor.register_for_auto_class("AutoProcessor")
