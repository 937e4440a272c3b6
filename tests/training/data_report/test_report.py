"""What is measured and shown is what training would learn from."""

import json
import re

import PIL.Image
import pytest

from training.data_report.measure import measure
from training.data_report.page import Report, dump_samples, write_report
from training.data_report.samples import draw_samples
from utils.data import BadRecords, EncodedDataset, PackedDataset, build_dataset
from utils.model import build_processor


@pytest.fixture(scope="module")
def processor(world):
    return build_processor(str(world.language_model), str(world.vision_model))


@pytest.fixture
def mixture(world, tmp_path, monkeypatch):
    monkeypatch.setenv("VISUALCHAT_CACHE", str(tmp_path / "cache"))
    return build_dataset(["llava", "llava_dial"], world.data, concatenate=[2, 1], bad=BadRecords())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("max_seq_len", [4096, 100])
def test_measured_is_what_is_encoded(mixture, processor, workers, max_seq_len) -> None:
    measured, bad = measure([mixture], processor, max_seq_len, workers)
    encoded = EncodedDataset(mixture, processor, max_seq_len)
    rows = [encoded[index] for index in range(len(encoded))]
    assert measured.tokens.tolist() == [len(row.input_ids) for row in rows]
    assert measured.learned.tolist() == [int((row.labels >= 0).sum()) for row in rows]
    assert measured.images.tolist() == [len(row.pixel_values) for row in rows]
    assert measured.turns.tolist() == [len(row.turn_ends) for row in rows]
    assert (measured.cut_turns > 0).sum() == encoded.cut.conversations
    assert measured.cut_turns.sum() == encoded.cut.turns
    assert (max_seq_len == 100) == (measured.cut_turns.sum() > 0)
    assert (measured.dataset == "llava_dial").sum() == 30 and not bad


def test_related_records_are_counted_one_by_one(world, processor, tmp_path, monkeypatch) -> None:
    """Of six instructions two pairs are one conversation each; a picture of the second pair is missing."""
    monkeypatch.setenv("VISUALCHAT_CACHE", str(tmp_path / "cache"))
    pictures = ["000000000001", "000000000001", "000000000002", "nowhere", "nowhere", "000000000003"]
    instructions = {
        f"X_{number}": {
            "image_ids": [f"CGD_IMG_{name}"],
            "instruction": f"What is {number}?",
            "answer": "It is red.",
            "rel_ins_ids": [f"X_{number - 1}"],
        }
        for number, name in enumerate(pictures)
    }
    (tmp_path / "MIMIC-IT").mkdir()
    (tmp_path / "MIMIC-IT" / "CGD_instructions.json").write_text(json.dumps({"data": instructions}))
    (tmp_path / "coco").symlink_to(world.data / "coco")
    mixture = build_dataset(["otter_mimicit_cgd"], tmp_path, bad=BadRecords())
    measured, bad = measure([mixture], processor, 512, workers=0)
    assert [each.place.index for each in bad] == [3]
    report = Report("", {}, [], bad=bad, record_counts=mixture.record_counts, measured=measured)
    write_report(report, tmp_path / "page.html")
    cells = re.findall(r'data-label="([^"]*)"[^>]*>(\d+)</td>', (tmp_path / "page.html").read_text())
    counts = dict(cells)
    assert (counts["records"], counts["used"], counts["bad"], counts["conversations"]) == ("6", "4", "2", "3")
    assert "data:image/png" in (tmp_path / "page.html").read_text()  # the histograms


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("max_seq_len", [512, 100])
def test_samples_show_each_token_and_what_is_learned(mixture, processor, packed, max_seq_len) -> None:
    rows = encoded = EncodedDataset(mixture, processor, max_seq_len, on_bad="skip")
    if packed:
        rows = PackedDataset(encoded, max_seq_len, 16, seed=3)
    drawn = draw_samples(rows, 8, seed=1)
    samples = [sample for row in drawn for sample in row.samples]
    assert len(samples) >= 8 and {sample.dataset for sample in samples} == {"llava", "llava_dial"}
    assert [row.samples[0].sources for row in drawn] == [
        row.samples[0].sources for row in draw_samples(rows, 8, seed=1)
    ]
    for sample in samples:
        expected = encoded.encode(sample.conversation)
        kept = [piece for piece in sample.pieces if not piece.is_cut]
        assert [number for piece in kept for number in piece.ids] == expected.input_ids.tolist()
        learned = [piece.is_learned for piece in kept for _ in piece.ids]
        assert learned == (expected.labels >= 0).tolist()
        assert sample.images == len(expected.pixel_values) and sample.turns == len(expected.turn_ends)
        answer = "".join(piece.text for piece in kept if piece.is_learned)
        assert sample.conversation.turns[0].answer in answer
        assert sample.text.count("<image>") == len(sample.conversation.images)
    if packed:
        assert all(row.tokens <= max_seq_len for row in drawn)


@pytest.mark.parametrize("summary", ["none", "mean"])
def test_tiles_are_counted_and_shown(world, tmp_path, monkeypatch, summary) -> None:
    monkeypatch.setenv("VISUALCHAT_CACHE", str(tmp_path / "cache"))
    PIL.Image.effect_noise((40, 40), 60).save(tmp_path / "large.png")  # 2 x 2 tiles of 16 x 16
    record = {"image": "large.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}]}
    record["conversations"].append({"from": "gpt", "value": "red"})
    file = tmp_path / "own.json"
    file.write_text(json.dumps([record]))
    mixture = build_dataset([str(file)], tmp_path, bad=BadRecords())
    processor = build_processor(
        str(world.language_model), str(world.vision_model), image_summary=summary, tiles=4
    )
    encoded = EncodedDataset(mixture, processor, 512, on_bad="skip")
    measured, _ = measure([mixture], processor, 512, workers=0)
    assert (measured.images.tolist(), measured.tokens.tolist()) == ([1 + 4], [len(encoded[0].input_ids)])
    [row] = draw_samples(encoded, 1, seed=0)
    [sample] = row.samples
    assert [each for piece in sample.pieces for each in piece.ids] == encoded[0].input_ids.tolist()
    shown = [piece.picture for piece in sample.pieces if piece.picture]
    assert [(each.number, each.width, each.height) for each in shown] == [(1, 40, 40), *[(1, 16, 16)] * 4]
    assert sample.text.count("<image>") == 5 and "\nTile 2,1: <image>" in sample.text


def test_damaged_records_are_not_shown(world, processor, mixture, tmp_path) -> None:
    class Damaged(EncodedDataset):
        def encode_text(self, conversation):
            if conversation.source != "llava/conversation_58k.json#7":
                raise conversation.error("damaged")
            return super().encode_text(conversation)

    [row] = draw_samples(Damaged(mixture, processor, 512), 5, seed=0)
    assert row.samples[0].sources == ("llava/conversation_58k.json#7",)
    dump_samples(Damaged(mixture, processor, 512), tmp_path, seed=0)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "index.html",
        "sample_0.txt",
        "sample_0_image_1.png",
    ]
    assert "llava/conversation_58k.json#7" in (tmp_path / "index.html").read_text()
