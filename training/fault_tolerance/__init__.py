"""What keeps a run from being lost: signals, lost processes, losses that are no numbers, stalls."""
