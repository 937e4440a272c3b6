"""Write curves.png and summary.md for runs that go on, or have ended: `python -m training.run_report OUTPUT_DIR ...`"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training.run_report.history import History
from training.run_report.write import write_report
from training.usage import UsageError
from utils.distributed import configure_logging


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 where a folder holds no run."""
    parser = argparse.ArgumentParser(prog="python -m training.run_report", description=__doc__)
    parser.add_argument("output_dir", nargs="+", type=Path, help="--output_dir of a training")
    configure_logging()
    try:
        for folder in parser.parse_args(argv).output_dir:
            write_report(History.read(folder), folder)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
