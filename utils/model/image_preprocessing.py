"""Pictures to pixels, as an image processor of transformers makes them, but several times faster on a core.

Two things make the difference. A JPEG is decoded at the smallest of 1, 1/2, 1/4 and 1/8 of its size that is no
smaller than what the encoder is shown: the decoder's inverse cosine transform does that part of the scaling.
And of an image processor that only scales, crops and normalises, these steps are done on bytes, without what
transformers does around them for inputs of all other kinds.

The tolerance, in steps of a pixel's 0 to 255: a picture that is decoded in full comes out as the processor makes
it, bit for bit. Of one that is decoded at a fraction, pixels differ by less than 1.5 on average, and 999 of 1000
by less than 25; in drawings with hard edges by less than 3 and 50. (Bilinear scaling instead of bicubic would
make as much of a difference.) The nearer the fraction's size is to what is shown, the larger it is: for twice
that size it is a third. `tests/utils/model/test_image_preprocessing.py` measures it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Protocol

import numpy as np
import PIL.Image
import torch
from torch.nn import functional as F
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import PILImageResampling

_MODES = {PILImageResampling.BICUBIC: "bicubic", PILImageResampling.BILINEAR: "bilinear"}
_STEPS = (
    "preprocess",
    "process_image",
    "resize",
    "center_crop",
    "rescale_and_normalize",
    "_preprocess_image_like_inputs",
    "_preprocess",
)
"""What a processor must have left as transformers' base class does it, to be known."""


class OpensToPicture(Protocol):
    """An image that is decoded when it is needed."""

    def open(self) -> PIL.Image.Image:
        """The whole picture, mode RGB."""

    def pixels(self, least_side: int) -> tuple[np.ndarray, tuple[int, int]]:
        """RGB [H, W, 3] uint8, perhaps decoded at a fraction of its size 1/2^k, rounded up, at which no side
        is shorter than `least_side`; and its full size, width and height."""


def preprocess(processor: BaseImageProcessor, images: Sequence[OpensToPicture]) -> torch.Tensor:
    """Decode and preprocess images: [n, 3, H, W].

    Raises what `open` raises, and `ValueError` where the processor does not bring every image to one size.
    """
    framing = Framing.of(processor)
    if framing is not None:
        frames = (framing.frame(*image.pixels(framing.least_side)) for image in images)
        return normalised(processor, frames, len(images))
    pixels = processor([image.open() for image in images], return_tensors="pt")["pixel_values"]
    if pixels.ndim != 4:
        raise ValueError(
            f"{type(processor).__name__} made pixels of shape {list(pixels.shape)}; set its size and"
            " do_center_crop so that every image becomes [3, H, W]"
        )
    return pixels


def normalised(processor: BaseImageProcessor, frames: Iterable[torch.Tensor], count: int) -> torch.Tensor:
    """The processor's last steps, on `count` frames of uint8 [3, H, W]: float32 [count, 3, H, W].

    In one piece of memory, for at this size a fresh one costs as much as the arithmetic.
    """
    frames = iter(frames)
    first = next(frames)
    pixels = torch.empty(count, *first.shape)
    for number, frame in enumerate(chain([first], frames)):
        pixels[number] = frame
    scale = processor.rescale_factor if processor.do_rescale else 1.0
    if not processor.do_normalize:
        return pixels.mul_(scale)
    mean, std = (_by_channel(tuple(each), scale) for each in (processor.image_mean, processor.image_std))
    return pixels.sub_(mean).div_(std)


@lru_cache(maxsize=16)
def _by_channel(values: tuple[float, ...], scale: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None] * (1.0 / scale)


@dataclass(frozen=True)
class Framing:
    """How a processor scales and crops: to `shortest_edge`, or to `size` (height, width) whatever the aspect;
    then the middle of `crop` (height, width) is kept, None for all.
    """

    shortest_edge: int | None
    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    mode: str

    @classmethod
    def of(cls, processor: BaseImageProcessor) -> "Framing | None":
        """Read off a processor; None for one that does anything else, or not always to the same size."""
        if not isinstance(processor, TorchvisionBackend) or not processor.do_resize or processor.do_pad:
            return None
        if not (processor.do_rescale or processor.do_normalize):
            return None
        if processor.do_normalize and not isinstance(processor.image_mean, tuple | list):
            return None
        if not _does_nothing_else(type(processor)):
            return None
        size, crop, mode = dict(processor.size), None, _MODES.get(processor.resample)
        if processor.do_center_crop:
            crop = (processor.crop_size["height"], processor.crop_size["width"])
        if mode is None:
            return None
        if size.keys() == {"shortest_edge"} and crop and max(crop) <= size["shortest_edge"]:
            return cls(size["shortest_edge"], None, crop, mode)
        if size.keys() == {"height", "width"}:
            scaled = (size["height"], size["width"])
            if crop is None or all(part <= whole for part, whole in zip(crop, scaled, strict=True)):
                return cls(None, scaled, crop, mode)
        return None

    @property
    def least_side(self) -> int:
        """The picture is not needed larger than this in both directions."""
        return self.shortest_edge or max(self.size or (0,))

    def frame(self, picture: np.ndarray, full_size: tuple[int, int]) -> torch.Tensor:
        """Scale and crop pixels [H, W, 3], perhaps decoded at a fraction of `full_size` (width, height), to
        uint8 [3, H, W].
        """
        height, width = self._scaled(*full_size)
        pixels = _as_torch_likes(picture)
        if picture.shape[:2] != full_size[::-1]:
            # The last column or row of a fraction may stand for less than a whole one: what is scaled is exact.
            fraction = round(full_size[0] / picture.shape[1])
            wanted = (height * fraction / full_size[1], width * fraction / full_size[0])
            scale = tuple(
                each * (1 + 1e-9) for each in wanted
            )  # torch cuts the size it computes to a whole number
            pixels = F.interpolate(pixels, scale_factor=scale, mode=self.mode, antialias=True)
        elif picture.shape[:2] != (height, width):
            pixels = F.interpolate(pixels, size=(height, width), mode=self.mode, antialias=True)
        if self.crop is None:
            return pixels[0]
        top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
        return pixels[0, :, top : top + self.crop[0], left : left + self.crop[1]]

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        """Height and width after scaling; those of the full size, so that a fraction shifts nothing."""
        if self.size is not None:
            return self.size
        assert self.shortest_edge is not None, "a framing scales to the one or the other"
        short, long = sorted((width, height))
        long = int(self.shortest_edge * long / short)
        return (long, self.shortest_edge) if width <= height else (self.shortest_edge, long)


def _does_nothing_else(kind: type[TorchvisionBackend]) -> bool:
    return all(getattr(kind, step) is getattr(TorchvisionBackend, step) for step in _STEPS)


def _as_torch_likes(pixels: np.ndarray) -> torch.Tensor:
    """[H, W, 3] -> [1, 3, H, W] over the same memory; by the odd first stride torch knows that the channels
    come last, and spares two copies in scaling (https://github.com/pytorch/pytorch/issues/68430).
    """
    height, width, channels = pixels.shape
    strides = (pixels.size, 1, width * channels, channels)
    return torch.from_numpy(pixels).as_strided((1, channels, height, width), strides)
