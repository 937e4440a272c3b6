"""Train a visual chat model: `deepspeed --module training.main`, torchrun, or `python -m training.main`."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, ProcessorMixin
from transformers.trainer_utils import IntervalStrategy
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from training.arguments import (
    DataArguments,
    ModelArguments,
    UsageError,
    VisualChatTrainingArguments,
)
from training.callbacks import ProgressReporter
from training.checkpoints import ResumeError, resume_folder
from training.command_line import parse_arguments
from training.data import bad_records, make_rows, read_parts
from training.debug import dump_samples
from training.trainer import TrainingDivergedError, VisualChatTrainer
from utils.atomic import clear_leftovers
from utils.conversation import ConversationError, ImageError
from utils.data import (
    BadDataError,
    BadRecords,
    Collator,
    DataError,
    Mixture,
    PackedDataset,
    TolerantDataset,
)
from utils.distributed import (
    barrier,
    configure_logging,
    get_logger,
    is_main_process,
    seed_everything,
    shut_down,
)
from utils.model.building import LoraSettings, build_visual_chat

logger = get_logger("training.main")  # __name__ is __main__ where this file is the program

USER_ERRORS = (UsageError, DataError, ConversationError, ImageError, ResumeError, TrainingDivergedError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a training from its command line; returns the exit code: 0, or 2 for a user's mistake."""
    configure_logging()
    model_arguments, data_arguments, arguments = parse_arguments(argv)
    try:
        train(model_arguments, data_arguments, arguments)
    except USER_ERRORS as error:
        _report(error)
        return 2
    shut_down()
    return 0


def train(
    model_arguments: ModelArguments, data_arguments: DataArguments, arguments: VisualChatTrainingArguments
) -> None:
    """The whole story: data, model, training, and what is left of it on the disk."""
    if not (is_main_process() and sys.stderr.isatty()):
        disable_progress_bar()  # transformers' bars for reading and writing weights
    if not is_main_process():
        set_verbosity_error()  # transformers' warnings once, not once a process
    seed_everything(arguments.seed)
    resumed = prepare_output(arguments)
    bad = bad_records(data_arguments, arguments.output_dir)
    if resumed:
        bad.restore()  # what was found before the run was interrupted
    training_part, evaluation_part = load_data(data_arguments, arguments, bad)
    model, processor = load_model(model_arguments, arguments)

    def rows(part: Mixture) -> TolerantDataset | PackedDataset:
        return make_rows(part, processor, data_arguments, arguments.seed)

    learned = rows(training_part)
    if data_arguments.data_debug_path and is_main_process():
        dump_samples(learned, data_arguments.data_debug_path, arguments.seed)
    trainer = VisualChatTrainer(
        model=model,
        args=arguments,
        processor=processor,
        collator=Collator(pad_token_id=processor.tokenizer.pad_token_id),
        train_dataset=learned,
        eval_dataset=rows(evaluation_part) if len(evaluation_part) else None,
        callbacks=[ProgressReporter()],
        bad_records=bad,
    )
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    trainer.bad.exchange(arguments.device)
    trainer.export(Path(arguments.output_dir, "final"))
    summarise(trainer, learned)


def prepare_output(arguments: VisualChatTrainingArguments) -> Path | None:
    """Make the output folder, clear up after crashes, and find the checkpoint to go on from, if any."""
    output = Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    if is_main_process():
        for name in clear_leftovers(output):
            logger.info("removed a half-written %s from %s", name, output)
    barrier()
    resumed = resume_folder(arguments.output_dir, arguments.resume_from_checkpoint)
    if resumed:
        logger.info("going on from %s", resumed)
        arguments.eval_on_start = False
    return resumed


def load_data(
    data_arguments: DataArguments, arguments: VisualChatTrainingArguments, bad: BadRecords
) -> tuple[Mixture, Mixture]:
    """The conversations to learn from and those to evaluate on; without the latter, evaluation is off.

    Records that are not in their dataset's format go to `bad` instead, and its list is written.
    """
    try:
        parts = read_parts(data_arguments, arguments.seed, bad)
    finally:
        if is_main_process():
            bad.write()
    if bad:
        logger.info("left out: %s", bad.summary())
    logger.info("%-24s %12s %12s", "dataset", "train", "evaluation")
    counts = [part.records_per_dataset for part in parts]
    for name in data_arguments.dataset_names:
        logger.info("%-24s %12s %12s records", name, *(f"{count[name]:,}" for count in counts))
    logger.info("%-24s %12s %12s conversations", "together", *(f"{len(part):,}" for part in parts))
    if not len(parts[0]):
        raise DataError(
            f"there is nothing to train on: no record of {', '.join(data_arguments.dataset_names)} is left"
        )
    if not len(parts[1]):
        arguments.eval_strategy, arguments.eval_on_start = IntervalStrategy.NO, False
        logger.info("nothing is left to evaluate on: no evaluation, and no best checkpoint")
    return parts


def load_model(
    model_arguments: ModelArguments, arguments: VisualChatTrainingArguments
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Encoder, projector and decoder as one model with its processor; building logs what is trainable."""
    lora = LoraSettings(
        lang_dim=model_arguments.lang_lora_dim,
        lang_module_name=model_arguments.lang_lora_module_name,
        vis_dim=model_arguments.vis_lora_dim,
        vis_module_name=model_arguments.vis_lora_module_name,
        only_optimize_lora=model_arguments.only_optimize_lora,
    )
    logger.info("attention: %s, projector: %s", model_arguments.attention_name, model_arguments.projector)
    try:
        return build_visual_chat(
            model_arguments.lm_model_name_or_path,
            model_arguments.vision_model_name_or_path,
            projector_type=model_arguments.projector,
            attention=model_arguments.attention_name,
            lora=lora or None,
            dtype=arguments.dtype,
        )
    except (OSError, ValueError) as error:  # not found, no network, not a model of the kind that is needed
        raise UsageError(f"the model cannot be built: {error}") from error


def summarise(trainer: VisualChatTrainer, learned: TolerantDataset | PackedDataset) -> None:
    """The last lines: what was left out, what was cut, and where the checkpoints are."""
    if trainer.bad.records:
        logger.info("left out: %s", trainer.bad.records.summary())
    if learned.cut.conversations:
        logger.info(
            "--max_seq_len cut %d conversations, by %d turns", learned.cut.conversations, learned.cut.turns
        )
    output = Path(trainer.args.output_dir).resolve()
    if trainer.state.best_metric is not None:
        logger.info("best checkpoint:  %s (evaluation loss %.4f)", output / "best", trainer.state.best_metric)
    logger.info("final checkpoint: %s", output / "final")


def _report(error: Exception) -> None:
    # A loader worker sends its error with a traceback, of which the last line is the message.
    message = str(error).strip().splitlines()[-1] if "Original Traceback" in str(error) else str(error)
    if not is_main_process():
        if isinstance(error, BadDataError):
            return  # all processes come to this verdict together
        # Mostly all processes meet the same mistake: the first says so, and the launcher ends the others.
        time.sleep(3)
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
