"""MMCA against its definition, written once more here: row by row, dense, in float64."""

import sys

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig
from transformers.masking_utils import create_causal_mask

from utils.model import mmca, mmca_kernels

HEADS, WIDTH = 4, 8
STYLES = ("plain", "left", "right", "packed")


def reference(query, key, value, layout, joint=False, gate=None):
    """The definition: query [B, H, S, D], key and value [B, Hkv, S, D] -> [B, H, S, D]; zeros for padding."""
    kinds, conversation, valid = (tensor.tolist() for tensor in layout)
    query, key, value = query.double(), key.double(), value.double()
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    rows = []
    for b, row in enumerate(kinds):
        for i, kind in enumerate(row):
            seen = visible(row, conversation[b], valid[b], i)
            if not valid[b][i]:
                rows.append(torch.zeros_like(value[b, :, i]))
            elif kind == 1:
                rows.append(value[b, :, i])
            else:
                text, image = [j for j in seen if row[j] == 0], [j for j in seen if row[j] == 1]
                terms = [
                    torch.softmax((key[b, :, part] @ query[b, :, i, :, None])[..., 0] / WIDTH**0.5, -1)[
                        :, None
                    ]
                    @ value[b, :, part]
                    for part in ([sorted(seen)] if joint else [text, image])
                    if part
                ]
                if gate is not None and image:
                    terms[-1] = gate.double()[:, None, None] * terms[-1]
                rows.append(sum(terms)[:, 0])  # [H, D]
    return torch.stack(rows).view(*query.shape[:1], len(kinds[0]), *rows[0].shape).transpose(1, 2)


def visible(kinds, conversation, valid, i):
    """The positions that position i depends on."""
    if not valid[i]:
        return set()
    if kinds[i] == 1:
        return {i}
    return {j for j in range(i + 1) if valid[j] and conversation[j] == conversation[i]}


def random_layout(generator, style):
    """Kinds, conversations and validity, each [2, S]: 0 to 8 images, first, adjacent or between text."""

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    def conversation():
        size = draw(1, 4)  # tokens of an image
        kinds = [0] * draw(0, 4)
        for _ in range(draw(0, 9)):
            kinds += [1] * size + [0] * draw(0, 3)
        return kinds + [0] * draw(1, 4)

    rows = [[conversation() for _ in range(3 if style == "packed" else 1)] for _ in range(2)]
    length = max(sum(map(len, parts)) for parts in rows)
    kinds, belongs, valid = (torch.zeros(2, length, dtype=torch.long) for _ in range(3))
    for row, parts in enumerate(rows):
        missing = length - sum(map(len, parts))
        start = missing if style == "left" else 0
        if style in ("plain", "packed"):
            parts[-1] = parts[-1] + [0] * missing
        for number, part in enumerate(parts):
            stop = start + len(part)
            kinds[row, start:stop], belongs[row, start:stop], valid[row, start:stop] = (
                torch.tensor(part),
                number,
                1,
            )
            start = stop
    return kinds, belongs, valid


def attend(query, key, value, layout, style, implementation="mmca", gate=None, **more):
    """Through transformers' own two interfaces, as a decoder calls them."""
    kinds, belongs, valid = layout
    shape = dict(hidden_size=HEADS * WIDTH, num_attention_heads=HEADS, num_key_value_heads=key.shape[1])
    config = LlamaConfig(attn_implementation=implementation, **shape)
    positions = torch.arange(kinds.shape[1]).expand_as(kinds)
    if style == "packed":
        same = belongs[:, :, None] == belongs[:, None, :]
        positions = same.tril().sum(-1) - 1
    mask = create_causal_mask(
        config=config,
        inputs_embeds=query[:, 0],
        attention_mask=None if style in ("plain", "packed") else valid,
        past_key_values=None,
        position_ids=positions,
    )
    function = AttentionInterface()[implementation]
    module = torch.nn.Module()
    module.layer_idx = 1
    if gate is not None:
        more["image_gate"] = torch.full_like(gate, torch.nan), gate
    out, _ = function(module, query, key, value, mask, scaling=WIDTH**-0.5, mm_token_type_ids=kinds, **more)
    return out.transpose(1, 2)  # [B, H, S, D]


