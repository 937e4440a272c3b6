"""A store of features: exact, known by the pictures' bytes, and not upset by damage."""

import pickle
from pathlib import Path

import PIL.Image
import pytest
import torch

from utils.conversation import Image, ImageError
from utils.data import DataError
from utils.data.batching.vision_feature_cache import FeatureStore, FeatureWriter, image_key


@pytest.fixture
def pictures(tmp_path: Path) -> list[Image]:
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        PIL.Image.new("RGB", (6, 4), (50 * number, 0, 0)).save(path)
    return [Image(path) for path in paths]


def features_of(count: int, dtype: torch.dtype) -> torch.Tensor:
    """[count, 3, 4], each number of its own bits."""
    return torch.randn(count, 3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)


def written(folder: Path, pictures: list[Image], features: torch.Tensor, **how: int) -> FeatureStore:
    writer = FeatureWriter(folder, **how)
    for picture, feature in zip(pictures, features, strict=True):
        writer.add([image_key(picture)], feature[None])
    writer.close()
    return FeatureStore(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("part_bytes", [1, 100, 10**6])
def test_what_is_read_is_what_was_written(tmp_path, pictures, dtype, part_bytes):
    features = features_of(5, dtype)
    store = written(tmp_path / "store", pictures, features, part_bytes=part_bytes)
    assert len(store) == 5
    assert torch.equal(store.of(pictures), features)
    assert torch.equal(store.of([pictures[3], pictures[0], pictures[3]]), features[[3, 0, 3]])
    assert store.of(pictures).dtype == dtype


def test_a_picture_is_known_by_its_bytes(tmp_path, pictures):
    path = Path(pictures[2].source)
    (tmp_path / "elsewhere.png").write_bytes(path.read_bytes())
    keys = {
        image_key(image)
        for image in (pictures[2], Image(tmp_path / "elsewhere.png"), Image(path.read_bytes()))
    }
    assert len(keys) == 1
    assert len({image_key(picture) for picture in pictures}) == 5
    assert image_key(Image(PIL.Image.new("RGB", (2, 8)))) != image_key(Image(PIL.Image.new("RGB", (8, 2))))


def test_a_picture_that_changed_is_named(tmp_path, pictures):
    store = written(tmp_path / "store", pictures, features_of(5, torch.float32))
    PIL.Image.new("RGB", (6, 4), (1, 2, 3)).save(pictures[1].source)
    with pytest.raises(DataError, match=r"1\.png is not among the pictures in .*store: it has changed"):
        store.of(pictures)
    Path(pictures[0].source).unlink()
    with pytest.raises(ImageError, match=r"0\.png: there is no such image file"):
        store.of(pictures)


def test_a_damaged_part_is_passed_over_and_named(tmp_path, pictures, caplog):
    folder = tmp_path / "store"
    features = features_of(5, torch.float32)
    written(folder, pictures, features, part_bytes=1)
    damaged = sorted(folder.iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-10])
    (folder / ".half.safetensors.partial").write_bytes(b"{")
    store = FeatureStore(folder)
    assert len(store) == 4 and f"{damaged} is damaged" in caplog.text
    lost = next(picture for picture in pictures if image_key(picture) not in store)
    again = written(folder, [lost], features[[pictures.index(lost)]], part_bytes=1)
    assert torch.equal(again.of(pictures), features)


def test_goes_to_other_processes(tmp_path, pictures):
    features = features_of(5, torch.float32)
    store = written(tmp_path / "store", pictures, features)
    store.of(pictures[:1])  # a file is open
    assert torch.equal(pickle.loads(pickle.dumps(store)).of(pictures), features)
