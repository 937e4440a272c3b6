"""Liger's kernels in a decoder: rotary embedding, RMSNorm and SwiGLU, each fused into one for NVIDIA's GPUs.

Its fused loss is not taken: `loss` computes losses chunk by chunk, at supervised rows only. Optional, for
decoders whose kind the package knows.
"""

from importlib.util import find_spec

import torch
from transformers import PreTrainedModel


class LigerError(ValueError):
    """Why Liger's kernels cannot be used here; one line."""


def apply_liger(decoder: PreTrainedModel) -> None:
    """Put the kernels into a decoder, in place. Raises `LigerError` where that is not possible."""
    if find_spec("liger_kernel") is None:
        raise LigerError("--use_liger_kernel needs the package liger-kernel: pip install liger-kernel")
    if not torch.cuda.is_available():
        raise LigerError("--use_liger_kernel needs a GPU, and there is none; leave it out")
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    kind = decoder.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise LigerError(f"--use_liger_kernel: the package has no kernels for decoders of kind {kind!r}")
    _apply_liger_kernel_to_instance(model=decoder, cross_entropy=False, fused_linear_cross_entropy=False)
