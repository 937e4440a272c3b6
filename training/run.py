"""A training from its flags to its last checkpoint; `training.main` is the command that starts it."""

import errno
import logging
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from transformers.trainer_utils import IntervalStrategy
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from training import recipe
from training.arguments import DataArguments, ModelArguments
from training.arguments.command_line import parse_flags, training_arguments
from training.arguments.parser import VisualChatTrainingArguments
from training.checkpointing.folders import ResumeError, remove_results, require_free, resume_folder
from training.checkpointing.run_record import Run
from training.checkpointing.writer import SavingError
from training.datasets import bad_records, longest_conversation, make_rows, read_parts
from training.exit_codes import (
    FINISHED,
    INTERRUPTED,
    MISTAKE,
    STOPPED,
    AgreedError,
    StoppedBySignal,
    last_checkpoint,
)
from training.extension import Extension, Prepared, always, on_request
from training.model import load_model, look_up
from training.trainer import VisualChatTrainer
from utils.atomic import clear_leftovers
from utils.commands import UsageError
from utils.conversation import ConversationError, ImageError
from utils.data import (
    BadDataError,
    BadRecords,
    Collator,
    CutCount,
    DataError,
    EncodedDataset,
    Mixture,
    PackedDataset,
)
from utils.data.workers import require_shared_memory
from utils.distributed import (
    configure_logging,
    decided_by_main,
    everyone,
    get_logger,
    is_main_process,
    local_world_size,
    seed_everything,
    shut_down,
    world_size,
)
from utils.model.vision import image_size
from utils.plugins import wing

logger = get_logger(__name__)

USER_ERRORS = (UsageError, DataError, ConversationError, ImageError, ResumeError, SavingError, AgreedError)

FALSE_ALARMS = (
    # transformers' Trainer hands the steps to DeepSpeed, as it should
    ("accelerate.accelerator", "Gradient accumulation steps mismatch"),
    # the decoder's configuration is given what its tokenizer has, as it should
    ("transformers.trainer_utils", "The tokenizer has new PAD/BOS/EOS tokens"),
    # `Run.check` says what has changed, and it takes effect
    ("transformers.trainer_utils", "Warning: The following arguments do not match"),
)
"""Loggers and parts of what they warn of, though nothing is wrong."""

DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What comes of writing where there is no room, or no leave: a person can do something about it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a training from its command line; returns an exit code of `training.exit_codes`."""
    configure_logging()
    _silence_false_alarms()
    extensions = always()  # early: one of them misses launchers that end before it is made
    parser, flags = parse_flags(argv)
    model_arguments, data_arguments, arguments = training_arguments(parser, flags)
    code, reason, has_stopped = FINISHED, "", False
    try:
        extensions += on_request(flags)
        with ExitStack() as around:
            for each in extensions:
                around.enter_context(each.around(arguments))
            train(model_arguments, data_arguments, arguments, extensions, recipe.resolved(flags, parser))
    except USER_ERRORS as error:
        _report(error)
        code = MISTAKE
    except StoppedBySignal as stopped:
        logger.info("%s", stopped)
        code, has_stopped = stopped.code, True
    except KeyboardInterrupt:
        logger.info("stopped by Ctrl-C before the first step; %s", last_checkpoint(arguments.output_dir))
        code = INTERRUPTED
    except Exception as error:  # whatever it is, the other processes must not wait for this one
        if world_size() > 1:
            time.sleep(2)  # another process may be the reason: then an extension ends this one, and says so
        if isinstance(error, OSError) and error.errno in DISK_REFUSES:
            where = f"{error.strerror}: {error.filename or 'a file'}; {last_checkpoint(arguments.output_dir)}"
            _report(UsageError(f"{where}; free space there, or choose another folder"))
            code = MISTAKE
        else:
            traceback.print_exc()
            code = 1
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    for each in extensions:
        each.leave(STOPPED if has_stopped else code, reason)  # all have stopped together
    if code == FINISHED or has_stopped:
        shut_down()
    return code


def train(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: VisualChatTrainingArguments,
    extensions: Sequence[Extension],
    values: Mapping[str, Any] | None = None,
) -> None:
    """The whole story: data, model, training, and what is left of it on the disk; `main` has the extensions around it.

    `values`, those of the recipe that repeats this training, are written into the output folder.
    Raises `StoppedBySignal` where an extension ended it early.
    """
    if not (is_main_process() and sys.stderr.isatty()):
        disable_progress_bar()  # transformers' bars for reading and writing weights
    if not is_main_process():
        set_verbosity_error()  # transformers' warnings once, not once a process
    seed_everything(arguments.seed)
    run = Run.of(model_arguments, data_arguments, arguments)
    resumed = prepare_output(arguments, run)
    if values is not None:
        decided_by_main(lambda: recipe.write(values, Path(arguments.output_dir)))
    bad = bad_records(data_arguments, arguments.output_dir)
    if resumed:
        bad.restore()  # what was found before the run was interrupted
    for each in extensions:
        each.start(arguments, resumed)
    decided_by_main(lambda: look_up(model_arguments))  # before data are read, which may take hours
    training_part, evaluation_part = load_data(data_arguments, arguments, bad)
    run = run.with_data(training_part)
    if resumed:
        decided_by_main(lambda: run.check_data(resumed))
    model, processor = load_model(model_arguments, arguments, resumed, data_arguments.tiles)
    features = None
    if data_arguments.cache_vision_features:
        parts, workers = (training_part, evaluation_part), arguments.dataloader_num_workers
        store_features = wing("training.vision_features.store_features", "--cache_vision_features")
        features = store_features(model, processor, parts, arguments.device, workers)
    longest = longest_conversation(data_arguments, model.config)

    def rows(part: Mixture) -> EncodedDataset | PackedDataset:
        return make_rows(part, processor, data_arguments, arguments.seed, features, longest)

    learned = rows(training_part)
    if arguments.dataloader_num_workers and features is None:
        side = image_size(model.config.vision_config)
        images = arguments.per_device_train_batch_size * learned.mean_images
        batches = arguments.dataloader_num_workers * local_world_size()  # each worker has made one
        require_shared_memory(int(batches * images * 3 * side * side * 4))  # bytes of a float
    held_out = rows(evaluation_part) if len(evaluation_part) else None
    prepared = Prepared(model_arguments, data_arguments, arguments, model, processor, learned, held_out, bad)
    for each in extensions:
        each.prepare(prepared)
    # On a GPU packed rows are all of one width, which its kernels are compiled for.
    width = data_arguments.max_seq_len if data_arguments.packing and arguments.device.type == "cuda" else 8
    trainer = VisualChatTrainer(
        model=model,
        args=arguments,
        processor=processor,
        collator=Collator(processor.tokenizer.pad_token_id, pad_to_multiple_of=-(-width // 8) * 8),
        train_dataset=learned,
        run=run,
        eval_dataset=held_out,
        extensions=extensions,
    )
    if arguments.overwrite_output_dir:  # not before all that could go wrong with flags, data and model
        decided_by_main(lambda: remove_results(arguments.output_dir))
    try:
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    finally:
        trainer.finish_saving()  # however the training ended, it is not lost
    trainer.export(Path(arguments.output_dir, "final"))
    summarise(trainer, learned, bad)


def prepare_output(arguments: VisualChatTrainingArguments, run: Run) -> Path | None:
    """Clear up the output folder after crashes, and find the checkpoint to go on from, if any.

    Raises `ResumeError` where there is none to go on from, where this run's flags contradict it, and where
    a new run would replace another's results.
    """
    resumed = decided_by_main(lambda: _tidied(arguments, run))
    if resumed:
        logger.info("resuming from %s", resumed)
        arguments.eval_on_start = False
    return resumed


def _tidied(arguments: VisualChatTrainingArguments, run: Run) -> Path | None:
    """What the main process does for all: clear up the folder, and verify what is to be gone on from."""
    output = Path(arguments.output_dir)
    for name in clear_leftovers(output):
        logger.info("removed a half-written %s from %s", name, output)
    resumed = resume_folder(output, arguments.resume_from_checkpoint)
    if resumed:
        run.check(resumed)
    if not arguments.overwrite_output_dir:
        require_free(output, resumed, may_begin=arguments.resume_from_checkpoint == "auto")
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


def cut_by_all(learned: EncodedDataset | PackedDataset) -> CutCount:
    """What `--max_seq_len` took away in all processes, each of which reads its own share; all call."""
    counts = everyone((learned.cut.conversations, learned.cut.turns))
    return CutCount(*(sum(each) for each in zip(*counts, strict=True)))


def summarise(trainer: VisualChatTrainer, learned: EncodedDataset | PackedDataset, bad: BadRecords) -> None:
    """The last lines: what was left out, what was cut, and where the checkpoints are; all processes call."""
    if bad:
        logger.info("left out: %s", bad.summary())
    cut = cut_by_all(learned)
    if cut.conversations:
        logger.info(
            "--max_seq_len cut %s conversations, by %s turns, since this start (in each epoch anew)",
            f"{cut.conversations:,}",
            f"{cut.turns:,}",
        )
    output = Path(trainer.args.output_dir).resolve()
    for each in trainer.extensions:
        each.finish()
    if trainer.state.best_metric is not None:
        chosen = str(trainer.args.metric_for_best_model).removeprefix("eval_")
        best = f"evaluation {chosen} {trainer.state.best_metric:.4f}"
        logger.info("best checkpoint:  %s (%s)", output / "best", best)
    logger.info("final checkpoint: %s", output / "final")


def _silence_false_alarms() -> None:
    for name, alarm in FALSE_ALARMS:
        logging.getLogger(name).addFilter(partial(_says_other, text=alarm))


def _says_other(record: logging.LogRecord, text: str) -> bool:
    return text not in str(record.msg)


def _report(error: Exception) -> None:
    # A loader worker sends its error with a traceback, of which the last line is the message.
    message = str(error).strip().splitlines()[-1] if "Original Traceback" in str(error) else str(error)
    if not is_main_process():
        if isinstance(error, AgreedError | BadDataError | ResumeError):
            return  # all processes come to this verdict together
        # Mostly all processes meet the same mistake: the first says so, and the launcher ends the others.
        time.sleep(3)
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
