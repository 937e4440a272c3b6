"""Tools beside training: models and data made, checked, planned for and exported."""

import utils  # noqa: F401 (before transformers' Trainer: it quiets a library that the Trainer imports)
