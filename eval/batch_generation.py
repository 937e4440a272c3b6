"""Run evaluation dialogues through checkpoints, in batches.

    python -m eval.batch_generation --checkpoint_path P [--checkpoint_names a b] --eval_data NAME
    --output_filename F

Writes F.csv (columns test_name,image_path,question,answer; with several checkpoints F_a.csv and F_b.csv), and
F.json, which `python -m eval.report` shows, with the scores where the set has reference answers. Dialogues that cannot
be asked are listed in F.bad_dialogues.jsonl before a model is loaded, and the others answered; the exit code is then 3.
Run again after an interruption, it goes on where it was. Several GPUs share the dialogues: `torchrun
--nproc_per_node 8 -m eval.batch_generation ...`.
"""

from __future__ import annotations

if not __package__:  # called as a file, as in 2023: the module starts, and finds the project's others
    import os
    import sys
    from pathlib import Path

    root = str(Path(__file__).resolve().parents[1])
    before = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ.update(PYTHONPATH=os.pathsep.join(before), PYTHONSAFEPATH="1")
    python = sys.orig_argv[: -len(sys.argv)]  # with its own options
    os.execv(sys.executable, [*python, "-m", "eval.batch_generation", *sys.argv[1:]])

import argparse
import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from chat.arguments import (
    add_checkpoint_arguments,
    add_image_store_arguments,
    add_max_images,
    add_sampling_arguments,
    load_named_checkpoint,
    positive,
    sampling_of,
    store_settings,
)
from chat.limits import MAX_NEW_TOKENS
from utils.commands import FINISHED, Parser, UsageError, command, complain, end_process, writable_folder
from utils.hub import checkpoint_folder

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from eval.dialogues import EvalSet
    from eval.generation import GenerationSettings

