"""The way of data from the disk to a batch: how fast on one core, and where the time goes.

    taskset -c 1 python -m benchmarks.data

Beside ours stands the plain loop: a picture is opened by Pillow, converted to RGB and given to CLIP's image
processor; a dialogue is rendered by the chat template, whole and once for each answer's prompt, and all of that
tokenised, to see where the answers are. Pictures are JPEGs of 640 x 480 made from the photographs of the
evaluation sets, dialogues in LLaVA's format. All contenders take turns in one process with one thread; the times
are of the processor, not of the clock, so others on the machine disturb little; medians over the rounds.
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader, Subset
from transformers import AutoTokenizer, CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.turns import take_turns, timed
from training.loaders import GlobalBatchSampler
from utils.commands import ROOT
from utils.conversation import Conversation, Image
from utils.data import Collator, EncodedDataset, Mixture, build_dataset
from utils.data.batching.packing import Lengths, measure, pack
from utils.data.readers.conversion_cache import use_cache_folder
from utils.model.image_preprocessing import Framing, normalised, preprocess
from utils.model.processing_visual_chat import VisualChatProcessor

_IMAGE_TOKENS = 257  # of CLIP ViT-L/14
_LENGTH, _IMAGES, _BATCH = 4096, 16, 16
_ENTRIES = 10**6


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="how often each contender is timed")
    parser.add_argument("--dialogues", type=int, default=600, help="how many dialogues")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    processor = _processor()
    with tempfile.TemporaryDirectory() as folder:
        use_cache_folder(Path(folder, "cache"))
        root = _write_world(Path(folder, "data"), arguments.dialogues)
        mixture = build_dataset(["llava_dial"], root, concatenate=3)
        images(processor, arguments.rounds)
        texts(processor, mixture, arguments.rounds)
        whole(processor, mixture, arguments.rounds)
        batches(processor, mixture)


def images(processor: VisualChatProcessor, rounds: int) -> None:
    """Pictures to pixels."""
    ours, pillows = processor.image_processor, CLIPImageProcessorPil()
    framing = Framing.of(ours)
    for quality in (75, 90, 95):
        encoded = _photographs(quality) * 4
        pictures = [Image(each) for each in encoded]
        decoded = [picture.pixels(framing.least_side) for picture in pictures]
        frames = [framing.frame(*each) for each in decoded]
        size = sum(map(len, encoded)) / len(encoded) / 1000
        print(f"\nimages: 640 x 480, JPEG quality {quality}, {size:.0f} kB")
        _compare(
            "images",
            len(encoded),
            rounds,
            {
                "plain loop, CLIPImageProcessor": lambda encoded=encoded: [
                    _plain(each, ours) for each in encoded
                ],
                "plain loop, CLIPImageProcessorPil": lambda encoded=encoded: [
                    _plain(each, pillows) for each in encoded
                ],
                "ours": lambda pictures=pictures: [preprocess(ours, [each]) for each in pictures],
                "  of that decoding": lambda pictures=pictures: [
                    each.pixels(framing.least_side) for each in pictures
                ],
                "  of that scaling and cropping": lambda decoded=decoded: [
                    framing.frame(*each) for each in decoded
                ],
                "  of that normalising": lambda frames=frames: [
                    normalised(ours, [each], 1) for each in frames
                ],
            },
        )


def texts(processor: VisualChatProcessor, mixture: Mixture, rounds: int) -> None:
    """Dialogues to ids and labels."""
    dialogues = list(mixture)
    turns = np.mean([len(each.turns) for each in dialogues])
    messages = [each.messages(load_images=False) for each in dialogues]
    rendered = [processor._renderer().render(each, processor._apply_template) for each in messages]
    tokens = np.mean([len(processor.encode(each, load_images=False).input_ids) for each in dialogues])
    print(f"\ntexts: {len(dialogues)} dialogues of {turns:.1f} turns and {tokens:.0f} tokens, no pictures")
    _compare(
        "conversations",
        len(dialogues),
        rounds,
        {
            "plain loop": lambda: [_plain_ids(processor, each) for each in dialogues],
            "ours": lambda: [processor.encode(each, load_images=False) for each in dialogues],
            "  of that rendering": lambda: [
                processor._renderer().render(each, processor._apply_template) for each in messages
            ],
            "  of that tokenising": lambda: [processor._encodings([each.text]) for each in rendered],
            "reading the records, before that": lambda: list(mixture),
        },
    )


def whole(processor: VisualChatProcessor, mixture: Mixture, rounds: int) -> None:
    """Records on the disk to rows, and through the loader to batches, as training takes them."""
    encoded = EncodedDataset(mixture, processor, _LENGTH, on_bad="skip")
    count = min(len(encoded), 100)
    shown = np.mean([len(mixture[index].images) for index in range(count)])
    loader = DataLoader(
        Subset(encoded, range(count)),
        _BATCH,
        collate_fn=Collator(processor.tokenizer.eos_token_id),
    )
    print(f"\nall of it: {count} conversations with {shown:.1f} pictures each, quality 90, from the disk")
    _compare(
        "conversations",
        count,
        rounds,
        {
            "plain loop": lambda: [_plain_row(processor, mixture[index]) for index in range(count)],
            "ours": lambda: [encoded[index] for index in range(count)],
            f"ours, the loader's batches of {_BATCH}": lambda: list(loader),
        },
    )


def batches(processor: VisualChatProcessor, mixture: Mixture) -> None:
    """What of a batch is padding; packing a million conversations."""
    dataset = EncodedDataset(mixture, processor, _LENGTH)
    lengths = measure(dataset.without_pixels(0))
    print(f"\nbatches of {_BATCH} out of {len(dataset)} conversations: padding")
    for name, known in (("at random", None), ("grouped by length", lambda epoch: lengths.tokens)):
        sampler = GlobalBatchSampler(len(dataset), _BATCH, seed=1, lengths=known)
        taken = [lengths.tokens[batch] for batch in sampler]
        padding = 1 - sum(each.sum() for each in taken) / sum(each.max() * len(each) for each in taken)
        print(f"  {name:<40}{padding:>8.1%}")
    for name, sizes in ((f"packed into rows of {_LENGTH}", lengths), ("packed, of a million", _a_million())):
        start = time.process_time()
        rng = np.random.default_rng(1)
        rows = len(pack(sizes.tokens, sizes.images, _LENGTH, _IMAGES, rng))
        padding = 1 - sizes.tokens.sum() / (rows * _LENGTH)
        print(f"  {name:<40}{padding:>8.1%}   {rows:,} rows, {time.process_time() - start:.2f} s")


def _compare(unit: str, count: int, rounds: int, contenders: dict[str, Callable[[], object]]) -> None:
    """Time all in turn; print medians, and how many times as fast as the first each whole one was in a round."""
    taken = take_turns({name: (lambda _, run=run: timed(run)) for name, run in contenders.items()}, rounds)
    plain = np.array(next(iter(taken.values())))
    for name, seconds in taken.items():
        each = float(np.median(seconds)) / count
        part = name.startswith(" ") or name.startswith("reading")
        faster = "" if part else f"{np.median(plain / seconds):>7.2f} x"
        print(f"  {name:<40}{each * 1e3:>8.3f} ms   {1 / each:>9,.0f} {unit}/s{faster}")


def _plain(encoded: bytes, processor: CLIPImageProcessor | CLIPImageProcessorPil) -> torch.Tensor:
    picture = PIL.Image.open(io.BytesIO(encoded)).convert("RGB")
    return processor(picture, return_tensors="pt")["pixel_values"]


def _plain_ids(processor: VisualChatProcessor, conversation: Conversation) -> list[int]:
    messages = conversation.messages(load_images=False)
    tokenizer = processor.tokenizer
    labels = ids = tokenizer(processor.apply_chat_template(messages), add_special_tokens=False)["input_ids"]
    for end in range(1, len(messages), 2):
        asked = processor.apply_chat_template(messages[:end], add_generation_prompt=True)
        start = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
        answered = processor.apply_chat_template(messages[: end + 1])
        stop = len(tokenizer(answered, add_special_tokens=False)["input_ids"])
        labels = labels[:start] + ids[start:stop] + labels[stop:]
    return labels


def _plain_row(
    processor: VisualChatProcessor, conversation: Conversation
) -> tuple[list[int], list[torch.Tensor]]:
    pictures = [Path(image.source).read_bytes() for image in conversation.images]
    return _plain_ids(processor, conversation), [_plain(each, processor.image_processor) for each in pictures]


def _processor() -> VisualChatProcessor:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "assets" / "tiny_llama")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return VisualChatProcessor(CLIPImageProcessor(), tokenizer, _IMAGE_TOKENS)


def _photographs(quality: int) -> list[bytes]:
    encoded = []
    for path in sorted((ROOT / "eval" / "eval_data" / "image").glob("*.jpg")):
        buffer = io.BytesIO()
        picture = PIL.Image.open(path).convert("RGB").resize((640, 480), PIL.Image.Resampling.LANCZOS)
        picture.save(buffer, "JPEG", quality=quality)
        encoded.append(buffer.getvalue())
    return encoded


def _write_world(root: Path, dialogues: int) -> Path:
    """LLaVA's dialogues: one picture, one to five rounds, answers of a few or of many words."""
    rng = np.random.default_rng(0)
    words = ("red", "blue", "circle", "square", "left", "above", "two", "which", "image")

    def text(least: int, most: int) -> str:
        return " ".join(rng.choice(words, int(rng.integers(least, most))))

    pictures = root / "coco" / "train2017"
    pictures.mkdir(parents=True)
    names = []
    for number, encoded in enumerate(_photographs(90)):
        names.append(f"{number:012d}.jpg")
        (pictures / names[-1]).write_bytes(encoded)
    records = []
    for number in range(dialogues):
        rounds = [
            {"from": speaker, "value": text(6, 16) if speaker == "human" else text(3, 120)}
            for _ in range(rng.integers(1, 6))
            for speaker in ("human", "gpt")
        ]
        rounds[0]["value"] = f"<image>\n{rounds[0]['value']}"
        records.append({"id": str(number), "image": names[number % len(names)], "conversations": rounds})
    (root / "llava").mkdir()
    (root / "llava" / "conversation_58k.json").write_text(json.dumps(records))
    return root


def _a_million() -> Lengths:
    rng = np.random.default_rng(0)
    images = rng.choice([0, 1, 1, 1, 2, 2, 3, 8], _ENTRIES)
    tokens = np.minimum(images * _IMAGE_TOKENS + 40 + rng.lognormal(5, 0.7, _ENTRIES).astype(int), _LENGTH)
    return Lengths(tokens, images)


if __name__ == "__main__":
    main()
