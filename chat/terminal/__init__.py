"""The terminal chat: what is typed, what is done, what is shown."""
