"""Looks at the data before training does: `python -m helper.check_data` with the flags of training.

Reads every record and decodes every picture, in all processor cores, and writes one page of HTML: what the
datasets hold, what is bad in them, whether training would go on, and conversations as the model is taught them.
Beside it goes the list of bad records, as training writes it. Flags of training that have nothing to do with
the data are taken too, and change nothing; with --strict everything is checked all the same.

Ends with code 0 where training would go on, with 1 where bad data would stop it, and with 2 for a wrong flag or
missing files.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import ProcessorMixin
from transformers.utils.logging import set_verbosity_error

from training.arguments import DataArguments, ModelArguments, UsageError
from training.command_line import Parser, model_and_data, read_flags
from training.data import make_rows, read_parts
from training.data_report import Measurement, Report, draw_samples, measure, short_name, write_report
from utils.data import BadDataError, BadRecords, DataError, Mixture, PackedDataset
from utils.data.bad_data import BAD_SAMPLES
from utils.distributed import configure_logging, cores, get_logger
from utils.model import build_processor

logger = get_logger("helper.check_data")

_REPORT = "data_report.html"
_NAMED = 4  # datasets in the page's title


def main(argv: Sequence[str] | None = None) -> int:
    """Check the data that a training's command line names; returns the exit code."""
    configure_logging()
    set_verbosity_error()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the workers are processes already
    try:
        return check(_parse(argv))
    except (UsageError, DataError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def check(flags: argparse.Namespace) -> int:
    """Read, measure, write and say in a few lines what there is; returns the exit code."""
    model_arguments, data_arguments = model_and_data(flags)
    path = Path(flags.report or Path(flags.output_dir, _REPORT))
    path.parent.mkdir(parents=True, exist_ok=True)
    processor = _processor(model_arguments)
    bad = BadRecords(max_fraction=1, path=path.with_name(BAD_SAMPLES))
    # Weights say how often a record comes; here each comes once.
    once = dataclasses.replace(data_arguments, dataset_weights=[1.0])
    parts = _read(once, flags.seed, bad)
    measured = measure(parts, processor, data_arguments.max_seq_len, flags.check_workers)
    bad.extend(measured.bad)
    bad.write()
    verdict = _verdict(bad, data_arguments, is_empty=not (parts and len(parts[0])))
    rows = make_rows(parts[0], processor, data_arguments, flags.seed) if parts and len(parts[0]) else None
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
            accounts=parts[0].accounts if parts else {},
            measured=measured,
            max_seq_len=data_arguments.max_seq_len,
            packed_rows=len(packed) if packed else None,
            packed_fill=packed.fill if packed else 0.0,
        ),
        path,
    )
    _say(bad, measured, verdict, path)
    return 1 if verdict else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m helper.check_data", description=__doc__)
    own = parser.add_argument_group("of the check alone")
    own.add_argument("--report", help=f"File to write the page to; otherwise {{output_dir}}/{_REPORT}.")
    own.add_argument("--report_samples", type=int, default=12, help="Conversations to show. Default: 12.")
    own.add_argument(
        "--check_workers",
        type=int,
        default=cores(),
        help="Processes that read and decode; 0: none beside this one. Default: one for each core.",
    )
    return read_flags(parser, argv)


def _processor(arguments: ModelArguments) -> ProcessorMixin:
    try:
        return build_processor(
            arguments.lm_model_name_or_path, arguments.vision_model_name_or_path, arguments.projector
        )
    except (OSError, ValueError) as error:  # as in training: not found, no network, not such a model
        raise UsageError(f"tokenizer and image processor cannot be made: {error}") from error


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
        "%s conversations, %s images, %s tokens, %.1f %% of them learned",
        f"{len(measured):,}",
        f"{int(measured.images.sum()):,}",
        f"{tokens:,}",
        100 * share,
    )
    logger.info("%s", bad.summary())
    if verdict:
        logger.info("training would stop: %s", verdict)
    logger.info("report: %s", path)


if __name__ == "__main__":
    sys.exit(main())
