"""Public benchmarks on our checkpoints: the model as lmms-eval wants it, over this project's batched generation.

    python -m eval.lmms_eval_model --checkpoint_path CHECKPOINT --tasks mme,seedbench [further flags of lmms-eval]

lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval, 0.7 or later) is installed by those who want it: `pip
install lmms_eval`. It brings the tasks, downloads their data and scores the answers.
"""

import sys
from collections.abc import Sequence
from typing import Any

from utils.commands import Parser, complain
from utils.plugins import add_plugin_argument

try:
    from lmms_eval.api.instance import Instance
    from lmms_eval.api.model import lmms
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.models.registry_v2 import ModelManifest
except ModuleNotFoundError as error:
    if __name__ == "__main__":
        sys.exit(complain(f"{error}; install lmms-eval for this command: pip install lmms_eval"))
    raise

import PIL.Image
import torch
from tqdm import tqdm

from chat.generation.decoding import Sampling
from eval.dialogues import EvalDialogue, EvalTurn
from eval.generation import DialogueRunner, GenerationSettings
from utils import distributed
from utils.conversation import Image
from utils.hub import checkpoint_folder
from utils.model.checkpoint import load_checkpoint

NAME = "visualchat"
_BATCHES_AT_ONCE = 8  # whose requests are put in order of length; more images would fill the memory


class VisualChat(lmms):
    """A checkpoint that answers lmms-eval's questions; its arguments come as `--model_args a=b,c=d`."""

    is_simple = False

    def __init__(
        self,
        checkpoint_path: str,
        batch_size: int | str = 8,
        device_map: str = "auto",
        dtype: str = "auto",
        max_seq_len: int = 4096,
        max_new_tokens: int = 256,
        device: str | None = None,
        max_batch_size: int | None = None,
        **_: Any,
    ) -> None:
        """`batch_size`, `device` and `max_batch_size` are what lmms-eval hands to every model."""
        super().__init__()
        self._rank, self._world_size = distributed.rank(), distributed.world_size()
        if self._world_size > 1 and device_map == "auto" and torch.accelerator.is_available():
            device_map = {"": distributed.local_rank()}
        self._model, self._processor = load_checkpoint(
            checkpoint_folder(checkpoint_path), device_map=device_map, dtype=dtype
        )
        self._batch_size = int(batch_size)
        self._max_seq_len, self._max_new_tokens = int(max_seq_len), int(max_new_tokens)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answers, in the order of the requests; each is cut where the task says that one ends."""
        answers = [""] * len(requests)
        with tqdm(total=len(requests), desc="answering", disable=self._rank > 0) as progress:
            for settings, places in self._groups(requests):
                runner = DialogueRunner(self._model, self._processor, settings)
                size = _BATCHES_AT_ONCE * self._batch_size
                for start in range(0, len(places), size):
                    some = places[start : start + size]
                    given = runner.run([self._dialogue(requests[place]) for place in some])
                    for place, turns in zip(some, given, strict=True):
                        answers[place] = _cut(turns[-1] or "", _endings(requests[place].args[2]))
                    progress.update(len(some))
        return answers

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered: tasks whose next question depends on the answer before it."""
        raise NotImplementedError(
            f"{requests[0].task_name} asks in rounds, which this adapter does not do: leave it out of --tasks"
        )

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not offered: tasks that compare the likelihoods of given answers."""
        raise NotImplementedError(
            f"{requests[0].task_name} compares likelihoods, which this adapter does not do: leave it out of --tasks"
        )

    def _groups(self, requests: Sequence[Instance]) -> list[tuple[GenerationSettings, list[int]]]:
        """The requests' places, together where they are answered under the same settings."""
        groups: dict[GenerationSettings, list[int]] = {}
        for place, request in enumerate(requests):
            asked = request.args[2]
            settings = GenerationSettings(
                self._batch_size,
                int(asked.get("max_new_tokens") or self._max_new_tokens),
                self._max_seq_len,
                "reference",  # a dialogue that a task begins goes on from the task's own answers
                Sampling(float(asked.get("temperature") or 0), float(asked.get("top_p") or 1)),
            )
            groups.setdefault(settings, []).append(place)
        return list(groups.items())

    def _dialogue(self, request: Instance) -> EvalDialogue:
        _, messages_of, _, document, task, split = request.args
        return dialogue_of(messages_of(self.task_dict[task][split][document]), f"{task} {document}")


def dialogue_of(messages: Sequence[dict[str, Any]], name: str) -> EvalDialogue:
    """lmms-eval's messages (role, content of texts and images) as a dialogue whose last question is to be answered.

    What the system says stands before the first question. Raises `ValueError` for other media and other orders.
    """
    turns: list[EvalTurn] = []
    before: list[str] = []
    for message in messages:
        texts, images = [], []
        for part in message["content"]:
            if part["type"] == "text":
                texts.append(part["text"])
            elif part["type"] == "image":
                images.append(_image(part["url"], name))
            else:
                raise ValueError(f"{name}: {part['type']} is not something that this model takes")
        text = "\n".join(texts).strip()
        if message["role"] == "system":
            before.append(text)
        elif message["role"] == "user":
            turns.append(EvalTurn("\n".join([*before, text]), images=tuple(images)))
            before = []
        elif turns and not turns[-1].references:
            turns[-1] = EvalTurn(turns[-1].question, images=turns[-1].images, references=(text,))
        else:
            raise ValueError(f"{name}: an answer without a question")
    if not turns or turns[-1].references:
        raise ValueError(f"{name}: there is no question to answer")
    return EvalDialogue(name, tuple(turns))


def _image(source: Any, name: str) -> Image:
    if isinstance(source, PIL.Image.Image):
        return Image(source, f"{name}: an image")
    return Image(source)


def _endings(settings: dict[str, Any]) -> list[str]:
    until = settings.get("until") or []
    return [until] if isinstance(until, str) else list(until)


def _cut(answer: str, endings: Sequence[str]) -> str:
    for ending in filter(None, endings):
        answer = answer.split(ending)[0]
    return answer.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: lmms-eval's own, with this model filled in; returns its exit status."""
    from lmms_eval import __main__ as command

    parser = Parser(prog="python -m eval.lmms_eval_model", add_help=False, allow_abbrev=False)
    parser.add_argument("--checkpoint_path")
    parser.add_argument("--model_args")
    add_plugin_argument(parser)
    own, further = parser.parse_known_args(arguments)
    if own.checkpoint_path is None:
        return complain("--checkpoint_path is missing: give a checkpoint")
    MODEL_REGISTRY_V2.register_manifest(
        ModelManifest(NAME, chat_class_path="eval.lmms_eval_model.VisualChat"), overwrite=True
    )
    model_args = ",".join(filter(None, [f"checkpoint_path={own.checkpoint_path}", own.model_args]))
    sys.argv = ["lmms_eval", "--model", NAME, "--model_args", model_args, *further]
    begun: list[Any] = []
    evaluate = command.cli_evaluate_single

    def noted(settings: Any) -> Any:
        begun.append(settings)
        results = evaluate(settings)
        begun.pop()
        return results

    command.cli_evaluate_single = noted  # an error there is logged, and the command ends with 0 all the same
    try:
        command.cli_evaluate()
    finally:
        command.cli_evaluate_single = evaluate
    return 1 if begun else 0


if __name__ == "__main__":
    sys.exit(main())
