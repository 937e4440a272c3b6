"""Conversations are checked where they are made; images open when asked, and say what is wrong with them."""

import io
import pickle
from pathlib import Path

import PIL.Image
import pytest

from utils import pictures
from utils.conversation import Conversation, ConversationError, Image, ImageError, Turn


def encoded(picture: PIL.Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def noise() -> PIL.Image.Image:
    return PIL.Image.effect_noise((64, 64), 50).convert("RGB")


def test_an_image_opens_from_a_path_from_bytes_and_from_pil_alike(tmp_path: Path) -> None:
    picture = noise()
    picture.save(tmp_path / "a.png")
    opened = [
        Image(source).open()
        for source in (tmp_path / "a.png", str(tmp_path / "a.png"), encoded(picture), picture)
    ]
    assert all(each.mode == "RGB" and each.tobytes() == picture.tobytes() for each in opened)


def test_an_image_is_not_read_before_it_is_opened(tmp_path: Path) -> None:
    image = Image(tmp_path / "later.png")
    noise().save(tmp_path / "later.png")
    assert image.open().size == (64, 64)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I", "F", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    assert Image(PIL.Image.new(mode, (3, 2))).open().mode == "RGB"


def test_sixteen_bit_greys_are_scaled_not_clipped() -> None:
    assert Image(encoded(PIL.Image.new("I;16", (2, 2), 257 * 100))).open().getpixel((0, 0)) == (100, 100, 100)


def test_the_exif_orientation_is_applied() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    assert Image(encoded(PIL.Image.new("RGB", (8, 4)), "JPEG", exif=exif)).open().size == (4, 8)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ImageError, match=r"nowhere/cat\.jpg: there is no such image file"):
        Image("nowhere/cat.jpg").open()


@pytest.mark.parametrize("length", [40, 400, 900])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_a_truncated_file_is_named(tmp_path: Path, format: str, length: int) -> None:
    (tmp_path / "half").write_bytes(encoded(noise(), format)[:length])
    with pytest.raises(ImageError, match="half: "):
        Image(tmp_path / "half").open()


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html>404</html>")
    with pytest.raises(ImageError, match=r"page\.html: not an image"):
        Image(tmp_path / "page.html").open()
    with pytest.raises(ImageError, match="not an image"):
        Image(b"").open()


def test_a_folder_is_an_image_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        Image(tmp_path).open()


@pytest.mark.parametrize("limit", [10, 30, 100])
def test_too_many_pixels_are_refused(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", limit)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match="scale the image down"):
        Image(encoded(PIL.Image.new("L", (11, 10)))).open()


def test_a_source_of_another_type_is_refused() -> None:
    with pytest.raises(ImageError, match="not int"):
        Image(3)


def test_images_are_names_in_sets_and_compare() -> None:
    assert len({Image("a"), Image("a"), Image("b"), Image(noise())}) == 3


def test_images_are_listed_in_order_of_appearance() -> None:
    a, b, c = Image("a"), Image("b"), Image("c")
    dialogue = Conversation((Turn("q", "a", (a, b)), Turn("q", "a"), Turn("q", None, (c,))))
    assert dialogue.images == (a, b, c)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ((), "no turn"),
        ((Turn(" \n", "a"),), "question of turn 1 is empty"),
        ((Turn("q", "a"), Turn("q", "  ")), "answer of turn 2 is empty"),
        ((Turn("q"), Turn("q", "a")), "turn 1 has no answer"),
    ],
)
def test_a_conversation_that_cannot_be_is_refused_by_name(turns: tuple[Turn, ...], message: str) -> None:
    with pytest.raises(ConversationError, match=f"set.json#3: .*{message}"):
        Conversation(turns, source="set.json#3")


def test_the_prompt_of_an_answer_ends_with_its_question() -> None:
    dialogue = Conversation((Turn("one", "1"), Turn("two", "2"), Turn("three", "3")), "s", "system")
    assert dialogue.until_answer(1) == Conversation((Turn("one", "1"), Turn("two")), "s", "system")


def test_messages_are_those_of_chat_templates() -> None:
    picture = noise()
    dialogue = Conversation((Turn("one", "1", (Image(picture),)), Turn("two")), system="Be brief.")
    assert dialogue.messages(load_images=False) == [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "one"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "1"}]},
        {"role": "user", "content": [{"type": "text", "text": "two"}]},
    ]
    assert dialogue.messages()[1]["content"][0]["image"].tobytes() == picture.tobytes()


def test_a_conversation_travels_between_processes() -> None:
    dialogue = Conversation((Turn("one", "1", (Image("a.png"),)),), "s")
    assert dialogue.images
    assert pickle.loads(pickle.dumps(dialogue)) == dialogue
