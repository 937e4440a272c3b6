"""The data check of `helper.check_data`: reads every record, decodes every image, writes a page and a verdict."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from training.arguments import DataArguments, ModelArguments
from training.arguments.command_line import model_and_data
from training.data_report.measure import measure
from training.data_report.page import Report, short_name, write_report
from training.data_report.samples import draw_samples
from training.datasets import longest_conversation, make_rows, read_parts
from training.model import look_up
from utils.commands import UsageError, writable_folder
from utils.conversation import ConversationError
from utils.data import BadDataError, BadRecords, DataError, Mixture, PackedDataset
from utils.data.bad_records import BAD_SAMPLES
from utils.distributed import cores, get_logger
from utils.model import build_processor

logger = get_logger(__name__)

_REPORT = "data_report.html"
_NAMED = 4  # datasets in the page's title
_LOOKED_AT = 1000  # conversations whose answers' pieces are counted
_LETTERS = 3  # an answer of fewer falls into letters anyway
_WORTH_SAYING = 0.05  # share of answers


def check(flags: argparse.Namespace) -> int:
    """Read, measure, write and say in a few lines what there is; returns the exit code."""
    model_arguments, data_arguments = model_and_data(flags)
    path = Path(flags.report or Path(flags.output_dir, _REPORT))
    writable_folder(path.parent, "--report" if flags.report else "--output_dir")
    workers = cores() if flags.check_workers is None else flags.check_workers
    look_up(model_arguments)
    processor, decoder = _processor_and_decoder(model_arguments, data_arguments.tiles)
    bad = BadRecords(max_fraction=1, path=path.with_name(BAD_SAMPLES))
    # Weights say how often a record comes; here each comes once.
    once = dataclasses.replace(data_arguments, dataset_weights=[1.0])
    parts = _read(once, flags.seed, bad)
    longest = longest_conversation(data_arguments, decoder)
    measured, found = measure(parts, processor, longest, workers)
    bad.extend(found)
    bad.write()
    verdict = _verdict(bad, data_arguments, is_empty=not (parts and len(parts[0])))
    rows = None
    if parts and len(parts[0]):
        rows = make_rows(parts[0], processor, data_arguments, flags.seed, longest=longest)
    packed = rows if isinstance(rows, PackedDataset) else None
    write_report(
        Report(
            title=_title(data_arguments.dataset_names),
            settings=_settings(flags),
            rows=draw_samples(rows, flags.report_samples, flags.seed) if rows else [],
            total_records=bad.total,
            bad=bad.sorted(),
            bad_file=str(bad.path),
            verdict=verdict,
            record_counts=parts[0].record_counts if parts else {},
            measured=measured,
            max_seq_len=longest,
            packed_rows=len(packed) if packed else None,
            packed_fill=packed.fill if packed else 0.0,
        ),
        path,
    )
    _say(bad, measured, verdict, path)
    if rows and (said := pieces_warning(parts[0], processor.tokenizer)):
        logger.warning("%s", said)
    return 1 if verdict else 0


def _processor_and_decoder(arguments: ModelArguments, tiles: int) -> tuple[ProcessorMixin, PreTrainedConfig]:
    """The processor, and the decoder's configuration; no weights are read."""
    language_model = arguments.lm_model_name_or_path
    try:
        processor = build_processor(
            language_model, arguments.vision_model_name_or_path, arguments.projector, arguments.summary, tiles
        )
        return processor, AutoConfig.from_pretrained(language_model)
    except (OSError, ValueError) as error:  # as in training: not found, no network, not such a model
        raise UsageError(f"tokenizer and image processor cannot be loaded: {error}") from error


def _read(arguments: DataArguments, seed: int, bad: BadRecords) -> tuple[Mixture, ...]:
    """Both parts, or none where nothing at all can be used: the report says why."""
    try:
        return read_parts(arguments, seed, bad)
    except DataError:
        if bad:
            return ()
        raise


def _verdict(bad: BadRecords, arguments: DataArguments, is_empty: bool) -> str | None:
    """What training would stop with; None where it would go on."""
    found = bad.sorted()
    if arguments.strict and found:
        return f"--strict allows no bad record, and there are {len(found):,}."
    judged = BadRecords(arguments.max_bad_fraction)
    judged.total = bad.total
    judged.extend(found)
    try:
        judged.check()
    except BadDataError as error:
        return str(error)
    return "Nothing is left to train on." if is_empty else None


def _title(names: Sequence[str]) -> str:
    listed = ", ".join(map(short_name, names[:_NAMED]))
    return f"Data of {listed}" + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _settings(flags: argparse.Namespace) -> dict[str, str]:
    """The flags that matter for the data."""
    names = [field.name for field in dataclasses.fields(DataArguments)]
    names += ["lm_model_name_or_path", "vision_model_name_or_path", "vis_proj", "seed"]
    given = {f"--{name}": getattr(flags, name) for name in names}
    return {
        name: " ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in given.items()
        if value is not None
    }


def pieces_warning(part: Mixture, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """One line where a good many answers fall into single letters or bytes; None where they do not.

    The head that says the answers is not trained, and pieces that it has rarely said are slow to learn. No weights
    are read: that a word has no longer piece of its own is what the tokenizer knows of how rare it is.
    """
    answers, broken = 0, []
    for index in np.linspace(0, len(part) - 1, min(len(part), _LOOKED_AT)).astype(int).tolist():
        try:
            said = [turn.answer or "" for turn in part[index].turns]
        except ConversationError:  # a bad record, which the report lists
            continue
        answers += len(said)
        pieces = map(tokenizer.tokenize, said)
        broken += [
            (answer, len(each)) for answer, each in zip(said, pieces, strict=True) if _falls_apart(each)
        ]
    if not broken or len(broken) < _WORTH_SAYING * answers:
        return None
    answer, count = broken[0]
    return (
        f"{len(broken):,} of {answers:,} answers fall into single letters or bytes, {answer[:30]!r} into {count}, say:"
        " the decoder's head is frozen and has rarely said these, so they are slow to learn; answer in common words of"
        " lower case"
    )


def _falls_apart(pieces: Sequence[str]) -> bool:
    """Whether half of an answer's letters or more are pieces by themselves, or written in bytes (`<0x41>`)."""
    in_bytes = sum(re.fullmatch("<0x[0-9A-F]{2}>", piece) is not None for piece in pieces)
    words = [re.sub("<0x..>|[^A-Za-z]", "", piece) for piece in pieces]  # without the marks of a space
    alone, letters = sum(len(word) == 1 for word in words), sum(map(len, words))
    return letters + in_bytes >= _LETTERS and 2 * (alone + in_bytes) >= letters + in_bytes


def _say(bad: BadRecords, measured: pd.DataFrame, verdict: str | None, path: Path) -> None:
    sums = measured[["images", "tokens", "learned"]].sum()
    logger.info(
        "%s conversations, %s images, %s tokens, %.1f %% of them supervised",
        *(f"{count:,}" for count in (len(measured), sums.images, sums.tokens)),
        100 * sums.learned / max(sums.tokens, 1),
    )
    logger.info("%s", bad.summary())
    if verdict:
        logger.info("training would stop: %s", verdict)
    logger.info("report: %s", path)
