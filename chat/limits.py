"""Default limits of a dialogue and of the image KV cache."""

from dataclasses import dataclass
from pathlib import Path

from utils.commands import GIB

MAX_IMAGES = 8
MAX_SEQ_LEN = 4096
MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class StoreLimits:
    """How many bytes of images' keys and values each place may hold; an image of 256 tokens takes 134 MB with a 7B
    decoder in bfloat16.

    Where the model runs on the CPU, `device` counts for nothing. Without a `folder` nothing goes to the disk.
    """

    device: int = 2 * GIB
    memory: int = 4 * GIB
    folder: Path | None = None
    disk: int = 64 * GIB
