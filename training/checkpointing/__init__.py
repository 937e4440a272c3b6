"""Checkpoints: written whole or not at all, found again, and read back exactly."""
