"""Training: transformers' Trainer on DeepSpeed, with the 2023 command line. Start it with `training.main`."""
