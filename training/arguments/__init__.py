"""Training's command line: its flags, how they are read, and which of transformers' flags are refused."""

from training.arguments.model_and_data import DataArguments, ModelArguments
from training.arguments.run import RunArguments

__all__ = ["DataArguments", "ModelArguments", "RunArguments"]