RESULTS = Path(__file__).resolve().parent / "results"
LEFT_OUT = 3
"""The exit code where some dialogues could not be asked and the others are answered; 1 is that of a crash."""
BATCHES_PER_PART = 8
"""So many batches are lost at most by an interruption, and shared out at a time among processes."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parsed = _parser().parse_args(arguments)
    # Here, not above: they take seconds, which --help need not wait for.
    import torch.distributed as dist

    from eval.dialogues import read_set
    from eval.generation import GenerationSettings, with_sound_images
    from utils import distributed
    from utils.conversation import ConversationError, ImageError

    distributed.configure_logging(logging.WARNING)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        # They meet at the end of each checkpoint only, which may be hours away for those that are done first.
        dist.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        found = read_set(parsed.eval_data, parsed.image_folder, parsed.max_images)
        settings = GenerationSettings(
            batch_size=parsed.batch_size,
            max_new_tokens=parsed.max_new_tokens,
            max_seq_len=parsed.max_seq_len,
            history=parsed.history,
            sampling=sampling_of(parsed),
        )
        runs = _runs(parsed)
        found = with_sound_images(found)
        sets = [_checked(checkpoint, output, found, settings) for checkpoint, output in runs]
        for (checkpoint, output), checked in zip(runs, sets, strict=True):
            _run(checkpoint, output, checked, settings, parsed)
        is_main = distributed.is_main_process()
    except (ConversationError, ImageError) as error:
        return complain(error)
    finally:
        distributed.shut_down()
    # Of several processes the one that writes the results says so: a launcher ends the others where one fails.
    return LEFT_OUT if is_main and any(checked.bad for checked in sets) else FINISHED


def _runs(parsed: argparse.Namespace) -> list[tuple[Path, Path]]:
    """Each checkpoint with the file, less its ending, that its results go to; both are looked at before any work."""
    root = Path(parsed.checkpoint_path)
    output = Path(parsed.output_filename or RESULTS / Path(parsed.eval_data).stem)
    output = output.with_suffix("") if output.suffix == ".csv" else output
    writable_folder(output.parent, "--output_filename")
    names = parsed.checkpoint_names
    if not names:
        return [(checkpoint_folder(root), output)]
    if len(names) == 1:
        return [(checkpoint_folder(root / names[0]), output)]
    return [
        (checkpoint_folder(root / name), output.with_name(f"{output.name}_{name.replace('/', '_')}"))
        for name in names
    ]


def _checked(checkpoint: Path, output: Path, found: EvalSet, settings: GenerationSettings) -> EvalSet:
    """The dialogues that this checkpoint can be asked; the others are listed beside its results."""
    from eval.dialogues import EvalDataError
    from eval.generation import told, with_askable_texts, write_bad
    from utils import distributed
    from utils.model import CheckpointError, VisualChatConfig
    from utils.model.checkpoint import load_processor

    try:
        processor, config = load_processor(checkpoint), VisualChatConfig.from_pretrained(checkpoint)
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    checked = with_askable_texts(found, processor, config, settings)
    file = output.with_name(f"{output.name}.bad_dialogues.jsonl")
    if distributed.is_main_process():
        write_bad(file, checked.bad)
    if not checked.dialogues:
        raise EvalDataError(told(checked, file))
    if checked.bad:
        logger.warning("%s", told(checked, file))
    return checked


def _run(
    checkpoint: Path,
    output: Path,
    found: EvalSet,
    settings: GenerationSettings,
    parsed: argparse.Namespace,
) -> None:
    import torch
    from rich.console import Console
    from tqdm import tqdm

    from eval.generation import DialogueRunner, Parts, key_of
    from eval.results import rows_of, score_table, write_csv, write_results
    from eval.scores import scores_of
    from utils import distributed

    console = Console(highlight=False)
    if distributed.world_size() > 1 and parsed.device_map == "auto" and torch.accelerator.is_available():
        parsed.device_map = {"": distributed.local_rank()}
    model, processor = load_named_checkpoint(parsed, checkpoint)
    dialogues = found.dialogues
    parts = Parts(
        output.with_name(f"{output.name}.parts"),
        key_of(checkpoint, dialogues, settings),
        BATCHES_PER_PART * settings.batch_size,
    )
    questions = sum(len(dialogue.turns) for dialogue in dialogues)
    with tqdm(
        total=questions, desc=checkpoint.name, unit="question", disable=not distributed.is_main_process()
    ) as progress:
        runner = DialogueRunner(model, processor, settings, **store_settings(parsed, model, processor))
        answers = parts.answer(
            dialogues, lambda some: runner.run(some, progress.update), advance=progress.update
        )
    if answers is None:
        return
    rows = rows_of(dialogues, answers)
    scores = scores_of(rows)
    table_file, results_file = (output.with_name(f"{output.name}.{ending}") for ending in ("csv", "json"))
    write_csv(table_file, rows)
    left_out = {"left_out": len(found.bad)} if found.bad else {}
    write_results(results_file, rows, scores, {**_described(checkpoint, parsed), **left_out})
    parts.clear()
    if unasked := sum(row.answer is None for row in rows):
        console.print(
            f"{unasked} questions were not asked: their dialogues had outgrown --max_seq_len (or the decoder)",
            style="yellow",
        )
    if found.bad:
        listed = f"{output}.bad_dialogues.jsonl"
        said = f"{len(found.bad)} dialogues were left out: {listed}"
        console.print(said, style="yellow", markup=False, soft_wrap=True)
    if scores is not None:
        console.print(score_table(f"{checkpoint.name} on {Path(parsed.eval_data).stem}", scores))
    console.print(f"{len(rows)} answers: {table_file}", markup=False, soft_wrap=True)
    console.print(
        f"To look at them: python -m eval.report {results_file}", markup=False, soft_wrap=True, style="dim"
    )


def _described(checkpoint: Path, parsed: argparse.Namespace) -> dict[str, object]:
    names = ("eval_data", "history", "batch_size", "max_new_tokens", "max_seq_len", "dtype")
    names += ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
    return {"checkpoint": str(checkpoint), **{name: getattr(parsed, name) for name in names}}


def _parser() -> Parser:
    parser = Parser(
        prog="python -m eval.batch_generation", description="Run evaluation dialogues through checkpoints."
    )
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--checkpoint_names",
        nargs="*",
        help="folders in checkpoint_path to evaluate (default: checkpoint_path itself)",
    )
    parser.add_argument(
        "--eval_data",
        default="eval_single",
        help="a set in eval/eval_data (default: %(default)s), or a file: evaluation dialogues, or your own data as for"
        " training",
    )
    parser.add_argument("--image_folder", help="folder that relative image paths start from")
    parser.add_argument(
        "--output_filename",
        help="path of the results, without an extension (default: eval/results/NAME_OF_THE_SET)",
    )
    parser.add_argument(
        "--batch_size", type=positive, default=8, help="dialogues computed together (default: %(default)s)"
    )
    parser.add_argument(
        "--max_new_tokens",
        type=positive,
        default=MAX_NEW_TOKENS,
        help="maximum length of an answer in tokens (default: %(default)s)",
    )
    add_max_images(parser)
    parser.add_argument(
        "--history",
        choices=["generated", "reference"],
        default="generated",
        help="answers that later turns see: the model's own (generated, the default) or the reference answers",
    )
    add_image_store_arguments(parser)
    add_sampling_arguments(parser, seed=123)
    return parser


if __name__ == "__main__":
    end_process(main())
