"""The loss of each dataset: worked out by hand, and against a plain loop over a run's evaluation data."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.metrics.loss_by_dataset import LossByDataset
from utils.data import EncodedDataset, build_dataset, split_dataset
from utils.data.bad_records import Origin, RecordPlace

CPU = torch.device("cpu")


def origin(dataset: str, supervised: int) -> Origin:
    return Origin((RecordPlace(dataset, "file.json", 0),), supervised)


def test_means_over_the_tokens_of_each_dataset() -> None:
    losses = LossByDataset(["a", "/data/b", "never"])
    losses.add([origin("a", 2), origin("/data/b", 1), origin("a", 1)], torch.tensor([1.0, 2.0, 10.0, 6.0]))
    losses.add([], torch.tensor([]))  # a micro-batch in which nothing is learned
    losses.add([origin("/data/b", 2)], torch.tensor([1.0, 1.0]))
    assert losses.read(CPU) == {"loss/a": 3.0, "loss/b": 4.0}
    assert losses.read(CPU) == {}  # begun anew
    losses.add([origin("/data/b", 1)], torch.tensor([7.0]))
    assert losses.read(CPU, "eval_loss") == {"eval_loss/b": 7.0}


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_two_processes_that_accumulate_learn_and_evaluate_as_a_plain_loop(
    trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: bool
) -> None:
    """ZeRO-3 on two processes, two micro-batches a step: the first and the last evaluation of each dataset."""
    from utils.model.checkpoint import load_checkpoint

    monkeypatch.setenv("VISUALCHAT_CACHE", str(tmp_path / "cache"))
    flags = {
        "data_train_split_ratio": 0.6,
        "dataset_concatenate_samples": 2,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "zero_stage": 3,
        "packing": packing,
    }
    output = tmp_path / "run"
    trainings.run(trainings.arguments(output, **flags), processes=2, timeout=900)
    history = trainings.history(output)
    evaluation = [line for line in history if "eval_loss" in line][-1]
    model, processor = load_checkpoint(output / "final")
    model.eval()
    mixture = build_dataset(["llava", "llava_dial"], trainings.world.data, concatenate=2)
    training, held_out = split_dataset(mixture, 0.6)
    # In fp32, as it was trained: a full checkpoint holds every weight that the evaluation used.
    assert load_file(output / "final" / "model.safetensors")["lm_head.weight"].dtype == torch.float32
    assert mean_losses(model, processor, held_out) == {
        name: pytest.approx(evaluation[f"eval_loss/{name}"], abs=1e-5) for name in ("llava", "llava_dial")
    }
    first, *_ = [line for line in history if "loss" in line]
    assert {name for name in first if name.startswith("loss/")} <= {"loss/llava", "loss/llava_dial"}
    between = sorted(value for name, value in first.items() if name.startswith("loss/"))
    assert between[0] - 1e-6 <= first["loss"] <= between[-1] + 1e-6
    assert len(training) > 8


def mean_losses(model, processor, mixture) -> dict[str, float]:
    """Over the supervised tokens of each dataset, one conversation at a time."""
    encoded = EncodedDataset(mixture, processor, 256)
    totals: dict[str, list[float]] = {}
    for index in range(len(encoded)):
        row = encoded[index]
        inputs = {
            "input_ids": torch.from_numpy(row.input_ids)[None],
            "labels": torch.from_numpy(row.labels)[None],
            "pixel_values": row.pixel_values,
        }
        with torch.no_grad():
            loss = model(**inputs, num_items_in_batch=1).loss.item()
        total = totals.setdefault(mixture.records_of(index)[0].place.dataset, [0.0, 0])
        total[0] += loss
        total[1] += int((row.labels >= 0).sum())
    return {name: loss / tokens for name, (loss, tokens) in totals.items()}
