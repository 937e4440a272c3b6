"""One step of generation: the model reads what is new in a dialogue, then the next token is chosen."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from chat.opened_images import OpenedImage
from chat.reading import Reading
from chat.sampling import Sampling, TokenChooser


class TokenSource:
    """Chooses the tokens of one dialogue after another, as each has been read.

    `eos_ids` are the tokens that end an answer. The image token is never chosen: it would stand for an image
    that is not there.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, sampling: Sampling) -> None:
        self._chooser = TokenChooser(sampling, suppressed=[processor.image_token_id])
        self.eos_ids = eos_token_ids(model, processor)

    def next_token(
        self, ids: np.ndarray, is_image: np.ndarray, reading: Reading, images: Sequence[OpenedImage]
    ) -> int:
        """Read those of the `ids` [S] that are new to the `reading`, and choose what follows the last.

        `is_image` [S] marks the tokens of the `images`.
        """
        logits = reading.read(ids, is_image, images)
        return int(self._chooser.choose(torch.from_numpy(ids)[None], logits))


def eos_token_ids(model: PreTrainedModel, processor: ProcessorMixin) -> frozenset[int]:
    """The tokens that end an answer: the generation settings name them, else the tokenizer does."""
    configured = model.generation_config.eos_token_id
    if configured is None:
        configured = processor.tokenizer.eos_token_id
    return frozenset([configured] if isinstance(configured, int) else configured)
