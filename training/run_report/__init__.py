"""What a finished or running training tells about itself: curves and a summary, drawn from its history."""

from training.run_report.write import close_run, write_report

__all__ = ["close_run", "write_report"]
