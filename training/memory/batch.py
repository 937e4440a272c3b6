"""The largest batches that a training's settings allow: rows of full length, with as many images as may be."""

from dataclasses import dataclass, replace

import torch

from utils.model.configuration_visual_chat import IGNORED_LABEL


@dataclass(frozen=True)
class BatchShape:
    """What of a batch decides its memory: `rows` of `length` tokens with `images` images each.

    `supervised` is the share of the text tokens that are learned; a packed batch has positions in the place of
    a mask.
    """

    rows: int
    length: int
    images: int
    tokens_per_image: int
    supervised: float = 1.0
    packed: bool = False

    @property
    def image_tokens(self) -> int:
        """Image tokens of a row."""
        return self.images * self.tokens_per_image

    @property
    def text_tokens(self) -> int:
        """Text tokens of a row."""
        return self.length - self.image_tokens

    @property
    def learned(self) -> int:
        """Tokens of the whole batch that have a label."""
        return self.rows * round(self.supervised * self.text_tokens)

    def with_rows(self, rows: int) -> "BatchShape":
        """The same with another number of rows."""
        return replace(self, rows=rows)


def largest_batches(
    rows: int,
    max_seq_len: int,
    max_images: int,
    tokens_per_image: int,
    supervised: float = 1.0,
    packed: bool = False,
    multiple: int = 8,
) -> tuple[BatchShape, ...]:
    """The batches of which one needs the most memory: with the most images that fit, and with none.

    Images cost encoder and projector, text costs the head where it is learned: which is more depends on the
    models. `multiple` is what the collator pads to.
    """
    length = -(-max_seq_len // multiple) * multiple
    fitting = min(max_images, (max_seq_len - 1) // tokens_per_image)  # some text has to be left
    counts = dict.fromkeys((fitting, 0))
    return tuple(BatchShape(rows, length, count, tokens_per_image, supervised, packed) for count in counts)


def make_batch(
    shape: BatchShape, image_token_id: int, text_token_id: int, image_size: int, device: str = "meta"
) -> dict[str, torch.Tensor]:
    """A batch of a shape: images evenly through the text, labels at the end of it; pixels on `device`."""
    kinds = torch.zeros(shape.length, dtype=torch.long)
    gap = shape.text_tokens // (shape.images + 1)
    for image in range(shape.images):
        start = (image + 1) * gap + image * shape.tokens_per_image
        kinds[start : start + shape.tokens_per_image] = 1
    ids = torch.where(kinds == 1, image_token_id, text_token_id)
    labels = torch.full_like(ids, IGNORED_LABEL)
    text = (kinds == 0).nonzero()[:, 0]
    learned = shape.learned // shape.rows
    labels[text[shape.text_tokens - learned :]] = text_token_id
    row = {"input_ids": ids, "mm_token_type_ids": kinds, "labels": labels}
    place = "position_ids" if shape.packed else "attention_mask"
    row[place] = torch.arange(shape.length) if shape.packed else torch.ones_like(ids)
    batch = {name: values.expand(shape.rows, -1).contiguous() for name, values in row.items()}  # [B, S]
    if shape.images:
        count = shape.rows * shape.images
        batch["pixel_values"] = torch.zeros(count, 3, image_size, image_size, device=device)
    return batch
