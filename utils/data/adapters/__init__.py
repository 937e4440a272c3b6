"""From a raw record of a published format to a conversation: one module per family of formats."""
