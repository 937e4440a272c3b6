"""Our pixels against those of transformers' own image processors."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import BitImageProcessor, CLIPImageProcessor, SiglipImageProcessor
from transformers.image_processing_utils import BaseImageProcessor

from utils.conversation import Image
from utils.model.image_preprocessing import Framing, preprocess

PICTURES = Path(__file__).parents[3] / "eval" / "eval_data" / "image"
PHOTOGRAPHS = sorted(PICTURES.glob("*.jpg"))
DRAWINGS = sorted(PICTURES.glob("*.png"))
CLIP = CLIPImageProcessor()
SIGLIP = SiglipImageProcessor(size={"height": 224, "width": 224})


def as_jpeg(path: Path, width: int, height: int) -> Image:
    buffer = io.BytesIO()
    picture = PIL.Image.open(path).convert("RGB").resize((width, height), PIL.Image.Resampling.LANCZOS)
    picture.save(buffer, "JPEG", quality=90)
    return Image(buffer.getvalue(), path.name)


def theirs(processor: BaseImageProcessor, image: Image) -> torch.Tensor:
    return processor([image.open()], return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize(
    "processor",
    [
        CLIP,
        SIGLIP,
        CLIPImageProcessor(resample=2),
        CLIPImageProcessor(do_normalize=False),
        CLIPImageProcessor(do_rescale=False),
    ],
)
@pytest.mark.parametrize("size", [(300, 240), (240, 301), (447, 400), (224, 224), (50, 31), (900, 225)])
def test_a_picture_that_is_decoded_in_full_is_the_processors_bit_for_bit(
    processor: BaseImageProcessor, size: tuple[int, int]
) -> None:
    assert Framing.of(processor) is not None
    image = as_jpeg(PHOTOGRAPHS[0], *size)
    assert torch.equal(preprocess(processor, [image]), theirs(processor, image))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("paths", "mean", "most"), [(PHOTOGRAPHS, 1.5, 25), (DRAWINGS, 3, 50)], ids=["photographs", "drawings"]
)
@pytest.mark.parametrize("size", [(640, 480), (483, 1285), (2017, 1501)])
@pytest.mark.parametrize("processor", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_a_fraction_keeps_within_the_stated_tolerance(
    processor: BaseImageProcessor, paths: list[Path], size: tuple[int, int], mean: float, most: float
) -> None:
    steps = 255 * torch.tensor(processor.image_std)[:, None, None]
    for path in paths:
        image = as_jpeg(path, *size)
        assert image.pixels(224)[0].shape[0] < size[1]  # a fraction it is
        difference = ((preprocess(processor, [image]) - theirs(processor, image)) * steps).abs()
        assert difference.mean() <= mean, path.name
        assert np.quantile(difference, 0.999) <= most, path.name


def test_images_of_all_sizes_come_in_order() -> None:
    images = [as_jpeg(path, 100 + 60 * number, 400) for number, path in enumerate(PHOTOGRAPHS)]
    together = preprocess(CLIP, images)
    assert together.shape == (len(images), 3, 224, 224)
    assert all(torch.equal(together[n], preprocess(CLIP, [image])[0]) for n, image in enumerate(images))


class Upside(CLIPImageProcessor):
    """Does something of its own."""

    def resize(self, image: torch.Tensor, size: dict, **kwargs: object) -> torch.Tensor:
        return super().resize(image, size, **kwargs).flip(-2)


@pytest.mark.parametrize(
    "processor",
    [
        Upside(),
        CLIPImageProcessor(crop_size={"height": 256, "width": 256}),  # pads
        CLIPImageProcessor(do_resize=False),
        CLIPImageProcessor(do_rescale=False, do_normalize=False),
        CLIPImageProcessor(resample=0),
        BitImageProcessor(do_pad=True, pad_size={"height": 230, "width": 230}),
    ],
)
def test_a_processor_that_does_more_is_called_itself(processor: BaseImageProcessor) -> None:
    assert Framing.of(processor) is None
    image = as_jpeg(PHOTOGRAPHS[1], 640, 480)
    assert torch.equal(preprocess(processor, [image]), theirs(processor, image))


def test_sizes_that_differ_are_refused() -> None:
    images = [as_jpeg(PHOTOGRAPHS[0], *size) for size in ((300, 240), (240, 300))]
    with pytest.raises(ValueError):
        preprocess(CLIPImageProcessor(do_center_crop=False), images)
