"""Scenes drawn into picture files or into bytes, for the layouts that datasets are published in."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from helper.miniature.dialogues import KINDS, Round, make_dialogue
from helper.miniature.scenes import Scene, draw, sample_scene

_FORMATS = {".jpg": "JPEG", ".png": "PNG", ".gif": "GIF"}


class Album:
    """Scenes of the training side, drawn where a layout wants them; the same seed draws the same ones."""

    def __init__(self, seed: list[int]) -> None:
        self.rng = np.random.default_rng(seed)

    def scene(self) -> Scene:
        """A scene that evaluation does not hold out."""
        return sample_scene(self.rng, held_out=False)

    def encoded(self, scene: Scene, ending: str = ".jpg") -> bytes:
        """The bytes of a picture file of `scene`."""
        file = io.BytesIO()
        options = {"quality": 95} if ending == ".jpg" else {}
        draw(scene, self.rng).save(file, _FORMATS[ending], **options)
        return file.getvalue()

    def draw(self, scene: Scene, path: Path) -> None:
        """Write `scene` as a picture file; the ending of its name says of which format."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.encoded(scene, path.suffix))

    def question(self, *scenes: Scene, kinds: tuple[str, ...] = KINDS, numbered: bool = True) -> Round:
        """One question about `scenes`, all of them shown with it."""
        return make_dialogue(self.rng, scenes, 1, numbered=numbered, kinds=kinds)[0]

    def dialogue(self, *scenes: Scene, rounds: int, numbered: bool = True) -> list[Round]:
        """Several questions about `scenes`, which are shown one after the other."""
        return make_dialogue(self.rng, scenes, rounds, numbered=numbered)
