"""Answers from a model: `Generator` gives any number of them together, under a chat, an evaluation or a server."""

from chat.generation.decoding import EMPTY_ANSWER, Sampling, SamplingError, recordable
from chat.generation.engine import Answer, Generator, Request, RoundStatistics, store_if_possible
from chat.generation.reading import ImageKVStore, Prompt

__all__ = [
    "EMPTY_ANSWER",
    "Answer",
    "Generator",
    "ImageKVStore",
    "Prompt",
    "Request",
    "RoundStatistics",
    "Sampling",
    "SamplingError",
    "recordable",
    "store_if_possible",
]
