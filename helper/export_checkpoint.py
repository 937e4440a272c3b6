"""Converts a checkpoint to another form: `python -m helper.export_checkpoint --checkpoint_path output/final ...`.

- full: every weight, adapters merged; loads with transformers alone.
- trained: the trained weights, with separate adapters, and references to the frozen base models.
- adapter: the low-rank adapters alone, as peft's own folders for the base models (`decoder`, `encoder`).

The source is any folder that training writes: checkpoint-N, best, final. The result is loaded again and must compute
the same as its source before it gets its name; --push_to_hub uploads it afterwards.
"""

from pathlib import Path

from chat.arguments import base_models
from utils.commands import Parser, command, complain, end_process, writable_folder
from utils.hub import checkpoint_folder
from utils.plugins import add_plugin_argument

FORMS = ("full", "trained", "adapter")


@command
def main(argv: list[str] | None = None) -> int:
    """Export as the command line says; returns the exit code: 0, or 2 for a mistake."""
    parser = Parser(prog="python -m helper.export_checkpoint", description=__doc__)
    parser.add_argument(
        "--checkpoint_path",
        required=True,
        help="checkpoint-N, best or final, the folder of a run, or a hub name",
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--form", choices=FORMS, default="full")
    parser.add_argument(
        "--lm_model_name_or_path",
        help="folder or hub name of the decoder if it has moved; the result refers to it",
    )
    parser.add_argument("--vision_model_name_or_path", help="the same for the encoder")
    add_plugin_argument(parser)
    parser.add_argument("--dtype", choices=("auto", "float32", "float16", "bfloat16"), default="auto")
    parser.add_argument(
        "--device_map", default="cpu", help="devices to compute on: cpu (default), auto, cuda:0, ..."
    )
    parser.add_argument("--push_to_hub", metavar="OWNER/NAME", help="upload the result to this repository")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    given = parser.parse_args(argv)
    source = checkpoint_folder(given.checkpoint_path)
    bases = base_models(given, source)
    writable_folder(given.output.parent, "--output")
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from helper.checkpoint_forms import Export, export, push
    from utils.model.checkpoint import readable_size

    task = Export(source, given.output, given.form, bases, given.dtype, given.device_map)
    try:
        print(export(task))
        size = sum(file.stat().st_size for file in given.output.rglob("*") if file.is_file())
        print(f"{given.output}: {given.form}, {readable_size(size)}")
        if given.push_to_hub:
            print(f"uploaded: {push(given.output, given.push_to_hub, given.private)}")
    except (ValueError, OSError, HfHubHTTPError, HFValidationError) as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    end_process(main())