def random_case(seed):
    """A layout, queries, keys and values, and weights for the rows; key-value heads as many, 2, or 1."""
    generator = torch.Generator().manual_seed(seed)
    style = STYLES[seed % 4]
    layout = random_layout(generator, style)
    kv_heads = (HEADS, 2, 1)[(seed // 4) % 3]
    length = layout[0].shape[1]
    query, weights = (torch.randn(2, HEADS, length, WIDTH, generator=generator) for _ in range(2))
    key, value = (torch.randn(2, kv_heads, length, WIDTH, generator=generator) for _ in range(2))
    weights = weights * layout[2][:, None, :, None]  # nothing asks for padding
    return style, layout, [query, key, value], weights


CONTENDERS = {
    "fused": ("mmca", "fused", False),
    "fused, gated": ("mmca", "fused", True),
    "masked": ("mmca", "masked", False),
    "masked, gated": ("mmca", "masked", True),
    "cross": ("cross", "auto", False),
}


@pytest.mark.parametrize("seeds", [range(48), pytest.param(range(48, 200), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_equals_the_definition_with_gradients_over_random_layouts(contender, seeds, monkeypatch):
    implementation, kernel, gated = CONTENDERS[contender]
    monkeypatch.setenv(mmca_kernels.VARIABLE, kernel)
    worst, worst_gradient = 0.0, 0.0
    for seed in seeds:
        style, layout, states, weights = random_case(seed)
        if gated:
            states.append(torch.randn(HEADS, generator=torch.Generator().manual_seed(seed)))
        ours = [state.clone().requires_grad_() for state in states]
        theirs = [state.double().requires_grad_() for state in states]
        out = attend(*ours[:3], layout, style, implementation, *ours[3:])
        expected = reference(*theirs[:3], layout, implementation == "cross", *theirs[3:])
        assert out.isfinite().all()
        valid = layout[2][:, None, :, None].bool()
        worst = max(worst, (out - expected).masked_fill(~valid, 0).abs().max().item())
        (out * weights).sum().backward()
        (expected * weights.double()).sum().backward()
        for our, their in zip(ours, theirs, strict=True):
            their.grad = torch.zeros_like(their) if their.grad is None else their.grad  # a gate, and no image
            assert our.grad.isfinite().all()
            worst_gradient = max(worst_gradient, (our.grad - their.grad).abs().max().item())
    print(f"{contender}: max error {worst:.1e}, of gradients {worst_gradient:.1e}")
    assert worst < 1e-5
    assert worst_gradient < 1e-4


def test_golden_values():
    """Worked out by hand: equal scores, so each softmax is a mean; text 1, 3; images 10, 20; then text 5."""
    value = torch.tensor([1.0, 3.0, 10.0, 20.0, 5.0]).view(1, 1, 5, 1).expand(1, HEADS, 5, WIDTH)
    zeros = torch.zeros(1, HEADS, 5, WIDTH)
    kinds = torch.tensor([[0, 0, 1, 1, 0]])
    layout = [kinds, torch.zeros_like(kinds), torch.ones_like(kinds)]
    out = attend(zeros, zeros, value, layout, "plain")[0, 0, :, 0]
    torch.testing.assert_close(out, torch.tensor([1.0, 2.0, 10.0, 20.0, (1 + 3 + 5) / 3 + (10 + 20) / 2]))
    out = attend(zeros, zeros, value, layout, "plain", "cross")[0, 0, :, 0]
    torch.testing.assert_close(out, torch.tensor([1.0, 2.0, 10.0, 20.0, 39 / 5]))


@pytest.mark.parametrize("kernel", ["fused", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gate_of_ones_changes_no_bit_and_one_of_zeros_leaves_text_alone(kernel, dtype, monkeypatch):
    """Forward and backward; from 0, the gate has a gradient."""
    monkeypatch.setenv(mmca_kernels.VARIABLE, kernel)
    for seed in range(12):
        style, layout, states, weights = random_case(seed)
        states = [state.to(dtype).requires_grad_() for state in states]
        weights = weights.to(dtype)
        ones, zeros = torch.ones(HEADS), torch.zeros(HEADS, requires_grad=True)

        def run(*gate, style=style, layout=layout, weights=weights, states=states):
            out = attend(*states, layout, style, "mmca", *gate) * layout[2][:, None, :, None]
            return out, *torch.autograd.grad(
                (out * weights).sum(), [*states, *(g for g in gate if g.requires_grad)]
            )

        for ours, published in zip(run(ones), run(), strict=True):
            assert torch.equal(ours, published)
        out, *_, slope = run(zeros)
        asks = (layout[0] == 0)[:, None, :, None]
        alone = reference(*states, layout, gate=torch.zeros(HEADS))
        torch.testing.assert_close(
            (out * asks).double(), alone * asks, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0.05
        )
        hidden = [state.detach().clone() for state in states]
        hidden[2].masked_fill_((layout[0] == 1)[:, None, :, None], 7.0)  # whatever images say
        assert torch.equal(
            attend(*hidden, layout, style, "mmca", zeros) * asks * layout[2][:, None, :, None], out * asks
        )
        assert slope.dtype == torch.float32 and (slope.any() or not layout[0].any())


def test_an_exported_graph_computes_the_gate():
    for seed in range(6):
        _, (kinds, belongs, valid), states, _ = random_case(seed)
        visible = ((belongs[:, :, None] == belongs[:, None]) & (valid[:, None] == 1)).tril()[:, None]
        visible |= torch.eye(kinds.shape[1], dtype=torch.bool)
        gate = torch.randn(HEADS)
        found = mmca.mmca_reference(visible, kinds, *states, scaling=WIDTH**-0.5, gate=gate)
        wanted = reference(*states, (kinds, belongs, valid), gate=gate)
        asked = valid.bool()[:, None, :, None]
        torch.testing.assert_close(
            found.transpose(1, 2).double() * asked, wanted * asked, atol=1e-5, rtol=1e-5
        )


def test_a_gate_is_refused_where_images_have_no_softmax_of_their_own():
    style, layout, states, _ = random_case(0)
    with pytest.raises(ValueError, match="an image gate needs attention mmca"):
        attend(*states, layout, style, "cross", torch.ones(HEADS))
    with pytest.raises(ValueError, match="other heads than its configuration says"):
        attend(*states, layout, style, "mmca", torch.ones(HEADS + 1))


@pytest.mark.parametrize("kernel", ["fused", "masked"])
def test_under_autocast_in_its_dtype(kernel, monkeypatch):
    """Rotated queries and keys come in float32 there, values in bfloat16."""
    monkeypatch.setenv(mmca_kernels.VARIABLE, kernel)
    style, layout, states, weights = random_case(4)
    exact = attend(*states, layout, style)
    states[2] = states[2].bfloat16()
    states = [each.requires_grad_() for each in states]
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(*states, layout, style)
    assert out.dtype == torch.bfloat16
    asked = layout[2].bool()[:, None, :, None]
    torch.testing.assert_close(out.float() * asked, exact * asked, atol=0.05, rtol=0.05)
    (out.float() * weights).sum().backward()
    assert [each.grad.dtype for each in states] == [each.dtype for each in states]


def test_the_layout_is_made_once_for_all_layers(monkeypatch):
    made = []
    registered = sys.modules[
        AttentionMaskInterface()["mmca"].__module__
    ]  # a checkpoint's own code registers too
    build = registered.build_layout
    monkeypatch.setattr(registered, "build_layout", lambda *args: made.append(1) or build(*args))
    query, key, value = (torch.randn(1, HEADS, 5, WIDTH) for _ in range(3))
    kinds = torch.tensor([[0, 1, 1, 0, 0]])
    mask = AttentionMaskInterface()["mmca"](batch_size=1, q_length=5, kv_length=5)
    for _ in range(4):
        AttentionInterface()["mmca"](torch.nn.Module(), query, key, value, mask, mm_token_type_ids=kinds)
    assert made == [1]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (None, "needs mm_token_type_ids"),
        (torch.zeros(1, 2, dtype=torch.long), "cover 2 keys, but attention reads 5"),
        (torch.zeros(1, 9, dtype=torch.long), "cover 9 keys, but attention reads only 5"),
    ],
)
def test_missing_or_sliced_kinds_are_an_error(kinds, message):
    states = [torch.randn(1, HEADS, 5, WIDTH) for _ in range(3)]
    mask = AttentionMaskInterface()["mmca"](batch_size=1, q_length=5, kv_length=5)
    with pytest.raises(ValueError, match=message):
        AttentionInterface()["mmca"](torch.nn.Module(), *states, mask, mm_token_type_ids=kinds)


def test_a_model_without_masks_is_an_error():
    states = [torch.randn(1, HEADS, 5, WIDTH) for _ in range(3)]
    with pytest.raises(ValueError, match=r"boolean .* mask and got none"):
        AttentionInterface()["mmca"](
            torch.nn.Module(), *states, None, mm_token_type_ids=torch.zeros(1, 5, dtype=torch.long)
        )
