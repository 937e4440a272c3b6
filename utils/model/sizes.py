"""How large the two forms of a checkpoint are: `python -m utils.model.sizes` prints LLaMA-2's table.

Computed from shapes alone; nothing is loaded or allocated.
"""

import torch
from transformers import CLIPVisionConfig, LlamaConfig

from .building import freeze
from .checkpoint import readable_size
from .configuration_visual_chat import VisualChatConfig
from .lora import LoraSettings, inject_lora
from .modeling_visual_chat import VisualChatForConditionalGeneration

CLIP_L = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=224,
    patch_size=14,
)
LLAMA_2 = {
    "7B": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
    "13B": dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40),
    "70B": dict(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    ),
}
"""Shapes of the published models; Touvron et al., "Llama 2", 2023."""


def checkpoint_sizes(
    config: VisualChatConfig, lora: LoraSettings | None = None, dtype: torch.dtype = torch.bfloat16
) -> tuple[int, int]:
    """Bytes of weights in the full form and in the trained one, for a configuration; adapters count in the trained form
    only (merged in the other).

    The head's rows of added tokens, in the trained form too, are a few kilobytes and not counted.
    """
    with torch.device("meta"):
        model = VisualChatForConditionalGeneration(config)
    full = sum(tensor.numel() for tensor in model.state_dict().values())
    if lora:
        inject_lora(model, lora)
    freeze(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return full * dtype.itemsize, trained * dtype.itemsize


def llama_2_config(size: str, projector_type: str = "linear") -> VisualChatConfig:
    """CLIP ViT-L/14 with a LLaMA-2 of "7B", "13B" or "70B", the image token added."""
    text = LlamaConfig(vocab_size=32001, **LLAMA_2[size])
    return VisualChatConfig(vision_config=CLIP_L, text_config=text, projector_type=projector_type)


def main() -> None:
    """Print the table."""
    print(f"{'LLaMA-2, bf16':15}{'projector':12}{'full':>10}{'trained only':>14}")
    for size in LLAMA_2:
        for projector_type in ("linear", "vit", "perceiver"):
            sizes = checkpoint_sizes(llama_2_config(size, projector_type))
            full, trained = map(readable_size, sizes)
            print(f"{size:15}{projector_type:12}{full:>10}{trained:>14}")


if __name__ == "__main__":
    main()
