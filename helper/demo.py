"""The main job on the miniature world, end to end: `python -m helper.demo` (or `make demo`).

Draws the world, trains with `training_scripts/run_tiny.sh` (DeepSpeed ZeRO-3, two processes), evaluates the final
checkpoint on new images, and holds a dialogue over three pictures and four rounds with it. Values of the training
script can be set from the environment, e.g. `LANG_LORA_DIM=0 make demo`. Further options go to
`helper.make_tiny_world`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from utils.commands import INTERRUPTED, Parser, command, end_process, writable_folder

ROOT = Path(__file__).resolve().parent.parent
DIALOGUE_SEED = 2
OWN = ".demonstration"
"""A file that marks an output folder as written by this program."""
EXAMPLES_SEED = 3
console = Console(highlight=False)


@command
def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m helper.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "miniature")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "tiny")
    arguments, world_options = parser.parse_known_args(argv)
    arguments.data, arguments.output = arguments.data.resolve(), arguments.output.resolve()
    final = arguments.output / "final"
    begun = time.monotonic()
    writable_folder(arguments.output, "--output")
    writable_folder(arguments.data.parent, "--data")
    try:
        with _step("1/4  Draw the miniature world"):
            _module("helper.make_tiny_world", "--output", arguments.data, *world_options)
        with _step("2/4  Train: frozen CLIP, projection, frozen LLaMA with MMCA, DeepSpeed ZeRO-3"):
            places = {"DATA_PATH": arguments.data, "OUTPUT_DIR": arguments.output, "PYTHON": sys.executable}
            given = {**os.environ, **places}
            again = ("--overwrite_output_dir", "true") if _is_own(arguments.output) else ()
            script = ROOT / "training" / "training_scripts" / "run_tiny.sh"
            _run("bash", script, *again, environment=given)
        with _step("3/4  Evaluate on other images: several of them, several rounds"):
            questions, results = arguments.data / "eval" / "miniature.json", arguments.output / "evaluation"
            of_what = ("--checkpoint_path", final, "--eval_data", questions, "--output_filename", results)
            _module("eval.batch_generation", *of_what, "--batch_size", "50", "--max_new_tokens", "8")
            _module("eval.report", results.with_suffix(".json"), "--title", "Miniature world")
            write_examples(final / "examples")
        with _step("4/4  Talk about three pictures it has never seen"):
            hold_dialogue(final, arguments.output / "dialogue")
    except subprocess.CalledProcessError as error:
        if error.returncode in (INTERRUPTED, -signal.SIGINT):
            return INTERRUPTED  # the step has said so
        console.print(
            f"demo: this step failed with exit code {error.returncode}; its message is above", style="red"
        )
        return 1
    console.print(
        f"\nAll of it took {_minutes(time.monotonic() - begun)}. The checkpoint: [bold]{final}[/bold]"
    )
    console.print(f"Chat with it:  {_shown(sys.executable)} -m chat.chat --checkpoint_path {_shown(final)}")
    console.print(f"All dialogues, to look at:  {_shown(arguments.output / 'evaluation.html')}")
    console.print(f"Pictures to ask about:  {_shown(arguments.data / 'eval' / 'image')}")
    return 0


def hold_dialogue(checkpoint: Path, folder: Path) -> None:
    """Prints a dialogue over three new pictures and four rounds, each answer beside the right one."""
    # Imported here: the steps before it run in processes of their own, and torch takes seconds to import.
    from chat.session import ChatSession
    from helper.miniature.album import Album

    album = Album([DIALOGUE_SEED])
    session = ChatSession.from_pretrained(checkpoint, max_new_tokens=8)
    folder.mkdir(parents=True, exist_ok=True)
    shown = 0
    for turn in album.dialogue([album.thing() for _ in range(3)], rounds=4):
        pictures = []
        for thing in turn.new:
            shown += 1
            pictures.append(folder / f"image-{shown}.png")
            album.draw(thing, pictures[-1])
            console.print(f"  [dim]image {shown}: {_shown(pictures[-1])} ({thing})[/dim]")
        answer = "".join(session.ask(turn.question, pictures))
        verdict = "[green]right[/green]" if answer == turn.answer else f"[red]wrong: {turn.answer}[/red]"
        console.print(
            f"  [bold]Question[/bold]  {turn.question}\n  [bold]Answer[/bold]    {answer}   {verdict}"
        )


def _is_own(output: Path) -> bool:
    """Whether a run in `output` is an earlier demonstration's, and may be replaced; a person's own may not."""
    from training.checkpointing.folders import results_in

    mark = output / OWN
    if not mark.exists() and not results_in(output):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    return mark.exists()


def write_examples(folder: Path) -> None:
    """Questions about new images, with the right answers: the web page offers them on its cards."""
    from chat.saved_dialogues import save_dialogue
    from helper.miniature.album import Album
    from utils.conversation import Image, Turn

    album = Album([EXAMPLES_SEED])
    folder.mkdir(exist_ok=True)
    for images in (1, 2, 3):
        [asked] = album.dialogue([album.thing() for _ in range(images)])
        shown = tuple(Image(album.image(thing), f"{n}.png") for n, thing in enumerate(asked.new, start=1))
        save_dialogue(folder / f"{images}.json", [Turn(asked.question, asked.answer, shown)], None)


@contextmanager
def _step(title: str) -> Iterator[None]:
    console.rule(f"[bold]{title}", align="left")
    begun = time.monotonic()
    yield
    console.print(f"[dim]took {_minutes(time.monotonic() - begun)}[/dim]\n")


def _module(name: str, *words: str | Path) -> None:
    _run(sys.executable, "-m", name, *words, environment=os.environ)


def _run(*command: str | Path, environment: Mapping[str, str | Path]) -> None:
    given = {name: str(value) for name, value in environment.items()}
    subprocess.run([str(part) for part in command], cwd=ROOT, env=given, check=True)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def _shown(path: str | Path) -> Path:
    """A path as one would type it from the repository's root."""
    path = Path(path).absolute()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


if __name__ == "__main__":
    end_process(main())
