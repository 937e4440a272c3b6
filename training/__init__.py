"""Training: transformers' Trainer on DeepSpeed, with the 2023 command line. Start it with `training.main`."""

import utils  # noqa: F401 (before transformers' Trainer: it quiets a library that the Trainer imports)
