"""An encoder's features of pictures, computed once and read from the disk: exact, and known by the picture's bytes.

A store is a folder of parts. Each is a safetensors file, complete or not there, of `keys` [n, 16] uint8 and
`features` [n, S, D] in the encoder's own type; features are read one picture at a time.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from utils.atomic import atomic_write
from utils.conversation import Image
from utils.data.spec import DataError
from utils.distributed import get_logger
from utils.images import encoded_bytes

logger = get_logger(__name__)

KEY_BYTES = 16
_PART_BYTES = 256 * 2**20


def image_key(image: Image) -> bytes:
    """The same for the same encoded bytes, wherever they lie, and of a tile for the same place in them; raises
    `ImageError` where they cannot be read."""
    place = getattr(image, "place", "").encode()  # a tile's, as the processor makes them
    image = getattr(image, "whole", image)
    source = image.source
    if isinstance(source, PIL.Image.Image):
        upright = image.open()  # in its own mode, a palette and an orientation would be missing
        content = f"{upright.size}".encode() + upright.tobytes()
    else:
        content = encoded_bytes(source, image.name)
    return hashlib.blake2b(content + place, digest_size=KEY_BYTES).digest()


class FeatureStore:
    """Reads features by picture; pickles, and may be used by several processes."""

    def __init__(self, folder: str | Path) -> None:
        """Know what the parts in `folder` hold. One that is damaged is passed over, with a line that says so."""
        self.folder = Path(folder)
        self._parts: list[str] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        self._open: dict[int, safe_open] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, "pt") as part:
                    keys = part.get_tensor("keys").numpy()
            except (SafetensorError, OSError, RuntimeError) as error:
                logger.warning("%s is damaged and will be made again (%s)", path, error)
                continue
            for row, key in enumerate(keys):
                self._places[key.tobytes()] = (len(self._parts), row)
            self._parts.append(path.name)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def of(self, images: Sequence[Image]) -> torch.Tensor:
        """Features [n, S, D] of pictures; of none, a tensor of length 0.

        Raises `ImageError` for a picture that cannot be read, and `DataError` for one that is not here.
        """
        return torch.stack([self._features(image) for image in images]) if images else torch.empty(0)

    def _features(self, image: Image) -> torch.Tensor:
        place = self._places.get(image_key(image))
        if place is None:
            raise DataError(
                f"{image.name} is not among the pictures in {self.folder}: it has changed since this training"
                " began; start again, and its features will be computed"
            )
        number, row = place
        if number not in self._open:
            self._open[number] = safe_open(self.folder / self._parts[number], "pt")
        return self._open[number].get_slice("features")[row]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}


class FeatureWriter:
    """Adds parts to a store, each when it is large enough; `close` writes what is left."""

    def __init__(self, folder: str | Path, part_bytes: int = _PART_BYTES) -> None:
        self.folder = Path(folder)
        self._part_bytes = part_bytes
        self._keys: list[bytes] = []
        self._features: list[torch.Tensor] = []

    def add(self, keys: Iterable[bytes], features: torch.Tensor) -> None:
        """Features [n, S, D] of the pictures with these keys."""
        self._keys += keys
        self._features += features.cpu().unbind()
        if sum(each.nbytes for each in self._features) >= self._part_bytes:
            self.close()

    def close(self) -> None:
        """Bring what was added to the disk."""
        if not self._keys:
            return
        keys = torch.from_numpy(np.frombuffer(b"".join(self._keys), np.uint8).copy()).view(-1, KEY_BYTES)
        name = hashlib.blake2b(keys.numpy().tobytes(), digest_size=8).hexdigest()
        content = save({"keys": keys, "features": torch.stack(self._features)})
        atomic_write(self.folder / f"{name}.safetensors", content)
        self._keys, self._features = [], []
