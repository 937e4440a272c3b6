"""The order of a run over real mixtures: by seed and epoch alone, resumed anywhere."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import skip_first_batches
from torch.utils.data import DataLoader, Dataset

from training.loaders import GlobalBatchSampler, PaddedDataset
from utils.data import Mixture, build_dataset

SEED = 7
SIZE = 60


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Captions, whose questions are drawn, and instructions, whose rounds are."""
    folder = tmp_path_factory.mktemp("data")
    captions = [{"image_id": str(number), "caption": f"Caption {number}."} for number in range(SIZE)]
    instructions = {
        f"X_{number}": {
            "image_ids": [f"CGD_IMG_{number // 3:012d}", f"CGD_IMG_{number // 3 + 1:012d}"],
            "instruction": f"Question {number}?",
            "answer": f"Answer {number}.",
            "rel_ins_ids": [f"X_{number - 1}"],
        }
        for number in range(SIZE)
    }
    for image_folder in ("cc_sbu_align/image", "coco/train2017", "MIMIC-IT"):
        (folder / image_folder).mkdir(parents=True)
    (folder / "cc_sbu_align" / "filter_cap.json").write_text(json.dumps({"annotations": captions}))
    (folder / "MIMIC-IT" / "CGD_instructions.json").write_text(json.dumps({"data": instructions}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISUALCHAT_CACHE", str(folder / "cache"))
        yield folder


class Texts(Dataset):
    """Conversations as all that a model would be told of them; which were read is counted across workers."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self.reads = torch.zeros(len(mixture), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.mixture)

    def set_epoch(self, epoch: int) -> None:
        self.mixture.set_epoch(epoch)

    def __getitem__(self, index: int) -> str:
        self.reads[index] += 1
        conversation = self.mixture[index]
        return " | ".join([conversation.source, *(turn.question for turn in conversation.turns)])


def mixture(root: Path) -> Mixture:
    return build_dataset(
        ["minigpt4", "otter_mimicit_cgd"], root, concatenate=[3, 2], seed=SEED, weights=[0.75, 2]
    )


def loader(root: Path, batch_size: int, epoch: int, workers: int = 0) -> DataLoader:
    texts = Texts(mixture(root))
    made = DataLoader(
        PaddedDataset(texts),
        batch_sampler=GlobalBatchSampler(len(texts), batch_size, seed=SEED),
        num_workers=workers,
        collate_fn=list,
    )
    made.batch_sampler.set_epoch(epoch)
    made.dataset.set_epoch(epoch)
    return made


def test_going_on_after_any_step_yields_exactly_the_rest_and_reads_nothing_else(root: Path) -> None:
    rng = np.random.default_rng(0)
    whole = {epoch: list(loader(root, 3, epoch=epoch)) for epoch in range(3)}
    for number in range(20):
        epoch, workers = int(rng.integers(3)), number % 4
        step = int(rng.integers(len(whole[epoch])))
        resumed = loader(root, 3, epoch=epoch, workers=workers)
        assert list(skip_first_batches(resumed, step)) == whole[epoch][step:]
        wanted = [index for batch in list(resumed.batch_sampler)[step:] for index in batch]
        reads = resumed.dataset.encoded.reads
        assert reads.sum() == len(wanted) and (reads[wanted] == 1).all()
