"""Writes a small miniature world in every layout that `--dataset_names` knows, and in the shapes of own data.

Each dataset's files stand where, and look as, its publishers have them.
What the published files are known for is there too, once each: a book cover of one pixel (OCR-VQA), an image
id without a picture and a record with none at all (TVC), a record with more pictures than are taken (VST), a
dialogue that ends with a question (SparklesDialogueCC), a pair whose first picture LLaVA does not know (CGD).
eval/miniature.json is an evaluation set: dialogues of two and three images, with reference answers and kinds.

Own data come in the three shapes that people have, once in each kind of file that training reads:

own/llava.json      LLaVA: `image` is a path, a list of them, or not there (text only)
own/sharegpt.jsonl  ShareGPT: `images` beside `conversations`, and a system text
own/openai.parquet  OpenAI: pictures stand in the messages, as paths and as data URLs
own/saved/          a folder saved by `datasets`, which holds the pictures themselves
own/images/         the pictures of the others: `--image_folder`
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import datasets
import PIL.Image
import pyarrow as pa
import pyarrow.parquet

from helper.demonstration.dialogues import Round
from helper.miniature.album import CHOICES, DESCRIBE, Album, caption
from utils.atomic import atomic_directory

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


_MANIFEST = "layouts.json"
_TOO_MANY_IMAGES = 9
_SPARKLES_TAG = "<Img><ImageHere></Img>"


def write_layouts(root: Path, records: int = 12, seed: int = 1234) -> bool:
    """Write `records` records, at least 4, for each dataset into `root`, unless the same are there already.

    Returns whether they were written. Raises `FileExistsError` where `root` holds something else, and
    `ValueError` for fewer than 4 records.
    """
    if records < 4:
        raise ValueError(f"{records} records are too few to show every case: ask for at least 4")
    wanted, known = {"records": records, "seed": seed}, root / _MANIFEST
    if known.exists() and json.loads(known.read_text()) == wanted:
        return False
    if root.exists() and not known.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty and holds no layouts: name another folder")
    with atomic_directory(root) as folder:
        for layout in (*_WRITERS, write_own_data):
            # Seeded by name: a layout stays as it is when others are added.
            layout(folder, records, Album([seed, crc32(layout.__name__.encode())]))
        _write_json(folder / _MANIFEST, wanted)
    return True


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _llava_and_cgd(root: Path, records: int, album: Album) -> None:
    """LLaVA's three files about the same COCO pictures, and CGD's pairs of those pictures."""
    known = {f"{number:012d}": album.thing() for number in range(1, records + 1)}
    unknown = {f"{number:012d}": album.thing() for number in range(records + 1, records + 3)}
    for name, thing in (known | unknown).items():
        album.draw(thing, root / "coco" / "train2017" / f"{name}.jpg")

    def record(name: str, rounds: list[Round]) -> dict:
        conversations = []
        for turn in rounds:
            # The publishers put the tag before some questions and after others.
            first, last = ("<image>\n", "") if album.rng.random() < 0.5 else ("", "\n<image>")
            tagged = f"{first}{turn.question}{last}" if turn.new else turn.question
            conversations += [{"from": "human", "value": tagged}, {"from": "gpt", "value": turn.answer}]
        return {"id": name, "image": f"{name}.jpg", "conversations": conversations}

    def file(dialogue: Callable[[str], list[Round]]) -> list[dict]:
        return [record(name, dialogue(thing)) for name, thing in known.items()]

    described = file(lambda thing: [Round(DESCRIBE, caption(thing), "description", (thing,))])
    _write_json(root / "llava" / "detail_23k.json", described)
    _write_json(root / "llava" / "complex_reasoning_77k.json", file(lambda thing: album.dialogue([thing])))
    talks = file(lambda thing: album.dialogue([thing], rounds=3))
    _write_json(root / "llava" / "conversation_58k.json", talks)

    names, strangers = list(known), list(unknown)
    pairs = [(names[number], names[number - 1]) for number in range(records - 2)]
    pairs += [(names[0], strangers[0]), (strangers[1], names[0])]
    data: dict[str, Any] = {}
    for number, pair in enumerate(pairs):
        things = [(known | unknown)[name] for name in pair]
        _add_instructions(data, "CGD", number, [f"CGD_IMG_{name}" for name in pair], things, album)
    _write_json(root / "MIMIC-IT" / "CGD_instructions.json", {"meta": {"author": "miniature"}, "data": data})


def _mimic_it(root: Path, records: int, album: Album) -> None:
    """SD, SN, TVC and VST: pictures as base64 in one object, instructions in another."""
    for letters, count in {"SD": 2, "SN": 3, "TVC": 3, "VST": 4}.items():
        store: dict[str, str] = {}
        data: dict[str, Any] = {}
        counts = [count] * records + [_TOO_MANY_IMAGES] * (letters == "VST")
        for number, images in enumerate(counts):
            things = {f"{letters}_IMG_{len(store) + place:06d}": album.thing() for place in range(images)}
            store |= {name: base64.b64encode(album.encoded(each)).decode() for name, each in things.items()}
            _add_instructions(data, letters, number, list(things), list(things.values()), album)
        if letters == "TVC":
            del store["TVC_IMG_000001"]
            data["TVC_INS_lost"] = data["TVC_INS_000000_0"] | {"image_ids": ["TVC_IMG_lost"]}
        _write_json(root / "MIMIC-IT" / f"{letters}.json", store)
        content = {"meta": {"author": "miniature"}, "data": data}
        _write_json(root / "MIMIC-IT" / f"{letters}_instructions.json", content)


def _add_instructions(
    data: dict, letters: str, number: int, image_ids: list[str], things: list[str], album: Album
) -> None:
    """One or two instructions about the same pictures, related to each other where they are two."""
    ids = [f"{letters}_INS_{number:06d}_{place}" for place in range(1 + number % 2)]
    for name in ids:
        [asked] = album.dialogue(things)
        data[name] = {
            "instruction": asked.question,
            "answer": asked.answer,
            "image_ids": image_ids,
            "rel_ins_ids": [other for other in ids if other != name],
        }


def _aokvqa(root: Path, records: int, album: Album) -> None:
    annotations = []
    for number in range(1, records + 1):
        thing, image_id = album.thing(), 500_000 + number
        album.draw(thing, root / "coco" / "train2017" / f"{image_id:012d}.jpg")
        [asked] = album.dialogue([thing])
        options = [each for each in CHOICES[asked.kind] if each != asked.answer][:3]
        choices = [*options, asked.answer]
        choices = [choices[place] for place in album.rng.permutation(len(choices))]
        annotations.append(
            {
                "split": "train",
                "image_id": image_id,
                "question_id": f"miniature{number}",
                "question": asked.question,
                "choices": choices,
                "correct_choice_idx": choices.index(asked.answer),
                "direct_answers": [asked.answer] * 3,
                "rationales": [caption(thing), f"a picture of a {thing}"],
            }
        )
    _write_json(root / "aokvqa" / "annotations" / "aokvqa_v1p0_train.json", annotations)


def _coco_caption(root: Path, records: int, album: Album) -> None:
    images = []
    for number in range(1, records + 1):
        thing, part = album.thing(), "val2014" if number % 3 == 0 else "train2014"
        name = f"COCO_{part}_{number:012d}.jpg"
        album.draw(thing, root / "coco" / "2014" / name)
        captions = (caption(thing), f"a picture of {caption(thing)}")
        sentences = [{"raw": caption, "tokens": caption.split(), "imgid": number} for caption in captions]
        images.append({"filename": name, "filepath": part, "split": "train", "sentences": sentences})
    _write_json(root / "coco_caption" / "dataset.json", {"dataset": "coco", "images": images})


def _minigpt4(root: Path, records: int, album: Album) -> None:
    annotations = []
    for number in range(2, records + 2):
        thing = album.thing()
        album.draw(thing, root / "cc_sbu_align" / "image" / f"{number}.jpg")
        annotations.append({"image_id": str(number), "caption": caption(thing)})
    _write_json(root / "cc_sbu_align" / "filter_cap.json", {"annotations": annotations})


def _ocr_vqa(root: Path, records: int, album: Album) -> None:
    covers, images = {}, root / "OCR_VQA" / "images"
    for number in range(1, records + 1):
        thing, ending = album.thing(), (".jpg", ".png", ".gif")[number % 3]
        name = f"{number:010d}"
        album.draw(thing, images / f"{name}{ending}")
        asked = album.dialogue([thing], rounds=3)
        covers[name] = {
            "imageURL": f"http://images.example/I/{number}-cover{ending}",
            "questions": [each.question for each in asked],
            "answers": [each.answer for each in asked],
            "title": caption(thing),
            "split": 1,
        }
    PIL.Image.new("RGB", (1, 1)).save(images / "lost.gif")
    covers["lost"] = covers["0000000001"] | {"imageURL": "http://images.example/I/lost.gif"}
    _write_json(root / "OCR_VQA" / "dataset.json", covers)


def _sparkles(root: Path, records: int, album: Album) -> None:
    for part in ("CC", "VG"):
        folder, dialogues, image_id = root / f"SparklesDialogue{part}", [], 0
        for _ in range(records // 2):
            things = [album.thing() for _ in range(int(album.rng.integers(2, 4)))]
            image_ids = [image_id + place for place in range(1, len(things) + 1)]
            image_id = image_ids[-1]
            for name, thing in zip(image_ids, things, strict=True):
                album.draw(thing, folder / "images" / f"{name}.jpg")
            dialogues.append({"dialogue": _spoken(album.dialogue(things, rounds=3), image_ids)})
        if part == "CC":
            dialogues.append({"dialogue": dialogues[0]["dialogue"][:-1]})
        _write_json(folder / "annotations" / f"SparklesDialogue{part}.json", dialogues)


def _spoken(rounds: list[Round], image_ids: list[int]) -> list[dict]:
    """Messages that call a picture IMAGE#id, with a tag where it is shown."""

    def named(text: str) -> str:
        for place, image_id in enumerate(image_ids, start=1):
            text = text.replace(f"image {place}", f"IMAGE#{image_id}")
        return text

    messages, shown = [], 0
    for turn in rounds:
        new = image_ids[shown : shown + len(turn.new)]
        shown += len(new)
        here = "".join(f"here is IMAGE#{image_id}{_SPARKLES_TAG}. " for image_id in new)
        question: dict[str, Any] = {"role": "user", "content": here + named(turn.question)}
        if new:
            question["images"] = [{"image_id": image_id} for image_id in new]
        messages += [question, {"role": "assistant", "content": named(turn.answer)}]
    return messages


def _evaluation(root: Path, records: int, album: Album) -> None:
    dialogues, drawn = {}, 0
    for number in range(records):
        turns = []
        for turn in album.dialogue([album.thing() for _ in range(2 + number % 2)], rounds=4):
            names = []
            for thing in turn.new:
                drawn += 1
                names.append(f"image/{drawn:012d}.jpg")
                album.draw(thing, root / "eval" / names[-1])
            turns.append([turn.question, " ".join(names), turn.answer, turn.kind])
        dialogues[f"miniature-{number + 1:03d}"] = turns
    _write_json(root / "eval" / "miniature.json", dialogues)


_WRITERS: tuple[Callable[[Path, int, Album], None], ...] = (
    _llava_and_cgd,
    _mimic_it,
    _aokvqa,
    _coco_caption,
    _minigpt4,
    _ocr_vqa,
    _sparkles,
    _evaluation,
)
