"""`--data_debug_path`: look at what the model is taught, as images and text."""

from collections.abc import Sequence
from pathlib import Path

from transformers import ProcessorMixin

from utils.conversation import Conversation


def dump_samples(
    conversations: Sequence[Conversation], processor: ProcessorMixin, folder: str | Path, count: int = 10
) -> None:
    """Write the first conversations: sample_N.txt as the template renders it, sample_N_image_M.png."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(min(count, len(conversations))):
        conversation = conversations[number]
        text = processor.apply_chat_template(conversation.messages(load_images=False), tokenize=False)
        (folder / f"sample_{number}.txt").write_text(f"source: {conversation.source}\n\n{text}\n")
        for position, image in enumerate(conversation.images, start=1):
            image.open().save(folder / f"sample_{number}_image_{position}.png")
