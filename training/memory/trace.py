"""The largest batches that a training's settings allow, and what a forward and a backward pass over one allocate.

That is found by running the model itself on shapes. So the plan follows the code: another decoder, adapters, another
kernel, a head that is cut into pieces, all are traced as they are. Weights are not counted here, and gradients of
weights on request (`ZeRO` treats them in its own ways, see `states`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.autograd.function import FunctionCtx
from transformers import PreTrainedModel

from training.memory.shapes import ShapeRun
from utils.model import VisualChatConfig, VisualChatForConditionalGeneration
from utils.model.building import freeze
from utils.model.configuration_visual_chat import IGNORED_LABEL
from utils.model.lora import PUBLISHED, LoraSettings, inject_lora
from utils.model.quantised import UNQUANTISED, FrozenBits, encoder_matrices
from utils.model.vision import image_size


@dataclass(frozen=True)
class BatchShape:
    """What of a batch decides its memory: `rows` of `length` tokens with `images` images each.

    `supervised` is the share of the text tokens that are learned; a packed batch has positions in the place of
    a mask.
    """

    rows: int
    length: int
    images: int
    tokens_per_image: int
    supervised: float = 1.0
    packed: bool = False

    @property
    def image_tokens(self) -> int:
        """Image tokens of a row."""
        return self.images * self.tokens_per_image

    @property
    def text_tokens(self) -> int:
        """Text tokens of a row."""
        return self.length - self.image_tokens

    @property
    def learned(self) -> int:
        """Tokens of the whole batch that have a label."""
        return self.rows * round(self.supervised * self.text_tokens)

    def with_rows(self, rows: int) -> "BatchShape":
        """The same with another number of rows."""
        return replace(self, rows=rows)


def largest_batches(
    rows: int,
    max_seq_len: int,
    max_images: int,
    tokens_per_image: int,
    supervised: float = 1.0,
    packed: bool = False,
) -> tuple[BatchShape, ...]:
    """The batches of which one needs the most memory: with the most images that fit, and with none.

    Images cost encoder and projector, text costs the head where it is learned: which is more depends on the
    models. The collator pads to multiples of 8.
    """
    length = -(-max_seq_len // 8) * 8
    fitting = min(max_images, (max_seq_len - 1) // tokens_per_image)  # some text has to be left
    counts = dict.fromkeys((fitting, 0))
    return tuple(BatchShape(rows, length, count, tokens_per_image, supervised, packed) for count in counts)


def make_batch(
    shape: BatchShape, image_token_id: int, text_token_id: int, image_size: int, device: str = "meta"
) -> dict[str, torch.Tensor]:
    """A batch of a shape: images evenly through the text, labels at the end of it; pixels on `device`."""
    kinds = torch.zeros(shape.length, dtype=torch.long)
    gap = shape.text_tokens // (shape.images + 1)
    for image in range(shape.images):
        start = (image + 1) * gap + image * shape.tokens_per_image
        kinds[start : start + shape.tokens_per_image] = 1
    ids = torch.where(kinds == 1, image_token_id, text_token_id)
    labels = torch.full_like(ids, IGNORED_LABEL)
    text = (kinds == 0).nonzero()[:, 0]
    learned = shape.learned // shape.rows
    labels[text[shape.text_tokens - learned :]] = text_token_id
    row = {"input_ids": ids, "mm_token_type_ids": kinds, "labels": labels}
    place = "position_ids" if shape.packed else "attention_mask"
    row[place] = torch.arange(shape.length) if shape.packed else torch.ones_like(ids)
    batch = {name: values.expand(shape.rows, -1).contiguous() for name, values in row.items()}  # [B, S]
    if shape.images:
        count = shape.rows * shape.images
        batch["pixel_values"] = torch.zeros(count, 3, image_size, image_size, device=device)
    return batch


@dataclass(frozen=True)
class Activations:
    """Bytes that a pass over a batch holds beside the weights, at the moment when they are the most.

    `parts` says what they belong to: inputs, encoder, projector, decoder, head and loss, backward, other. `kept` are
    those between the passes, for the backward pass.
    """

    peak: int
    kept: int
    parts: dict[str, int] = field(default_factory=dict)


def meta_model(
    config: VisualChatConfig,
    dtype: torch.dtype,
    lora: LoraSettings | None = None,
    gradient_checkpointing: bool = False,
    train: Sequence[str] = PUBLISHED,
    frozen_bits: FrozenBits = UNQUANTISED,
) -> VisualChatForConditionalGeneration:
    """The model of a configuration without its weights, frozen and in training as the real one will be."""
    with torch.device("meta"):
        model = VisualChatForConditionalGeneration(config).to(dtype)
        if frozen_bits.decoder:
            for module in model.model.language_model.modules():
                if isinstance(module, nn.Linear):
                    module.__class__ = _IN_BITS[frozen_bits.decoder]
        if frozen_bits.encoder:
            tower = model.model.vision_tower
            for name in encoder_matrices(tower.config)[0]:
                tower.get_submodule(name).__class__ = _IN_BITS[frozen_bits.encoder]
        if lora:
            inject_lora(model, lora)
    freeze(model, train)
    model.train()
    if gradient_checkpointing:
        enable_checkpointing(model)
    return model


class _In4Bits(nn.Linear):
    """Allocates what bitsandbytes' layer of 4 bits does: the whole matrix in each pass, nothing in between."""

    frozen_bits = 4

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return _Quantised.apply(inputs, self.weight, self.bias, False)


