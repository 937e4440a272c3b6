"""Answers to a batch of prompts read whole, text and images together, by transformers' own generation."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from chat.sampling import Sampling
from utils.conversation import Conversation, Image
from utils.data import Collator
from utils.model.encoding import encode


class WholeBatchReader:
    """For attentions under which images depend on what stands before them, and to compare with."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        sampling: Sampling,
        eos_ids: frozenset[int],
    ) -> None:
        self._model, self._processor, self._sampling = model, processor, sampling
        self._eos = eos_ids
        self._collate = Collator(processor.tokenizer.pad_token_id, padding_side="left", pad_to_multiple_of=1)

    @torch.inference_mode()
    def answers(self, conversations: Sequence[Conversation], rooms: Sequence[int]) -> list[list[int]]:
        """The tokens of each answer, at most as many as it has room for, without the one that ends it."""
        encoded = [self._processor.encode(conversation, load_images=False) for conversation in conversations]
        batch = self._collate(encoded)
        names = ("input_ids", "attention_mask", "mm_token_type_ids")
        batch = {name: batch[name].to(self._model.device) for name in names}
        if images := [image for conversation in conversations for image in conversation.images]:
            batch["pixel_values"] = self._pixels(images)
        generated = self._model.generate(**batch, generation_config=self._generation(max(rooms)))
        width = batch["input_ids"].shape[1]
        return [
            self._until_end(row[width : width + room].tolist())
            for row, room in zip(generated, rooms, strict=True)
        ]

    def _pixels(self, images: Sequence[Image]) -> torch.Tensor:
        """Pixels [n, 3, H, W]; where a picture comes twice, the encoder's features of each [n, S, D] instead,
        so that it goes through the encoder once."""
        number = {image: place for place, image in enumerate(dict.fromkeys(images))}
        pixels = self._processor.pixel_values(list(number)).to(self._model.device, self._model.dtype)
        if len(number) == len(images):
            return pixels
        return encode(self._model.model.vision_tower, pixels)[[number[image] for image in images]]

    def _until_end(self, ids: list[int]) -> list[int]:
        ends = [place for place, token in enumerate(ids) if token in self._eos]
        return ids[: ends[0]] if ends else ids

    def _generation(self, max_new_tokens: int) -> GenerationConfig:
        drawing = {"do_sample": False}
        if self._sampling.temperature > 0:
            drawing = {
                "do_sample": True,
                "temperature": self._sampling.temperature,
                "top_p": self._sampling.top_p,
                "top_k": self._sampling.top_k,
            }
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            repetition_penalty=self._sampling.repetition_penalty,
            eos_token_id=sorted(self._eos),
            pad_token_id=self._processor.tokenizer.pad_token_id,
            suppress_tokens=[self._processor.image_token_id],
            **drawing,
        )
