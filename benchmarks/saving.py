"""How long a training stands still for a checkpoint: one that it waits for, and one that a thread writes meanwhile.

    python -m benchmarks.saving

A real DeepSpeed engine with AdamW over random weights, of which the embedding, the projection and the last layers of
the decoder learn. `in background` is the time until training may go on; until the checkpoint is complete it takes about
as long as `waiting` again.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerState

from benchmarks.random_models import DECODERS, described, random_model
from benchmarks.train_step import Step
from benchmarks.turns import peak_memory, print_machine, print_ratios, take_turns
from training.checkpointing.folders import checkpoint_name, damage, read_manifest
from training.checkpointing.run_record import Run
from training.checkpointing.writer import CheckpointWriter
from utils.distributed import initialise, shut_down
from utils.model import freeze


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=DECODERS, default="120m")
    parser.add_argument("--layers", type=int, default=4, help="of the decoder's last that learn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="where to write, on the disk to measure (default: a temporary one)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        saves = Saves(Path(folder), arguments.size, arguments.layers)
        print(f"a checkpoint; {described(saves.model)}; {saves.learned / 1e6:,.0f} million learn")
        print_machine()
        contenders: dict[str, Callable[[int], float]] = {
            "waiting": lambda _: saves.timed(in_background=False),
            "in background": lambda _: saves.timed(in_background=True),
        }
        print_ratios(take_turns(contenders, arguments.rounds), "ms", 1000, reference="waiting")
        print(f"  a checkpoint has {saves.size() / 1e6:,.0f} MB; peak memory of all: {peak_memory()}")
    shut_down()


class Saves:
    """A training's checkpoints, one after the other, each replacing the one before."""

    def __init__(self, folder: Path, size: str, layers: int) -> None:
        initialise()
        import deepspeed  # chooses the device

        self.model, processor = random_model(size, device="cuda" if torch.cuda.is_available() else "cpu")
        base = {
            "language_model": "",
            "vision_model": "",
            "vocab_size": self.model.config.text_config.vocab_size,
        }
        self.model.config.frozen_from = base
        self.model.config.trained_parts = [f"decoder:top-{layers}"]
        freeze(self.model, ("embedding", "projector", f"decoder:top-{layers}"))
        learned = [each for each in self.model.parameters() if each.requires_grad]
        self.learned = sum(each.numel() for each in learned)
        optimizer = torch.optim.AdamW(learned)
        config = {"train_micro_batch_size_per_gpu": 1, "zero_force_ds_cpu_optimizer": False}
        engine, *_ = deepspeed.initialize(model=self.model, optimizer=optimizer, config=config)
        self._engine, self._batch = engine, Step(self.model, 64, 1, 0.5)
        self._state, self._folder = TrainerState(), folder
        args: Any = SimpleNamespace(
            output_dir=str(folder),
            epoch_checkpoint_form="trained",
            save_only_model=False,
            save_total_limit=1,
            max_failed_saves=2,
        )
        context: Any = SimpleNamespace(
            engine=engine,
            state=self._state,
            args=args,
            model=self.model,
            processor=processor,
            schedule=LambdaLR(optimizer, lambda step: 1.0),
            save_random_state=lambda where: torch.save(torch.get_rng_state(), f"{where}/rng_state.pth"),
        )
        self._writer = CheckpointWriter(context, Run(1, 0, "float32", 1))

    def timed(self, in_background: bool) -> float:
        """Seconds for which a save after a step holds the training up."""
        loss = self._engine(**self._batch.inputs, labels=self._batch.labels).loss
        self._engine.backward(loss)
        self._engine.step()
        self._state.global_step += 1
        started = time.perf_counter()
        self._writer.save(in_background)
        held_up = time.perf_counter() - started
        self._writer.finish()
        assert not damage(self._newest())
        return held_up

    def size(self) -> int:
        """Bytes of a checkpoint."""
        return sum(file.size for file in read_manifest(self._newest()).files.values())

    def _newest(self) -> Path:
        return self._folder / checkpoint_name(self._state.global_step)


if __name__ == "__main__":
    main()