class _In8Bits(nn.Linear):
    """That of 8 bits: rounds its inputs, adds up in 32 bits, and keeps the inputs, which only outliers need."""

    frozen_bits = 8

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return _Quantised.apply(inputs, self.weight, self.bias, True)


_IN_BITS = {4: _In4Bits, 8: _In8Bits}


class _Quantised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, rounds: bool
    ) -> torch.Tensor:
        ctx.weight, ctx.inputs = weight, inputs if rounds else None
        if not rounds:
            return nn.functional.linear(inputs, torch.empty_like(weight), bias)
        rounded = inputs.to(torch.float16).to(torch.int8)
        sums = torch.empty(*inputs.shape[:-1], weight.shape[0], dtype=torch.float32, device=rounded.device)
        return sums.to(inputs.dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradient @ torch.empty_like(ctx.weight), None, None, None


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass, in the way that transformers' Trainer sets it up."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


def trace(model: VisualChatForConditionalGeneration, shape: BatchShape, keep_gradients: bool) -> Activations:
    """A pass forward and backward over a batch of a shape.

    `keep_gradients`: those of weights stay until the end; else they are freed as soon as they are whole.
    Attention is computed by the kernel `masked`, which keeps the most.
    """
    run = ShapeRun()
    for tensor in (*model.parameters(), *model.buffers()):
        run.enter(tensor, "weights")
    weights = run.total
    hooks = [] if keep_gradients else list(_freed_gradients(model))
    with run, _labels(model, run):
        with run.labelled("inputs"):
            batch = make_batch(
                shape,
                model.config.image_token_id,
                text_token_id=model.config.image_token_id - 1,
                image_size=image_size(model.config.vision_config),
            )
        loss = model(**batch).loss
        kept = run.total - weights
        with run.labelled("backward"):
            loss.backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad(set_to_none=True)
    parts = {part: size for part, size in run.at_peak.items() if part != "weights" and size}
    return Activations(run.peak - weights, kept, parts)


def _freed_gradients(model: nn.Module) -> Iterator[torch.utils.hooks.RemovableHandle]:
    for parameter in model.parameters():
        if parameter.requires_grad:
            yield parameter.register_post_accumulate_grad_hook(_free_gradient)


def _free_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


@contextmanager
def _labels(model: VisualChatForConditionalGeneration, run: ShapeRun) -> Iterator[None]:
    """Count what each part allocates in the forward pass under its name."""
    parts = {
        "encoder": model.model.vision_tower,
        "projector": model.model.multi_modal_projector,
        "decoder": model.model.language_model,
    }
    run.label = "head and loss"  # what is in none of the three
    hooks = []
    for name, module in parts.items():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: setattr(run, "label", name)))
        hooks.append(module.register_forward_hook(lambda *_: setattr(run, "label", "head and loss")))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
