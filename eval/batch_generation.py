"""Run evaluation dialogues through checkpoints, in batches.

    python -m eval.batch_generation --checkpoint_path P [--checkpoint_names a b] --eval_data NAME
    --output_filename F

Writes F.csv (columns test_name,image_path,question,answer; with several checkpoints F_a.csv and F_b.csv) and,
where the set has reference answers, their exact-match scores as JSON beside it.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from tqdm import tqdm

from chat.checkpoint_arguments import (
    add_checkpoint_arguments,
    add_sampling_arguments,
    load_named_checkpoint,
    positive,
)
from chat.sampling import Sampling, SamplingError
from eval.dialogues import ROOT, EvalDataError, EvalDialogue, load_dialogues
from eval.generation import DialogueRunner, GenerationSettings
from eval.results import rows_of, score_table, scores_of_rows, write_csv, write_scores
from utils.conversation import ConversationError, ImageError
from utils.distributed import configure_logging
from utils.model import CheckpointError

RESULTS = ROOT / "eval" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parsed = _parser().parse_args(arguments)
    configure_logging(logging.WARNING)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        dialogues = load_dialogues(parsed.eval_data, parsed.image_folder, parsed.max_images)
        settings = GenerationSettings(
            batch_size=parsed.batch_size,
            max_new_tokens=parsed.max_new_tokens,
            max_seq_len=parsed.max_seq_len,
            history=parsed.history,
            sampling=Sampling(
                parsed.temperature, parsed.top_p, parsed.top_k, parsed.repetition_penalty, parsed.seed
            ),
        )
        for checkpoint, output in _runs(parsed):
            _run(checkpoint, output, dialogues, settings, parsed)
    except (CheckpointError, EvalDataError, SamplingError, ConversationError, ImageError) as error:
        errors.print(f"error: {error}", style="red", markup=False)
        return 1
    return 0


def _runs(parsed: argparse.Namespace) -> list[tuple[Path, Path]]:
    """Each checkpoint with the file, less its ending, that its results go to."""
    root = Path(parsed.checkpoint_path)
    output = Path(parsed.output_filename or RESULTS / Path(parsed.eval_data).stem)
    output = output.with_suffix("") if output.suffix == ".csv" else output
    if not parsed.checkpoint_names:
        return [(root, output)]
    if len(parsed.checkpoint_names) == 1:
        return [(root / parsed.checkpoint_names[0], output)]
    return [
        (root / name, output.with_name(f"{output.name}_{name.replace('/', '_')}"))
        for name in parsed.checkpoint_names
    ]


def _run(
    checkpoint: Path,
    output: Path,
    dialogues: Sequence[EvalDialogue],
    settings: GenerationSettings,
    parsed: argparse.Namespace,
) -> None:
    console = Console(highlight=False)
    model, processor = load_named_checkpoint(parsed, checkpoint)
    questions = sum(len(dialogue.turns) for dialogue in dialogues)
    with tqdm(total=questions, desc=checkpoint.name, unit="question") as progress:
        answers = DialogueRunner(model, processor, settings).run(dialogues, progress.update)
    rows = rows_of(dialogues, answers)
    table_file = output.with_name(f"{output.name}.csv")
    write_csv(table_file, rows)
    if unasked := sum(row.answer is None for row in rows):
        console.print(
            f"{unasked} questions were not asked: their dialogues had outgrown --max_seq_len", style="yellow"
        )
    if scores := scores_of_rows(rows):
        console.print(score_table(f"{checkpoint.name} on {Path(parsed.eval_data).stem}", scores))
        write_scores(output.with_name(f"{output.name}.json"), scores, _described(checkpoint, parsed))
    console.print(f"{len(rows)} answers: {table_file}", markup=False, soft_wrap=True)


def _described(checkpoint: Path, parsed: argparse.Namespace) -> dict[str, object]:
    names = (
        "eval_data",
        "history",
        "batch_size",
        "max_new_tokens",
        "max_seq_len",
        "dtype",
        "temperature",
        "seed",
    )
    return {"checkpoint": str(checkpoint), **{name: getattr(parsed, name) for name in names}}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval.batch_generation", description="Run evaluation dialogues through checkpoints."
    )
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--checkpoint_names", nargs="*", help="folders inside checkpoint_path; none: checkpoint_path itself"
    )
    parser.add_argument(
        "--eval_data", default="eval_single", help="a set of eval/eval_data, or the path of a JSON file"
    )
    parser.add_argument("--image_folder", help="where the set's relative image paths start")
    parser.add_argument(
        "--output_filename", help="the results' path without ending (default: eval/results/NAME OF THE SET)"
    )
    parser.add_argument("--batch_size", type=positive, default=8, help="dialogues that are computed together")
    parser.add_argument("--max_new_tokens", type=positive, default=256, help="tokens of an answer at most")
    parser.add_argument("--max_images", type=positive, default=8, help="images of a dialogue at most")
    parser.add_argument(
        "--history",
        choices=["generated", "reference"],
        default="generated",
        help="the answers that later rounds of a dialogue see",
    )
    add_sampling_arguments(parser, seed=123)
    return parser


if __name__ == "__main__":
    sys.exit(main())
