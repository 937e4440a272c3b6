"""From a mixture of datasets to the batches of each process, in an order that no number of processes changes."""
