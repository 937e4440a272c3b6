"""Small datasets in the published layout, and a cache of their own for every test."""

import json
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("VISUALCHAT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def record() -> Callable[..., dict]:
    """Make the fields of a record in LLaVA's format."""
    return _record


def _record(number: int, rounds: int = 1, pictures: int = 1) -> dict:
    """Asks about its own number; the pictures come in the first round."""
    names = [f"{number:06d}-{picture}.png" for picture in range(pictures)]
    conversations = []
    for turn in range(rounds):
        tags = "<image>\n" * pictures if turn == 0 else ""
        conversations.append({"from": "human", "value": f"{tags}Question {number}, round {turn}?"})
        conversations.append({"from": "gpt", "value": f"Answer {number}, round {turn}."})
    fields = {"id": str(number), "conversations": conversations}
    if names:
        fields["image"] = names[0] if pictures == 1 else names
    return fields


WriteRoot = Callable[..., Path]


@pytest.fixture
def write_root(tmp_path: Path) -> WriteRoot:
    """Write annotation files, given as lists of records, with the pictures that they name."""

    def write(detail: list[dict] = (), reasoning: list[dict] = (), dialogues: list[dict] = ()) -> Path:
        root = tmp_path / "data"
        images = root / "coco" / "train2017"
        images.mkdir(parents=True, exist_ok=True)
        (root / "llava").mkdir(exist_ok=True)
        names = ("detail_23k", "complex_reasoning_77k", "conversation_58k")
        for name, records in zip(names, (detail, reasoning, dialogues), strict=True):
            (root / "llava" / f"{name}.json").write_text(json.dumps(list(records)))
            for fields in records:
                shown = fields.get("image", [])
                for picture in [shown] if isinstance(shown, str) else shown:
                    color = (int(fields["id"]) % 256, 0, 0)
                    PIL.Image.new("RGB", (20, 16), color).save(images / picture)
        return root

    return write


@pytest.fixture
def cache_entries(cache: Path) -> Callable[[str], list[Path]]:
    """The cache's entries of a kind; what is only begun is none."""

    def entries(kind: str) -> list[Path]:
        found = cache.glob(f"{kind}/*/*")
        return sorted(path for path in found if path.is_dir() and not path.name.startswith("."))

    return entries
