"""The data check of `helper.check_data`: reads every record, decodes every image, writes a page and a verdict."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig, ProcessorMixin

from training.arguments import DataArguments, ModelArguments
from training.arguments.command_line import model_and_data
from training.batches.datasets import longest_conversation, make_rows, read_parts
from training.data_report import Measurement, Report, draw_samples, measure, short_name, write_report
from utils.commands import UsageError, writable_folder
from utils.data import BadDataError, BadRecords, DataError, Mixture, PackedDataset
from utils.data.bad_records import BAD_SAMPLES
from utils.distributed import cores, get_logger
from utils.model import build_processor

logger = get_logger(__name__)

_REPORT = "data_report.html"
_NAMED = 4  # datasets in the page's title


def check(flags: argparse.Namespace) -> int:
    """Read, measure, write and say in a few lines what there is; returns the exit code."""
    model_arguments, data_arguments = model_and_data(flags)
    path = Path(flags.report or Path(flags.output_dir, _REPORT))
    writable_folder(path.parent, "--report" if flags.report else "--output_dir")
    workers = cores() if flags.check_workers is None else flags.check_workers
    model_arguments.look_up()
    processor, decoder = _processor_and_decoder(model_arguments)
    bad = BadRecords(max_fraction=1, path=path.with_name(BAD_SAMPLES))
    # Weights say how often a record comes; here each comes once.
    once = dataclasses.replace(data_arguments, dataset_weights=[1.0])
    parts = _read(once, flags.seed, bad)
    longest = longest_conversation(data_arguments, decoder)
    measured = measure(parts, processor, longest, workers)
    bad.extend(measured.bad)
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
    return 1 if verdict else 0


def _processor_and_decoder(arguments: ModelArguments) -> tuple[ProcessorMixin, PreTrainedConfig]:
    """The processor, and the decoder's configuration; no weights are read."""
    language_model = arguments.lm_model_name_or_path
    try:
        processor = build_processor(
            language_model, arguments.vision_model_name_or_path, arguments.projector, arguments.summary
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


def _say(bad: BadRecords, measured: Measurement, verdict: str | None, path: Path) -> None:
    tokens = int(measured.tokens.sum())
    share = int(measured.learned.sum()) / max(tokens, 1)
    logger.info(
        "%s conversations, %s images, %s tokens, %.1f %% of them supervised",
        f"{len(measured):,}",
        f"{int(measured.images.sum()):,}",
        f"{tokens:,}",
        100 * share,
    )
    logger.info("%s", bad.summary())
    if verdict:
        logger.info("training would stop: %s", verdict)
    logger.info("report: %s", path)
