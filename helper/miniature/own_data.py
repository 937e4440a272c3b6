"""Writes own data in the three shapes that people have, once in each kind of file that training reads.

own/llava.json      LLaVA: `image` is a path, a list of them, or not there (text only)
own/sharegpt.jsonl  ShareGPT: `images` beside `conversations`, and a system text
own/openai.parquet  OpenAI: pictures stand in the messages, as paths and as data URLs
own/saved/          a folder saved by `datasets`, which holds the pictures themselves
own/images/         the pictures of the others: `--image_folder`
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet

from helper.demonstration.dialogues import Round
from helper.miniature.album import Album, caption

SYSTEM = "you are a powerful vision-language assistant."
_TAG = "<image>\n"


def write_own_data(root: Path, records: int, album: Album) -> None:
    """Write `records` records in each of the four files into `root`/own."""
    own = root / "own"
    (own / "images").mkdir(parents=True)
    llava = [_llava(number, album, own / "images") for number in range(records)]
    (own / "llava.json").write_text(json.dumps(llava))
    sharegpt = [_sharegpt(f"sharegpt-{number}", album, own / "images") for number in range(records)]
    (own / "sharegpt.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in sharegpt))
    openai = [_openai(number, album, own / "images") for number in range(records)]
    pyarrow.parquet.write_table(pa.Table.from_pylist(openai), own / "openai.parquet")
    _saved(records, album).save_to_disk(own / "saved")


def _dialogue(album: Album, count: int) -> tuple[list[str], list[Round]]:
    things = [album.thing() for _ in range(count)]
    return things, album.dialogue(things, rounds=2)


def _messages(said: list[tuple[str, str]], roles: tuple[str, str], keys: tuple[str, str]) -> list[dict]:
    """Questions and answers as messages: `keys` of role and text, `roles` of who asks and who answers."""
    return [
        dict(zip(keys, message, strict=True)) for pair in said for message in zip(roles, pair, strict=True)
    ]


def _tagged(rounds: list[Round]) -> list[tuple[str, str]]:
    return [(_TAG * len(turn.new) + turn.question, turn.answer) for turn in rounds]


def _drawn(things: list[str], name: str, album: Album, folder: Path) -> list[str]:
    names = [f"{name}-{place}.jpg" for place in range(len(things))]
    for thing, file in zip(things, names, strict=True):
        album.draw(thing, folder / file)
    return names


def _llava(number: int, album: Album, folder: Path) -> dict:
    names: list[str] = []
    if number % 4 == 3:
        thing = album.thing()
        said = [(f"this is what you know. {caption(thing)}. what shape is it?", thing.split()[1])]
    else:
        things, rounds = _dialogue(album, 1 + number % 2)
        names, said = _drawn(things, f"llava-{number}", album, folder), _tagged(rounds)
    record = {"id": str(number), "conversations": _messages(said, ("human", "gpt"), ("from", "value"))}
    return record | ({"image": names[0] if len(names) == 1 else names} if names else {})


def _sharegpt(name: str, album: Album, folder: Path) -> dict:
    things, rounds = _dialogue(album, 2)
    messages = _messages(_tagged(rounds), ("human", "gpt"), ("from", "value"))
    return {"conversations": messages, "images": _drawn(things, name, album, folder), "system": SYSTEM}


def _openai(number: int, album: Album, folder: Path) -> dict:
    things, rounds = _dialogue(album, 1)
    if number % 2:
        url = "data:image/jpeg;base64," + base64.b64encode(album.encoded(things[0])).decode()
    else:
        url = _drawn(things, f"openai-{number}", album, folder)[0]
    messages: list[dict] = [{"role": "system", "content": [{"type": "text", "text": SYSTEM}]}]
    for turn in rounds:
        picture: list[dict] = [{"type": "image_url", "image_url": {"url": url}}] if turn.new else []
        question = [*picture, {"type": "text", "text": turn.question}]
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    return {"messages": messages}


def _saved(records: int, album: Album) -> datasets.Dataset:
    rows = []
    for _ in range(records):
        things, rounds = _dialogue(album, 2)
        messages = _messages(_tagged(rounds), ("user", "assistant"), ("role", "content"))
        images = [{"bytes": album.encoded(thing), "path": None} for thing in things]
        rows.append({"messages": messages, "images": images})
    text = datasets.Value("string")
    features = datasets.Features(
        {"messages": [{"role": text, "content": text}], "images": [datasets.Image()]}
    )
    return datasets.Dataset.from_list(rows, features=features)
