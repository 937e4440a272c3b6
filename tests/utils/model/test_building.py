"""Building from pretrained folders: what is added, what is frozen."""

import torch

from utils.model import build_visual_chat


def test_builds_and_runs(llama_folder, clip_folder):
    model, processor = build_visual_chat(str(llama_folder), str(clip_folder))
    ids = torch.tensor([[1] + [processor.image_token_id] * 5 + [7, 8, 9]])
    out = model(input_ids=ids, pixel_values=torch.randn(1, 3, 16, 16))
    assert out.logits.shape == (1, 9, model.config.text_config.vocab_size)
