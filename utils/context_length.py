"""How many tokens a decoder can read at a time, as its configuration says."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def longest_dialogue(config: "PreTrainedConfig", max_seq_len: int) -> int:
    """How many tokens a dialogue may have: `max_seq_len`, or the decoder's positions where they are fewer.

    config: the decoder's, or that of a model that holds it. Rotations that are stretched by a factor (linear,
    dynamic, YaRN) reach so many times farther than the positions that they were trained with.
    """
    config = config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if not positions:
        return max_seq_len
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [each for each in rope.values() if isinstance(each, dict)] or [rope]  # one for each kind of layer
    stretched = [
        int((each.get("original_max_position_embeddings") or positions) * (each.get("factor") or 1))
        for each in kinds
    ]
    return min(max_seq_len, max(positions, *stretched))
