"""The error of a wrong command line."""


class UsageError(ValueError):
    """A mistake in the command line; the message is one line and says what to do."""
