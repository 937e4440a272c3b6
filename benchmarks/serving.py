"""Requests to the server at once against the same requests one after the other: answers, and tokens a second.

    python -m benchmarks.serving --size 120m

The server's own engine, without HTTP, answers greedy requests, each about an image of its own, over random weights:
first each by itself, then all together. The answers must be the same.
"""

import argparse
import queue
import statistics

import torch

from benchmarks.random_models import add_model_flags, described, model_of, noise, words
from benchmarks.turns import clock, peak_memory, print_machine
from chat.generation import RoundStatistics, Sampling
from chat.images import open_image
from chat.serving.engine import Engine, GenerationRequest, Job
from chat.serving.schema import Dialogue
from chat.session import ChatSession


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_flags(parser, rounds=3)
    parser.add_argument("--requests", type=int, default=8, help="at once")
    parser.add_argument(
        "--words", type=int, default=12, help="of a question; each has some more than the one before"
    )
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    arguments = parser.parse_args()
    model, processor = model_of(arguments)
    session = ChatSession(model, processor)
    session.image_store.states(
        [open_image(noise(number)) for number in range(arguments.requests)]
    )  # seen before
    asked = [
        GenerationRequest(
            Dialogue((), words(arguments.words + number, f"of {number}"), (open_image(noise(number)),), None),
            Sampling(),
            arguments.tokens,
        )
        for number in range(arguments.requests)
    ]
    print(
        f"serving: {len(asked)} requests, an image in each, answers of {arguments.tokens} tokens at most;"
        f" {described(model)}"
    )
    print_machine()
    seconds: dict[int, list[float]] = {1: [], len(asked): []}
    answers: dict[int, list[str]] = {}
    for number in range(-1, arguments.rounds):  # one unmeasured round first
        for together in seconds:
            engine = Engine(session, together)
            started = clock()
            answers[together], tokens = _answers(engine, asked)
            taken = clock() - started
            engine.close()
            if number >= 0:
                seconds[together].append(taken)
    alone, together = (statistics.median(each) for each in seconds.values())
    print(f"  one after the other  {alone:6.2f} s  {tokens / alone:6.1f} tokens/s")
    print(f"  all at once          {together:6.2f} s  {tokens / together:6.1f} tokens/s")
    print(f"  {alone / together:.2f} times the throughput; peak memory {peak_memory()}")
    differing = sum(one != other for one, other in zip(*answers.values(), strict=True))
    print(f"  {differing} of {len(asked)} answers differ")
    if differing and model.dtype == torch.float32:
        raise SystemExit("the answers differ")


def _answers(engine: Engine, asked: list[GenerationRequest]) -> tuple[list[str], int]:
    """The text of each answer, and the tokens of all."""
    events = [queue.SimpleQueue() for _ in asked]
    for each, told in zip(asked, events, strict=True):
        engine.submit(Job(each, told.put))
    texts, tokens = [], 0
    for told in events:
        text = ""
        while isinstance(event := told.get(), str):
            text += event
        if not isinstance(event, RoundStatistics):
            raise SystemExit(str(event))
        texts.append(text)
        tokens += event.generated_tokens
    return texts, tokens


if __name__ == "__main__":
    main()
