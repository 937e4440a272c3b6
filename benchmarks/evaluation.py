"""Questions a second in evaluation, ten questions about each picture, with and without the image store.

    taskset -c 1 python -m benchmarks.evaluation --size 120m

The same runner over the same random weights and questions; each round starts with an empty store. In float32 the
answers of both must be the same, or the benchmark fails; in bfloat16, where the likeliest of random weights' tokens
are as good as equal, it says how many differ.
"""

import argparse
import statistics

import torch

from benchmarks.random_models import add_model_flags, described, model_of, noise, words
from benchmarks.turns import peak_memory, print_machine, print_ratios, take_turns, timed
from eval.dialogues import EvalDialogue, EvalTurn
from eval.generation import DialogueRunner, GenerationSettings


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_flags(parser)
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--images", type=int, default=1, help="pictures of a dialogue, asked about together")
    parser.add_argument("--questions", type=int, default=10, help="about each picture, a dialogue each")
    parser.add_argument("--words", type=int, default=12, help="of a question")
    parser.add_argument("--tokens", type=int, default=4, help="of an answer")
    parser.add_argument("--batch_size", type=int, default=10)
    arguments = parser.parse_args()
    model, processor = model_of(arguments)
    dialogues = dialogues_about(arguments.pictures, arguments.questions, arguments.words, arguments.images)
    print(
        f"evaluation: {arguments.questions} questions about each of {arguments.pictures} pictures,"
        f" {arguments.images} in a dialogue, in batches of {arguments.batch_size}, answers of"
        f" {arguments.tokens} tokens; {described(model)}"
    )
    print_machine()
    answers: dict[bool, list[list[str | None]]] = {}

    def run(keep_images: bool) -> float:
        settings = GenerationSettings(batch_size=arguments.batch_size, max_new_tokens=arguments.tokens)
        runner = DialogueRunner(model, processor, settings, keep_images=keep_images)  # its store is empty
        seconds = timed(lambda: answers.update({keep_images: runner.run(dialogues)}))
        return seconds / len(dialogues)

    measured = take_turns(
        {"with the store": lambda number: run(True), "without": lambda number: run(False)}, arguments.rounds
    )
    print_ratios(measured, "ms a question", 1000, reference="with the store")
    kept, anew = (statistics.median(measured[name]) for name in ("with the store", "without"))
    print(f"  {1 / kept:.2f} questions/s with the store, {1 / anew:.2f} without: {anew / kept:.2f} times")
    print(f"  peak memory {peak_memory()}")
    differing = sum(ours != theirs for ours, theirs in zip(answers[True], answers[False], strict=True))
    print(f"  {differing} of {len(dialogues)} answers differ")
    if differing and model.dtype == torch.float32:
        raise SystemExit("the answers differ")


def dialogues_about(pictures: int, questions: int, length: int, together: int = 1) -> list[EvalDialogue]:
    """A dialogue of one question each, in the order in which benchmarks of questions have them: by pictures, of
    which `together` share a dialogue."""
    shown = [noise(number) for number in range(pictures)]
    sets = [tuple(shown[start : start + together]) for start in range(0, pictures, together)]
    return [
        EvalDialogue(
            f"pictures {number}, question {asked}", (EvalTurn(words(length, f"of {asked}"), images=images),)
        )
        for number, images in enumerate(sets)
        for asked in range(questions)
    ]


if __name__ == "__main__":
    main()
