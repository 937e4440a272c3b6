"""A page to look at before training: what the data hold, what is bad in them, and what the model is taught."""

from training.data_report.measure import Measurement, measure
from training.data_report.page import Report, short_name, write_report
from training.data_report.samples import SampledRow, draw_samples

__all__ = ["Measurement", "Report", "SampledRow", "draw_samples", "measure", "short_name", "write_report"]
