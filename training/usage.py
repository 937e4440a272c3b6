"""The error of a wrong command line, under the name by which training knows it."""

from utils.commands import UsageError

__all__ = ["UsageError"]
