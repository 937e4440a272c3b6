"""What image tokens go through in the decoder's layers: a choice of the configuration.

Expected values come from the decoder written out below in float64, row by row as the definition says.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache, Qwen3Config, StaticCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tests import tiny
from tests.tiny import clip_config, llama_config
from utils.model import (
    LoraSettings,
    VisualChatConfig,
    VisualChatForConditionalGeneration,
    build_visual_chat,
)
from utils.model.checkpoint import load_checkpoint, save_full, save_trained_only
from utils.model.lora import inject_lora
from utils.model.mmca_kernels import VARIABLE

QWEN_3 = ["vocab_size", "num_key_value_heads", "max_position_embeddings", "initializer_range", "head_dim"]
LENGTH, WIDTH = 5, 32  # tokens of an image, and numbers of a token


@dataclass(frozen=True)
class Rows:
    """B rows of conversations. kinds, conversations, positions: [B, S]; conversation -1 is padding."""

    kinds: torch.Tensor
    conversations: torch.Tensor
    positions: torch.Tensor
    is_packed: bool

    @property
    def images(self) -> int:
        return int(self.kinds.sum()) // LENGTH

    @property
    def valid(self) -> torch.Tensor:
        return self.conversations >= 0

    def arguments(self) -> dict[str, torch.Tensor | bool]:
        """Of the model's forward."""
        if self.is_packed:
            return {"mm_token_type_ids": self.kinds, "position_ids": self.positions, "use_cache": False}
        return {"mm_token_type_ids": self.kinds, "attention_mask": self.valid.long()}

    @classmethod
    def random(cls, seed: int) -> "Rows":
        """Padded or packed, images first, last, between, or none."""
        rng = np.random.default_rng(seed)
        is_packed = bool(rng.integers(2))

        def conversation() -> list[int]:
            spans = [[1] * LENGTH] * int(rng.integers(0, 4)) + [[0] * int(n) for n in rng.integers(1, 6, 3)]
            order = rng.permutation(len(spans))
            return [kind for number in order for kind in spans[number]]

        many = int(rng.integers(1, 4)) if is_packed else 1
        rows = [[conversation() for _ in range(many)] for _ in range(int(rng.integers(1, 4)))]
        longest = max(sum(map(len, row)) for row in rows)
        on_left = bool(rng.integers(2)) and not is_packed
        kinds, numbers, positions = [], [], []
        for row in rows:
            missing = longest - sum(map(len, row))
            if is_packed:  # a row is filled up by a conversation of text
                row = [*row, [0] * missing] if missing else row
                missing = 0
            parts = (
                [kind for each in row for kind in each],
                [number for number, each in enumerate(row) for _ in each],
                [place for each in row for place in range(len(each))],
            )
            for table, values, filler in zip((kinds, numbers, positions), parts, (0, -1, 0), strict=True):
                padding = [filler] * missing
                table.append(padding + values if on_left else values + padding)
        return cls(*(torch.tensor(table) for table in (kinds, numbers, positions)), is_packed)


