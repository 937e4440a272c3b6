"""The README.md of a checkpoint folder."""

from transformers import PreTrainedConfig

from .configuration_visual_chat import VisualChatConfig

_CARD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
---

# A VisualChat checkpoint

It chats about any number of images over several rounds: a {encoder} encoder ({tokens} tokens an image), a
{projector} projector and a {decoder} decoder, joined by the attention "{attention}".

{form}

## Load it

With the VisualChat project, from its root:

```python
import utils.model  # registers the model with transformers
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("this/folder", device_map="auto")
processor = AutoProcessor.from_pretrained("this/folder")
```

Without it, leave out the first line and give both calls `trust_remote_code=True`; the folder holds the code.

## Ask it

```python
messages = [{{"role": "user", "content": [
    {{"type": "image", "path": "first.jpg"}}, {{"type": "image", "path": "second.jpg"}},
    {{"type": "text", "text": "What differs between image 1 and image 2?"}}]}}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
answer = model.generate(**inputs.to(model.device), max_new_tokens=256)
print(processor.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```
"""

_FULL = "This folder holds all weights ({size}); nothing else is needed."
_TRAINED = """\
This folder holds the trained weights only ({size}): the decoder's input embedding, the projector{others}.
The other weights come from the decoder `{language_model}` and the encoder `{vision_model}`. Where
these are somewhere else, say so:
`from_pretrained(..., base_models={{"language_model": ..., "vision_model": ...}})`."""


def model_card(config: VisualChatConfig, size: int) -> str:
    """The card of a checkpoint whose weights take `size` bytes."""
    if config.checkpoint_form == "full":
        form = _FULL.format(size=readable_size(size))
    else:
        others = ["low-rank adapters"] if config.lora else []
        others += [f"trained weights of the {part}" for part in config.trained_parts or ()]
        said = "".join(f", {each}" for each in others)
        form = _TRAINED.format(size=readable_size(size), others=said, **(config.frozen_from or {}))
    vision: PreTrainedConfig = config.vision_config
    text: PreTrainedConfig = config.text_config
    return _CARD.format(
        encoder=vision.model_type,
        tokens=config.image_seq_length,
        projector=config.projector_type,
        decoder=text.model_type,
        attention=config.attention,
        form=form,
    )


def readable_size(size: int) -> str:
    """Bytes in the largest unit that leaves at least one: "812 MB", "13.5 GB"."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} bytes"
