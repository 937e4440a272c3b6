"""Extracts the visual encoder of Qwen-VL and writes it as a folder for training.

    python -m helper.extract_qwen_vl --model Qwen/Qwen-VL-Chat --output qwen_vit

Reads the tensors `transformer.visual.*` alone (3.8 of the model's 19 GB, one at a time), from
safetensors or pickled shards, and runs none of the model's own code. The result is an ordinary folder for
`--vision_model_name_or_path`: 256 tokens of width 4096 for an image of 448 pixels. The encoder's last matrix,
`transformer.visual.proj`, leads into Qwen's own decoder and is left out. The weights keep Qwen's licence.
"""

from __future__ import annotations

from pathlib import Path

from utils.commands import Parser, command, complain, end_process, writable_folder
from utils.hub import require_model


@command
def main(argv: list[str] | None = None) -> int:
    """Extract from the command line; returns 0, or 2 for a user's mistake."""
    parser = Parser(prog="python -m helper.extract_qwen_vl", description=__doc__)
    parser.add_argument("--model", default="Qwen/Qwen-VL-Chat", help="folder or hub name (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--center_crop",
        action="store_true",
        help="scale the shorter side to 448 pixels and keep the middle, as in 2023; otherwise the whole picture"
        " is brought to 448 x 448, as Qwen-VL was trained",
    )
    arguments = parser.parse_args(argv)
    writable_folder(arguments.output.parent, "--output")
    require_model("--model", arguments.model)
    from helper.qwen_vl_encoder import extract

    try:
        config = extract(arguments.model, arguments.output, arguments.center_crop)
    except (OSError, ValueError) as error:
        return complain(error)
    print(
        f"{arguments.output}: Qwen-VL's encoder, {config.query_grid**2} tokens of width {config.output_size} for"
        f" a picture of {config.image_size} pixels; use it with --vision_model_name_or_path {arguments.output}"
    )
    return 0


if __name__ == "__main__":
    end_process(main())
