"""One step of generation over a cache: the model's forward on what is new, then the next token."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from chat.sampling import Sampling, TokenChooser


class CachedDecoder:
    """Chooses the tokens of one dialogue after another, over caches that the caller keeps.

    `eos_ids` are the tokens that end an answer. The image token is never chosen: it would stand for an image
    that is not there.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, sampling: Sampling) -> None:
        self._model = model.eval()
        self._chooser = TokenChooser(sampling, suppressed=[processor.image_token_id])
        self.eos_ids = eos_token_ids(model, processor)

    @torch.inference_mode()
    def next_token(
        self,
        ids: Sequence[int],
        is_image: np.ndarray,
        cache: DynamicCache,
        pixels: torch.Tensor | None = None,
    ) -> int:
        """Compute those of the `ids` that the `cache` lacks, put them into it, and choose what follows.

        `is_image` marks the image tokens among the first of the ids; those after its end are text. `pixels`
        [n, 3, H, W] are the images whose tokens are not cached yet.
        """
        new = len(ids) - cache.get_seq_length()
        whole = torch.tensor([list(ids)], device=self._model.device)  # [1, S]
        kinds = torch.zeros_like(whole)  # of every token, cached ones too: the attention needs them
        kinds[0, : len(is_image)] = torch.from_numpy(is_image).to(whole)
        if pixels is not None:
            pixels = pixels.to(device=self._model.device, dtype=self._model.dtype)
        output = self._model(
            input_ids=whole[:, -new:],
            attention_mask=torch.ones_like(whole),
            mm_token_type_ids=kinds,
            pixel_values=pixels,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return self._chooser.choose(whole, output.logits[:, -1])


def eos_token_ids(model: PreTrainedModel, processor: ProcessorMixin) -> frozenset[int]:
    """The tokens that end an answer: the generation settings name them, else the tokenizer does."""
    configured = model.generation_config.eos_token_id
    if configured is None:
        configured = processor.tokenizer.eos_token_id
    return frozenset([configured] if isinstance(configured, int) else configured)
