"""Running evaluation dialogues through checkpoints, and scoring the answers."""
