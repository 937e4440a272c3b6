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

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, Protocol

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

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright; asked for only where there are tiles."""

    def open(self) -> PIL.Image.Image:
        """The whole picture, mode RGB."""

    def pixels(self, least_side: int) -> tuple[np.ndarray, tuple[int, int]]:
        """RGB [H, W, 3] uint8, perhaps decoded at a fraction of its size 1/2^k, rounded up, at which no side
        is shorter than `least_side`; and its full size, width and height."""


@dataclass(frozen=True)
class Opened:
    """An image that is decoded already."""

    picture: PIL.Image.Image

    @property
    def size(self) -> tuple[int, int]:
        return self.picture.size

    def open(self) -> PIL.Image.Image:
        return self.picture

    def pixels(self, least_side: int) -> tuple[np.ndarray, tuple[int, int]]:
        return np.array(self.picture.convert("RGB")), self.picture.size


def preprocess(processor: BaseImageProcessor, images: Sequence[OpensToPicture]) -> torch.Tensor:
    """Decode and preprocess images: [n, 3, H, W].

    Raises what `open` raises, and `ValueError` where the processor does not bring every image to one size.
    """
    framing = Framing.of(processor)
    if framing is not None:
        frames = (framing.frame(*pixels) for pixels in _decoded(images, framing.least_side))
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


def _decoded(
    images: Iterable[OpensToPicture], least_side: int
) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """The pixels of images as `Framing.frame` takes them; tiles of one image that follow each other from one
    decoding of it."""
    before: Tile | None = None
    for image in images:
        if not isinstance(image, Tile):
            yield image.pixels(least_side)
            continue
        if before is None or before.whole is not image.whole or before.grid != image.grid:
            before, sheet = image, image.sheet()
        yield image.cut(sheet), image.size


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
        pixels = self.resized(picture, full_size, height, width)
        if self.crop is None:
            return pixels[0]
        top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
        return pixels[0, :, top : top + self.crop[0], left : left + self.crop[1]]

    @property
    def shown(self) -> tuple[int, int]:
        """Height and width of what the encoder takes."""
        found = self.crop or self.size
        assert found is not None, "a framing that scales to the shortest edge crops"
        return found

    @property
    def uncropped(self) -> tuple[int, int]:
        """Height and width of a picture of which the middle alone is shown, as it is."""
        return self._scaled(*self.shown[::-1])

    def resized(
        self, picture: np.ndarray, full_size: tuple[int, int], height: int, width: int
    ) -> torch.Tensor:
        """Scale pixels [H, W, 3], perhaps decoded at a fraction of `full_size`, to uint8 [1, 3, height, width]."""
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
        return pixels

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        """Height and width after scaling; those of the full size, so that a fraction shifts nothing."""
        if self.size is not None:
            return self.size
        assert self.shortest_edge is not None, "a framing scales to the one or the other"
        short, long = sorted((width, height))
        long = int(self.shortest_edge * long / short)
        return (long, self.shortest_edge) if width <= height else (self.shortest_edge, long)


@dataclass(frozen=True)
class Tile:
    """A part of an image at the encoder's size: the image is scaled to a `grid` (columns, rows) of such parts, and
    this is the one at `column` and `row`, counted from 0.
    """

    whole: OpensToPicture
    framing: Framing
    grid: tuple[int, int]
    column: int
    row: int

    @property
    def name(self) -> str:
        return f"{getattr(self.whole, 'name', 'image')}, tile {self.row + 1},{self.column + 1}"

    @property
    def place(self) -> str:
        """Which part of its image it is: equal images have equal tiles at equal places."""
        height, width = self.framing.shown
        return f"tile {self.column},{self.row} of {self.grid[0]}x{self.grid[1]}, {width}x{height}"

    @property
    def digest(self) -> str:
        """The same for tiles that are the same; of an image that has a `digest`."""
        whole: Any = self.whole
        return f"{whole.digest} {self.place}"

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.framing.uncropped
        return width, height

    def open(self) -> PIL.Image.Image:
        return PIL.Image.fromarray(self.cut(self.sheet()))

    def pixels(self, least_side: int) -> tuple[np.ndarray, tuple[int, int]]:
        return self.cut(self.sheet()), self.size

    def sheet(self) -> np.ndarray:
        """All tiles of the image side by side: RGB [rows * height, columns * width, 3] uint8."""
        (columns, rows), (height, width) = self.grid, self.framing.shown
        height, width = rows * height, columns * width
        pixels = self.framing.resized(*self.whole.pixels(max(height, width)), height, width)
        return pixels[0].permute(1, 2, 0).contiguous().numpy()

    def cut(self, sheet: np.ndarray) -> np.ndarray:
        """This tile out of the `sheet`, with a border where the encoder's processor cuts one off."""
        height, width = self.framing.shown
        tile = sheet[self.row * height :, self.column * width :][:height, :width]
        more = [whole - part for whole, part in zip(self.framing.uncropped, (height, width), strict=True)]
        borders = [(each // 2, each - each // 2) for each in more]
        return np.ascontiguousarray(np.pad(tile, [*borders, (0, 0)], mode="edge"))


def require_framing(processor: BaseImageProcessor) -> Framing:
    """What a processor does to an image; `ValueError` where it is not known, so that there can be no tiles."""
    framing = Framing.of(processor)
    if framing is None:
        raise ValueError(
            f"{type(processor).__name__} does not scale, crop and normalise images in transformers' usual way, so they"
            " cannot be cut into tiles: leave out --tiles, or choose another encoder"
        )
    return framing


def tiles_of(processor: BaseImageProcessor, image: OpensToPicture, most: int) -> list[Tile]:
    """The tiles of an image, row by row: at most so many, none where they would show no more than the whole does.

    Raises what `require_framing` and `image.size` raise.
    """
    framing = require_framing(processor)
    grid = columns, rows = choose_grid(image.size, framing.shown, most)
    if columns * rows == 1:
        return []
    return [Tile(image, framing, grid, column, row) for row in range(rows) for column in range(columns)]


@lru_cache(maxsize=4096)
def choose_grid(size: tuple[int, int], shown: tuple[int, int], most: int) -> tuple[int, int]:
    """Columns and rows of the tiles of an image of `size` (width, height), each `shown` (height, width): at most
    `most`, and in each direction no more than fit into the image, rounded. (1, 1): the image as a whole.

    Of these grids the one to which the image is scaled down least, in the direction where it is scaled down more; of
    equal ones the smallest. That is LLaVA-NeXT's rule, but for images that are less than half a tile larger than the
    encoder's size, and that an image is stretched to its grid, not padded.
    """
    (width, height), (tall, wide) = size, shown

    def order(grid: tuple[int, int]) -> tuple[float, int]:
        scale = min(1.0, grid[0] * wide / width, grid[1] * tall / height)
        return scale, -grid[0] * grid[1]

    columns, rows = (max(1, int(side / part + 0.5)) for side, part in ((width, wide), (height, tall)))
    grids = [(c, r) for c in range(1, columns + 1) for r in range(1, rows + 1) if c * r <= most]
    return max(grids, key=order)


def _does_nothing_else(kind: type[TorchvisionBackend]) -> bool:
    return all(getattr(kind, step) is getattr(TorchvisionBackend, step) for step in _STEPS)


def _as_torch_likes(pixels: np.ndarray) -> torch.Tensor:
    """[H, W, 3] -> [1, 3, H, W] over the same memory; by the odd first stride torch knows that the channels
    come last, and spares two copies in scaling (https://github.com/pytorch/pytorch/issues/68430).
    """
    height, width, channels = pixels.shape
    strides = (pixels.size, 1, width * channels, channels)
    return torch.from_numpy(pixels).as_strided((1, channels, height, width), strides)
