"""From conversations to batches: encoded, packed, padded."""