def written_out(model, states: torch.Tensor, rows: Rows) -> torch.Tensor:
    """A decoder of LLaMA's kind, in float64: states [B, S, D] -> hidden states after the last norm."""
    decoder = model.model.language_model
    attention, image_layers = model.config.attention, model.config.image_layers
    gates = None if model.config.image_gate == "none" else list(model.model.image_gate.parameters())
    config, weights = decoder.config, {name: each.double() for name, each in decoder.named_parameters()}
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or WIDTH // heads
    frequencies = 1 / config.rope_parameters["rope_theta"] ** (torch.arange(0, width, 2).double() / width)
    angles = (rows.positions[..., None].double() * frequencies).repeat(1, 1, 2)[:, :, None]  # [B, S, 1, d]
    is_image = (rows.kinds == 1)[..., None]
    same = (rows.conversations[:, :, None] == rows.conversations[:, None]) & rows.valid[:, :, None]
    before = same.tril()
    sees_text, sees_image = (before & (rows.kinds == kind)[:, None] for kind in (0, 1))

    def norm(x, name):
        return x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weights[name]

    def linear(x, name):
        y = x @ weights.get(f"{name}.weight", weights.get(f"{name}.base_layer.weight")).T
        if f"{name}.lora_A.default.weight" in weights:
            down, up = (weights[f"{name}.lora_{part}.default.weight"].T for part in "AB")
            y = y + decoder.get_submodule(name).scaling["default"] * x @ down @ up
        return y

    def turned(x):
        half = x.shape[-1] // 2
        return x * angles.cos() + torch.cat([-x[..., half:], x[..., :half]], -1) * angles.sin()

    def softmax(scores, seen):
        seen = seen[:, None]
        shares = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.where(seen.any(-1, keepdim=True), shares.nan_to_num(), 0.0)

    for layer in range(config.num_hidden_layers):
        name = f"layers.{layer}."
        x = norm(states, f"{name}input_layernorm.weight")
        q, k, v = (
            linear(x, f"{name}self_attn.{each}_proj").unflatten(-1, (-1, width)) for each in "qkv"
        )  # [B, S, H, d]
        if f"{name}self_attn.q_norm.weight" in weights:
            q, k = (
                norm(each, f"{name}self_attn.{which}_norm.weight") for each, which in ((q, "q"), (k, "k"))
            )
        q, k = turned(q), turned(k)
        k, v = (each.repeat_interleave(heads // each.shape[2], dim=2) for each in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / width**0.5
        factor = 1.0 if gates is None else gates[layer].double()[:, None, None]
        shares = (
            softmax(scores, before)
            if attention == "cross"
            else softmax(scores, sees_text) + factor * softmax(scores, sees_image)
        )
        read = torch.einsum("bhqk,bkhd->bqhd", shares, v)
        read = torch.where(is_image[..., None], v, read)
        read = linear(read.flatten(2), f"{name}self_attn.o_proj")
        if image_layers == "none":
            read = torch.where(is_image, 0.0, read)
        states = states + read
        x = norm(states, f"{name}post_attention_layernorm.weight")
        gate, up = (linear(x, f"{name}mlp.{each}_proj") for each in ("gate", "up"))
        x = linear(F.silu(gate) * up, f"{name}mlp.down_proj")
        states = states + (x if image_layers == "full" else torch.where(is_image, 0.0, x))
    return norm(states, "norm.weight")


def config(**fields) -> VisualChatConfig:
    return VisualChatConfig(**{"vision_config": clip_config(), "text_config": llama_config(), **fields})


def qwen3_config() -> Qwen3Config:
    fields = llama_config(head_dim=16).to_dict()
    return Qwen3Config(**{name: fields[name] for name in (*QWEN_3, *tiny.SHAPE)})


def model_of(
    image_layers: str,
    attention: str = "mmca",
    text_config=None,
    lora: LoraSettings | None = None,
    image_gate: str = "none",
):
    torch.manual_seed(0)
    given = config(
        text_config=text_config or llama_config(num_hidden_layers=3),
        attention=attention,
        image_layers=image_layers,
        image_gate=image_gate,
        image_token_id=299,
        image_seq_length=LENGTH,
    )
    model = VisualChatForConditionalGeneration(given)
    if lora:
        inject_lora(model, lora)
    with torch.no_grad():
        for parameter in model.parameters():  # gains and adapters too, which start at 1 and 0
            parameter.add_(0.05 * torch.randn_like(parameter))
        for factors in learnt_gates(model):
            factors.normal_()
    return model.eval()


def learnt_gates(model) -> list[torch.Tensor]:
    return [] if model.model.image_gate is None else list(model.model.image_gate.parameters())


def given(rows: Rows, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings [B, S, D], features [N, S, D] and labels [B, S]; some labels stand right behind images."""
    generator = torch.Generator().manual_seed(seed)
    embedded = torch.randn(*rows.kinds.shape, WIDTH, generator=generator)
    features = torch.randn(rows.images, LENGTH, WIDTH, generator=generator)
    labels = torch.randint(299, rows.kinds.shape, generator=generator)
    learnt = (torch.rand(rows.kinds.shape, generator=generator) < 0.5) & rows.valid & (rows.kinds == 0)
    learnt &= rows.positions > 0
    return embedded, features, labels.masked_fill(~learnt, -100)


def ours(model, rows: Rows, embedded, features, labels=None, **more):
    images = (
        {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)}}
        if rows.images
        else {}
    )
    labels = {} if labels is None else {"labels": labels}
    return model(inputs_embeds=embedded, **images, **labels, **rows.arguments(), **more)


def expected(model, rows: Rows, embedded, features, labels=None) -> torch.Tensor:
    """Logits [B, S, V], or the loss."""
    states = embedded.double().masked_scatter((rows.kinds == 1)[..., None], features.double())
    hidden = written_out(model, states, rows)
    logits = hidden @ model.lm_head.weight.double().T
    if labels is None:
        return logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / max(
        int((labels[:, 1:] != -100).sum()), 1
    )


def assert_near(found, wanted, tolerance):
    if not wanted.numel():
        return
    scale = max(float(wanted.detach().abs().max()), 1e-6)
    assert float((found.detach().double() - wanted.detach()).abs().max()) <= tolerance * scale


def check(model, rows: Rows, seed: int = 0, run=ours) -> None:
    """All logits; and a loss and its gradients, for which rows of the last layer are left out."""
    embedded, features, labels = given(rows, seed)
    with torch.no_grad():
        assert_near(
            ours(model, rows, embedded, features).logits[rows.valid],
            expected(model, rows, embedded, features)[rows.valid],
            1e-5,
        )
    learnt = [each for each in model.model.language_model.layers.parameters() if each.requires_grad]
    learnt += learnt_gates(model)
    gradients = []
    for loss in (lambda *each: run(model, rows, *each).loss, lambda *each: expected(model, rows, *each)):
        leaves = embedded.clone().requires_grad_(), features.clone().requires_grad_()
        loss = loss(*leaves, labels)
        gradients.append((loss.detach(), *torch.autograd.grad(loss, [*leaves, *learnt], allow_unused=True)))
    for found, wanted in zip(*gradients, strict=True):
        if wanted is None:
            assert found is None or not found.any()
            continue
        found = torch.zeros_like(wanted) if found is None else found
        assert_near(found, wanted.double(), 1e-4)


KERNELS = [
    ("mmca", "none", "fused"),
    ("mmca", "none", "masked"),
    ("mmca", "head", "fused"),
    ("mmca", "head", "masked"),
    ("cross", "none", "masked"),
]
GATED = [("mmca", "none"), ("mmca", "head"), ("cross", "none")]


@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 208), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("image_layers", ["full", "no_mlp", "none"])
@pytest.mark.parametrize(("attention", "image_gate", "kernel"), KERNELS)
def test_exact_on_random_rows(attention, image_gate, kernel, image_layers, seeds, monkeypatch):
    monkeypatch.setenv(VARIABLE, kernel)
    model = model_of(image_layers, attention, image_gate=image_gate)
    for seed in seeds:
        check(model, Rows.random(seed), seed)


@pytest.mark.parametrize(
    ("image_layers", "image_gate"), [("no_mlp", "none"), ("none", "none"), ("full", "head")]
)
@pytest.mark.parametrize("shape", ["one key head", "qwen 3"])
def test_exact_for_other_shapes(shape, image_layers, image_gate):
    text = {
        "one key head": llama_config(num_key_value_heads=1),
        "qwen 3": qwen3_config(),
    }[shape]
    model = model_of(image_layers, text_config=text, image_gate=image_gate)
    for seed in range(4):
        check(model, Rows.random(seed), seed)


@pytest.mark.parametrize("image_layers", ["full", "no_mlp", "none"])
def test_adapters_act_on_images_where_the_part_does(image_layers):
    """Adapters are put in after a first forward, so hooks stand on what is a layer's part now."""
    model = model_of(image_layers, image_gate="head")
    rows = Rows.random(1)
    check(model, rows)
    inject_lora(model, LoraSettings(lang_dim=3))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_(std=0.1)
    for seed in range(4):
        check(model, Rows.random(seed), seed)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("image_layers", ["no_mlp", "none"])
@pytest.mark.parametrize(("attention", "image_gate"), GATED)
def test_exact_under_gradient_checkpointing(attention, image_gate, image_layers, reentrant):
    model = model_of(image_layers, attention, image_gate=image_gate).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    rows = Rows.random(1)
    embedded, features, labels = given(rows)

    def gradients(loss):
        leaves = embedded.clone().requires_grad_(), features.clone().requires_grad_()
        model.zero_grad()
        loss(*leaves).backward()
        learnt = [*model.model.language_model.layers.parameters(), *learnt_gates(model)]
        learnt = [parameter.grad for parameter in learnt]
        return [leaf.grad.clone() for leaf in leaves] + [each.clone() for each in learnt]

    found = gradients(lambda *leaves: ours(model, rows, *leaves, labels).loss)
    wanted = gradients(lambda *leaves: expected(model, rows, *leaves, labels))
    for mine, theirs in zip(found, wanted, strict=True):
        assert_near(mine, theirs.double(), 1e-4)


@pytest.mark.parametrize("image_layers", ["no_mlp", "none"])
@pytest.mark.parametrize(("attention", "image_gate"), GATED)
@pytest.mark.parametrize("cache", [DynamicCache, StaticCache])
def test_in_pieces_over_a_cache_as_at_once(cache, attention, image_gate, image_layers):
    """Pieces of text, of images alone, of both, and single tokens."""
    model = model_of(image_layers, attention, image_gate=image_gate)
    kinds = torch.tensor([[0] * 3 + [1] * 10 + [0] * 4 + [1] * 5 + [0] * 3])
    rows = Rows(kinds, torch.zeros_like(kinds), torch.arange(25)[None], False)
    embedded, features, _ = given(rows)
    wanted = expected(model, rows, embedded, features)
    decoder = model.config.text_config
    kept = cache(config=decoder, max_cache_len=32) if cache is StaticCache else cache(config=decoder)
    read, placed, found = 0, 0, []
    with torch.no_grad():
        for piece in (2, 3, 5, 5, 6, 3, 1):  # 3 to 8 and 8 to 13 lie within images
            new = int(kinds[:, read : read + piece].sum())
            images = {}
            if new:
                states = BaseModelOutputWithPooling(
                    pooler_output=features.flatten(0, 1)[placed : placed + new]
                )
                images = {"mm_encoder_outputs": {"image": states}}
            found.append(
                model(
                    inputs_embeds=embedded[:, read : read + piece],
                    mm_token_type_ids=kinds[:, : read + piece],
                    past_key_values=kept,
                    use_cache=True,
                    **images,
                ).logits
            )
            read, placed = read + piece, placed + new
    assert_near(torch.cat(found, 1), wanted, 1e-5)


@pytest.mark.parametrize("image_layers", ["full", "no_mlp", "none"])
def test_images_are_not_computed_where_they_are_left_out(image_layers):
    model = model_of(image_layers)
    rows = Rows.random(1)
    embedded, features, labels = given(rows)
    ours(model, rows, embedded, features)  # the model's hooks before the test's
    layer, seen = model.model.language_model.layers[1], {}
    parts = {
        "q": layer.self_attn.q_proj,
        "k": layer.self_attn.k_proj,
        "o": layer.self_attn.o_proj,
        "mlp": layer.mlp.up_proj,
    }
    for name, part in parts.items():
        part.register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].shape[:-1].numel()})
        )
    ours(model, rows, embedded, features, labels)
    whole, text = rows.kinds.numel(), int((rows.valid & (rows.kinds == 0)).sum())
    assert rows.images and text < whole
    none, no_mlp = image_layers == "none", image_layers != "full"
    assert seen == {
        "q": text if no_mlp else whole,
        "k": whole,
        "o": text if none else whole,
        "mlp": text if no_mlp else whole,
    }


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"attention": "other"}, "attention is 'other'; choose one of mmca, cross, causal"),
        ({"projector_type": "other"}, "projector_type is 'other'; choose one of linear, vit, perceiver"),
        ({"image_layers": "some"}, "image_layers is 'some'; choose one of full, no_mlp, none"),
        ({"image_gate": "layer"}, "image_gate is 'layer'; choose one of none, head"),
        ({"attention": "causal", "image_layers": "none"}, "image_layers none needs attention mmca or cross"),
        ({"attention": "cross", "image_gate": "head"}, "image_gate head needs attention mmca"),
        ({"attention": "causal", "image_gate": "head"}, "image_gate head needs attention mmca"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(fields, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        config(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapters"])
@pytest.mark.parametrize("save", [save_full, save_trained_only])
def test_checkpoints_keep_the_choice(folders, tmp_path, save, adapted):
    torch.manual_seed(0)
    lora = LoraSettings(lang_dim=2) if adapted and save is save_trained_only else None
    model, processor = build_visual_chat(*folders, image_layers="none", lora=lora)
    image = [processor.image_token_id] * processor.image_seq_length
    inputs = {"input_ids": torch.tensor([[1, 7, *image, 8, 9]]), "pixel_values": torch.randn(1, 3, 16, 16)}
    save(model, processor, tmp_path)
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
        again, _ = load_checkpoint(tmp_path)
        assert again.config.image_layers == "none"
        assert torch.equal(again(**inputs).logits, logits)
        other, _ = load_checkpoint(tmp_path, image_layers="full")
        assert (other(**inputs).logits - logits).abs().max() > 1e-3
    with pytest.raises(ValueError, match="image_layers none needs attention mmca or cross"):
        load_checkpoint(tmp_path, attention="causal")
