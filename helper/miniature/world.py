"""Writes the miniature world to disk in the published datasets' own layout.

    {root}/coco/train2017/000000000001.jpg ...
    {root}/llava/detail_23k.json             one picture, one round: describe it
    {root}/llava/complex_reasoning_77k.json  one picture, one round: a question about "the image"
    {root}/llava/conversation_58k.json       one to three pictures, many rounds ("image 2", comparisons)
    {root}/eval/miniature.json, {root}/eval/image/*.jpg    held-out scenes, with reference answers and kinds

A record with several pictures lists them under `image` and has an `<image>` tag where each is shown, as LLaVA's
interleaved releases have it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from helper.miniature.album import Album
from helper.miniature.dialogues import DESCRIPTION, KINDS, SINGLE_IMAGE_KINDS, Round, make_dialogue
from helper.miniature.files import write_json, write_once
from helper.miniature.scenes import Scene, sample_scene


@dataclass(frozen=True)
class WorldSize:
    """How many records each file gets, named as the published files are; `rounds` is a conversation's length."""

    descriptions: int = 3000
    reasoning: int = 1000
    conversations: int = 3000
    eval_dialogues: int = 100
    rounds: int = 8
    eval_rounds: int = 8
    max_images: int = 3


def write_world(root: Path, size: WorldSize, seed: int) -> bool:
    """Writes the world into `root` unless the same one is there already. Returns whether it was written.

    Raises:
        FileExistsError: `root` holds something else.
    """
    wanted = {**asdict(size), "seed": seed}

    def write(folder: Path) -> None:
        total = size.descriptions + size.reasoning + size.conversations + size.eval_dialogues
        with tqdm(total=total, desc="drawing the miniature world", unit="dialogue") as bar:
            _write_training(folder, size, seed, bar.update)
            _write_evaluation(folder, size, seed, bar.update)

    return write_once(root, "world.json", wanted, "miniature world", write)


def _write_training(root: Path, size: WorldSize, seed: int, tick: Callable[[], object]) -> None:
    album = Album([seed, 0])
    pictures = _NumberedPictures(root / "coco" / "train2017", album)
    rng = album.rng

    def scenes(count: int) -> list[Scene]:
        return [album.scene() for _ in range(count)]

    def records(count: int, dialogue: Callable[[], list[Round]]) -> list[dict]:
        made = []
        for _ in range(count):
            made.append(_llava_record(dialogue(), pictures))
            tick()
        return made

    def description() -> list[Round]:
        return make_dialogue(rng, scenes(1), 1, numbered=False, kinds=(DESCRIPTION,))

    def question() -> list[Round]:
        return make_dialogue(rng, scenes(1), 1, numbered=False, kinds=SINGLE_IMAGE_KINDS)

    def conversation() -> list[Round]:
        shown = scenes(int(rng.integers(1, size.max_images + 1)))
        return make_dialogue(rng, shown, size.rounds, kinds=(*KINDS, DESCRIPTION))

    write_json(root / "llava" / "detail_23k.json", records(size.descriptions, description))
    write_json(root / "llava" / "complex_reasoning_77k.json", records(size.reasoning, question))
    write_json(root / "llava" / "conversation_58k.json", records(size.conversations, conversation))


def _write_evaluation(root: Path, size: WorldSize, seed: int, tick: Callable[[], object]) -> None:
    album = Album([seed, 1])
    pictures = _NumberedPictures(root / "eval" / "image", album)
    rng = album.rng
    dialogues = {}
    for index in range(size.eval_dialogues):
        count = 2 + index % (size.max_images - 1)  # several pictures in every dialogue
        scenes = [sample_scene(rng, held_out=True) for _ in range(count)]
        dialogue = make_dialogue(rng, scenes, size.eval_rounds)
        dialogues[f"miniature-{index + 1:03d}"] = [
            [
                turn.question,
                " ".join(f"image/{pictures.add(scene)}" for scene in turn.new_scenes),
                turn.answer,
                turn.kind,
            ]
            for turn in dialogue
        ]
        tick()
    write_json(root / "eval" / "miniature.json", dialogues)


def _llava_record(dialogue: list[Round], pictures: _NumberedPictures) -> dict:
    names, conversations = [], []
    for turn in dialogue:
        new = [pictures.add(scene) for scene in turn.new_scenes]
        names += new
        conversations.append({"from": "human", "value": "<image>\n" * len(new) + turn.question})
        conversations.append({"from": "gpt", "value": turn.answer})
    identity = names[0].removesuffix(".jpg")
    return {"id": identity, "image": names[0] if len(names) == 1 else names, "conversations": conversations}


class _NumberedPictures:
    """Draws scenes into numbered JPEG files, named as COCO's are."""

    def __init__(self, folder: Path, album: Album) -> None:
        self._folder, self._album, self._count = folder, album, 0

    def add(self, scene: Scene) -> str:
        self._count += 1
        name = f"{self._count:012d}.jpg"
        self._album.draw(scene, self._folder / name)
        return name
