"""Write curves.png and summary.md for runs that go on, or have ended: `python -m training.run_report OUTPUT_DIR ...`"""

from collections.abc import Sequence
from pathlib import Path

from utils.commands import Parser, command, end_process


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 where a folder holds no run."""
    parser = Parser(prog="python -m training.run_report", description=__doc__)
    parser.add_argument("output_dir", nargs="+", type=Path, help="--output_dir of a training")
    folders = parser.parse_args(argv).output_dir
    from training.run_report.history import History
    from training.run_report.summary import write_report
    from utils.distributed import configure_logging

    configure_logging()
    for folder in folders:
        write_report(History.read(folder), folder)
    return 0


if __name__ == "__main__":
    end_process(main())
