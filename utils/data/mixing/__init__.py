"""From a dataset's records to the conversations of an epoch: indexed, chosen, joined, mixed."""
