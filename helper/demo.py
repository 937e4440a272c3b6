"""The main job on real pretrained parts, end to end: `python -m helper.demo` (or `make demo`).

Converts a decoder, an encoder and images of PyPI packages (docs/demonstration.md), trains from a random projection with
`training_scripts/run_demo.sh` (DeepSpeed ZeRO-2, two processes), evaluates the model before and after on a drawing
style that it has never seen, and holds a dialogue over three images. Values of the training script can be set from the
environment, e.g. `SEED=2 MAX_STEPS=100 make demo`. Where a package is missing, a line says which, and the miniature is
trained in its place (`run_tiny.sh`), which learns to see little.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from helper.demonstration.files import Demonstration, make_demonstration
from utils.answers import is_correct
from utils.commands import INTERRUPTED, ROOT, Parser, UsageError, command, end_process, writable_folder

OWN = ".demonstration"
"""A file that marks an output folder as written by this program."""
console = Console(highlight=False)


@command
def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(
        prog="python -m helper.demo",
        description=__doc__,
    )
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "demonstration", help="parts and images")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "demo")
    parser.add_argument("--dialogues", type=int, default=2560, help="to learn from (default: %(default)s)")
    parser.add_argument("--held_out", type=int, default=150, help="to be asked (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1234, help="of the dialogues (default: %(default)s)")
    arguments = parser.parse_args(argv)
    data, output = arguments.data.resolve(), arguments.output.resolve()
    final, begun = output / "final", time.monotonic()
    writable_folder(output, "--output")
    writable_folder(data, "--data")
    try:
        with _step("1/4  Convert decoder and encoder, draw images, write dialogues"):
            try:
                made = make_demonstration(data, arguments.dialogues, arguments.held_out, arguments.seed)
            except UsageError as error:
                console.print(f"{error}\nThe miniature is trained in its place.", style="yellow")
                made = miniature(data / "miniature", arguments.dialogues)
        with _step("2/4  Train: frozen encoder, projection, frozen decoder with MMCA, DeepSpeed ZeRO-2"):
            places = {"LM_MODEL": made.decoder, "VISION_MODEL": made.encoder, "DATA_PATH": made.data}
            given = {**os.environ, **places, "OUTPUT_DIR": output, "PYTHON": sys.executable}
            again = ("--overwrite_output_dir", "true") if _is_own(output) else ()
            _run("bash", ROOT / "training" / "training_scripts" / made.script, *again, environment=given)
        with _step("3/4  Ask it before training and after, about images that it has never seen"):
            save_untrained(made, final, output / "untrained")
            results = [output / "before", output / "evaluation"]
            for checkpoint, result in zip((output / "untrained", final), results, strict=True):
                of_what = ("--checkpoint_path", checkpoint, "--eval_data", made.held_out)
                how = ("--output_filename", result, "--batch_size", "50", "--max_new_tokens", "24")
                _module("eval.batch_generation", *of_what, *how)
            names = ("--names", "before", "after", "--output", output / "evaluation.html")
            _module("eval.report", *(each.with_suffix(".json") for each in results), *names)
            console.print(f"  guessing the end of each answer: {guessed(made.held_out):.1%}")
        with _step("4/4  Talk about images it has never seen"):
            hold_dialogue(final, made.held_out)
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
    console.print(f"All dialogues, to look at:  {_shown(output / 'evaluation.html')}")
    console.print(f"The training's curve:  {_shown(output / 'curves.png')}")
    console.print(f"Images to ask about:  {_shown(made.held_out.parent / 'image')}")
    return 0


def miniature(folder: Path, records: int) -> Demonstration:
    """Coloured shapes in the published layouts, and the small models in assets/."""
    from helper.miniature.published import write_layouts  # takes seconds: the library datasets

    write_layouts(folder, min(records, 300))
    parts = ROOT / "assets" / "tiny_llama", ROOT / "assets" / "tiny_clip"
    return Demonstration(*parts, folder, folder / "eval" / "miniature.json", "run_tiny.sh")


def save_untrained(made: Demonstration, final: Path, folder: Path) -> None:
    """The model as a training begins it: like `final`, but its embedding the decoder's, its projection random."""
    # Imported here: the steps before run in processes of their own, and torch takes seconds to import.
    import torch

    from utils.model import VisualChatConfig
    from utils.model.building import LoraSettings, build_visual_chat
    from utils.model.checkpoint import save_trained_only

    torch.manual_seed(0)
    config = VisualChatConfig.from_pretrained(final)
    model, processor = build_visual_chat(
        str(made.decoder),
        str(made.encoder),
        attention=config.attention,
        image_layers=config.image_layers,
        image_gate=config.image_gate,
        image_summary="mean" if config.image_summary_token_id is not None else "none",
        lora=LoraSettings(**config.lora) if config.lora else None,
        dtype=torch.bfloat16,
    )
    save_trained_only(model, processor, folder)


def guessed(held_out: Path) -> float:
    """Share of the answers whose end (yes, two, Image 2) is the commonest of its kind: what blind guessing reaches."""
    from eval.dialogues import load_dialogues  # imported here, as above

    turns = [turn for each in load_dialogues(held_out) for turn in each.turns]
    ends: dict[str, Counter[str]] = defaultdict(Counter)
    for turn in turns:
        ends[turn.kind or ""][re.split(": | in ", turn.reference or "")[-1]] += 1
    return sum(max(each.values()) for each in ends.values()) / len(turns)


def hold_dialogue(checkpoint: Path, held_out: Path) -> None:
    """Prints a dialogue about three held-out images, each answer beside the right one."""
    from chat.session import ChatSession  # imported here, as above
    from eval.dialogues import load_dialogues

    dialogues = load_dialogues(held_out)
    session = ChatSession.from_pretrained(checkpoint, max_new_tokens=24)
    for turn in next((each for each in dialogues if each.images == 3), dialogues[0]).turns:
        for number, image in enumerate(turn.images, len(session.images) + 1):
            console.print(f"  [dim]image {number}: {_shown(str(image.source))}[/dim]")
        answer = "".join(session.ask(turn.question, turn.images))
        right = is_correct(answer, turn.references)
        verdict = "[green]right[/green]" if right else f"[red]wrong: {turn.reference}[/red]"
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
