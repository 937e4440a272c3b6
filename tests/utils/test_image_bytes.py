"""Base64 in all its forms means the same image wherever it may stand; what is quoted of it is short."""

import base64
import io
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from urllib.parse import quote

import numpy as np
import PIL.Image
import pytest

from chat.server_setup import Limits
from chat.serving.errors import ApiError
from chat.serving.images import ImageOpener, Sources
from utils.conversation import ConversationError, Image, ImageError
from utils.data.adapters.custom import custom
from utils.data.bad_records import BadRecord, RecordPlace
from utils.data.readers.image_archive import open_image_archive
from utils.data.spec import RawRecord
from utils.images import is_image_text, shortened

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
FORMS: dict[str, Callable[[bytes], str]] = {
    "plain": lambda content: base64.b64encode(content).decode(),
    "line breaks": lambda content: base64.encodebytes(content).decode(),
    "no padding": lambda content: base64.b64encode(content).decode().rstrip("="),
    "URL-safe": lambda content: base64.urlsafe_b64encode(content).decode(),
    "URL-safe, no padding": lambda content: base64.urlsafe_b64encode(content).decode().rstrip("="),
    "percent-encoded": lambda content: quote(base64.b64encode(content).decode(), safe=""),
}
HEADS = ("data:image/png;base64,", "DATA:image/jpeg;charset=utf-8;BASE64,", "data:;base64,")


def file_of(format: str) -> bytes:
    """Noise, so that the base64 holds both characters of which the alphabets differ; it needs padding."""
    pixels = np.random.default_rng(5).integers(0, 256, (9, 11, 3), np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format, **({"lossless": True} if format == "WEBP" else {}))
    content = buffer.getvalue()
    return content + bytes(1 + -len(content) % 3)  # bytes behind the end are passed over


def own_data(text: str, tmp_path: Path) -> Image:
    messages = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "Noise."}]
    record = RawRecord({"image": text, "conversations": messages}, "set.json#0", (tmp_path,))
    return custom(record).images[0]


def image_store(text: str, tmp_path: Path) -> Image:
    (tmp_path / "SD.json").write_text(json.dumps({"a": text}))
    return Image(open_image_archive(tmp_path / "SD.json")["a"])


def server(text: str, tmp_path: Path) -> Image:
    return ImageOpener(Limits(), Sources()).open(text, "url")


@pytest.mark.parametrize(
    ("head", "form"), [each for each in product(("", *HEADS), FORMS) if each != ("", "percent-encoded")]
)
@pytest.mark.parametrize("entrance", [own_data, image_store, server])
def test_every_form_is_the_same_image_at_every_entrance(
    entrance: Callable[[str, Path], Image], form: str, head: str, tmp_path: Path
) -> None:
    for format in FORMATS if entrance is not image_store else FORMATS[:1]:
        content = file_of(format)
        assert {43, 47} <= set(base64.b64encode(content)) and base64.b64encode(content).endswith(b"=")
        image = entrance(head + FORMS[form](content), tmp_path)
        assert image.open().tobytes() == PIL.Image.open(io.BytesIO(content)).convert("RGB").tobytes()


@pytest.mark.parametrize(
    "text", ["photos/9j.jpg", "/9j/4AAQSkZJ", "iVBORw0KGgo.png", "a" * 4000, "", "A" + "=" * 40]
)
def test_a_path_is_no_image(text: str) -> None:
    assert not is_image_text(text)


@pytest.mark.parametrize("head", [*HEADS, "data:image/png,", "data:"])
def test_broken_base64_is_said_and_not_quoted(head: str, tmp_path: Path) -> None:
    text = head + "iVBORw0KGgo" * 20_000 + "!"
    for entrance, error in ((own_data, ConversationError), (server, ApiError), (image_store, ValueError)):
        with pytest.raises(error, match="base64") as raised:
            entrance(text, tmp_path)
        message = raised.value.message if isinstance(raised.value, ApiError) else str(raised.value)
        assert len(message) < 500


def test_what_is_quoted_is_short_and_keeps_both_ends() -> None:
    assert shortened("photos/cat.jpg") == "photos/cat.jpg"
    long = shortened("photos/" + "x" * 10_000 + ".jpg")
    assert len(long) < 320 and long.startswith("photos/xxx") and long.endswith(".jpg") and "10,011" in long
    with pytest.raises(ImageError) as raised:
        Image("x" * 1_000_000).open()
    assert len(str(raised.value)) < 500
    assert len(BadRecord.of(RecordPlace("a", "b", 1), ValueError("x" * 1_000_000)).reason) < 1_100
