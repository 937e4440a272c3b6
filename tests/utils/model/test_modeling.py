"""The whole model: images in their places, the loss, generation."""

import pytest
import torch
from accelerate import cpu_offload
from torch.nn import functional as F
from transformers import CLIPVisionConfig, DynamicCache, LlamaConfig

from utils.model import (
    LoraSettings,
    VisualChatConfig,
    VisualChatForConditionalGeneration,
    freeze,
    mmca_kernels,
)
from utils.model.lora import inject_lora

IMAGE, TOKENS = 49, 5  # the placeholder's id; four patches and the class token
PLACE = [IMAGE] * TOKENS


def make(**changes) -> VisualChatForConditionalGeneration:
    torch.manual_seed(0)
    config = VisualChatConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=16,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            pad_token_id=0,
        ),
        image_token_id=IMAGE,
        image_seq_length=TOKENS,
        **changes,
    )
    model = VisualChatForConditionalGeneration(config).eval()
    model.generation_config.suppress_tokens = [IMAGE]
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    freeze(model)
    return model


@pytest.fixture
def model():
    return make()


def pixels(count):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def batch(*rows):
    """Rows padded on the left: ids, attention mask and kinds."""
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == IMAGE).long()}


TWO_IMAGES, ONE_IMAGE, NO_IMAGE = [1, 5, *PLACE, 6, *PLACE, 7, 8], [1, *PLACE, 9], [1, 10, 11, 12]


def test_images_land_in_order_of_appearance(model):
    """Row by row, and within a row from the first placeholder on."""
    placed = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: placed.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    inputs = batch(TWO_IMAGES, ONE_IMAGE)
    out = model(**inputs, pixel_values=pixels(3))
    features = placed[0][inputs["input_ids"] == IMAGE].view(3, TOKENS, -1)
    assert torch.equal(features, out.image_hidden_states)
    for number in range(3):
        alone = model.get_image_features(pixels(3)[number : number + 1]).pooler_output
        torch.testing.assert_close(features[number], alone[0])
    text = placed[0][inputs["input_ids"] != IMAGE]
    assert torch.equal(text, model.get_input_embeddings()(inputs["input_ids"][inputs["input_ids"] != IMAGE]))


def test_each_place_sees_its_own_image(model):
    """The logits at an image's tokens depend on that image alone."""
    images = pixels(2)
    changed = images.clone()
    changed[1] += 1
    inputs = batch(TWO_IMAGES)
    before, after = (model(**inputs, pixel_values=given).logits[0] for given in (images, changed))
    assert torch.equal(before[:8], after[:8])  # text, the first image, text
    assert not torch.isclose(before[8:], after[8:]).all(dim=-1).any()


@pytest.mark.parametrize("count", [1, 3])
def test_a_wrong_number_of_images_names_both_counts(model, count):
    with pytest.raises(ValueError, match=rf"10 image tokens, but {5 * count} image features: {count} images"):
        model(**batch(TWO_IMAGES), pixel_values=pixels(count))


def test_placeholders_without_images_are_an_error(model):
    with pytest.raises(ValueError, match="10 image tokens, but no pixel_values"):
        model(**batch(TWO_IMAGES))


@pytest.mark.parametrize("attention", ["mmca", "cross", "causal"])
def test_loss_is_cross_entropy_over_all_logits(attention):
    model = make(attention=attention)
    inputs = batch(TWO_IMAGES, ONE_IMAGE, NO_IMAGE)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, -2:], labels[1, -1:], labels[2, -3:] = 8, 9, 12
    logits = model(**inputs, pixel_values=pixels(3)).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    out = model(**inputs, pixel_values=pixels(3), labels=labels)
    torch.testing.assert_close(out.loss, expected)
    assert out.logits is None
    halved = model(**inputs, pixel_values=pixels(3), labels=labels, num_items_in_batch=torch.tensor(12)).loss
    torch.testing.assert_close(halved, expected / 2)


def test_the_head_runs_at_supervised_rows_only(model):
    rows = []
    model.lm_head.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape))
    inputs = batch(NO_IMAGE, NO_IMAGE)
    labels = torch.tensor([[-100, -100, 11, 12], [-100, -100, -100, 12]])
    model(**inputs, labels=labels)
    assert rows == [(3, 32)]


def test_no_supervised_token_gives_zero_with_a_graph(model):
    inputs = batch(ONE_IMAGE)
    loss = model(**inputs, pixel_values=pixels(1), labels=torch.full_like(inputs["input_ids"], -100)).loss
    assert loss.item() == 0.0
    loss.backward()
    assert model.get_input_embeddings().weight.grad.abs().max() == 0


def test_text_only(model):
    out = model(**batch(NO_IMAGE))
    kindless = model(input_ids=torch.tensor([NO_IMAGE]))
    torch.testing.assert_close(out.logits, kindless.logits)


def test_logits_to_keep(model):
    inputs = batch(TWO_IMAGES)
    whole = model(**inputs, pixel_values=pixels(2)).logits
    last = model(**inputs, pixel_values=pixels(2), logits_to_keep=1).logits
    torch.testing.assert_close(last, whole[:, -1:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, side):
    inputs = batch(TWO_IMAGES, ONE_IMAGE)
    padded = inputs["attention_mask"][1].argmax().item()
    if side == "right":
        inputs = {name: torch.stack([t[0], t[1].roll(-padded)]) for name, t in inputs.items()}
    together = model(**inputs, pixel_values=pixels(3)).logits[1][inputs["attention_mask"][1] == 1]
    alone = model(**batch(ONE_IMAGE), pixel_values=pixels(3)[2:]).logits[0]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_packed_rows_equal_rows_apart(model):
    rows = [TWO_IMAGES, ONE_IMAGE, NO_IMAGE]
    packed = model(
        input_ids=torch.tensor([[token for row in rows for token in row]]),
        position_ids=torch.cat([torch.arange(len(row)) for row in rows])[None],
        pixel_values=pixels(3),
    ).logits[0]
    images = [pixels(3)[:2], pixels(3)[2:], None]
    apart = [
        model(**batch(row), pixel_values=given).logits[0] for row, given in zip(rows, images, strict=True)
    ]
    torch.testing.assert_close(packed, torch.cat(apart), atol=1e-5, rtol=1e-5)


def test_only_embedding_and_projector_learn(model):
    inputs = batch(TWO_IMAGES)
    model.train()
    model(**inputs, pixel_values=pixels(2), labels=inputs["input_ids"]).loss.backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {
        "model.language_model.embed_tokens.weight",
        "model.multi_modal_projector.linear.weight",
        "model.multi_modal_projector.linear.bias",
        "model.multi_modal_projector.norm.weight",
        "model.multi_modal_projector.norm.bias",
    }


def test_the_encoder_has_a_graph_only_if_it_learns(model):
    features = []
    model.model.vision_tower.register_forward_hook(lambda *args: features.append(args[2].last_hidden_state))
    model(**batch(ONE_IMAGE), pixel_values=pixels(1))
    assert not features[-1].requires_grad
    inject_lora(model, LoraSettings(vis_dim=2))
    freeze(model)
    model(**batch(ONE_IMAGE), pixel_values=pixels(1))
    assert features[-1].requires_grad


def test_gradient_checkpointing_gives_the_same_gradients(model):
    def gradients():
        model.zero_grad()
        inputs = batch(TWO_IMAGES, ONE_IMAGE)
        model(**inputs, pixel_values=pixels(3), labels=inputs["input_ids"]).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]

    model.train()
    plain = gradients()
    model.gradient_checkpointing_enable()
    for ours, theirs in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_rank_without_images_still_gives_the_projector_gradients(model, monkeypatch):
    """Else the ranks with images would wait for it."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    inputs = batch(NO_IMAGE)
    model.train()
    with_blank = model(**inputs, labels=inputs["input_ids"]).loss
    with_blank.backward()
    assert all(
        parameter.grad.abs().max() == 0 for parameter in model.model.multi_modal_projector.parameters()
    )
    model.eval()
    assert torch.equal(model(**inputs, labels=inputs["input_ids"]).loss, with_blank)


def test_weights_may_live_elsewhere(model):
    """As accelerate places them for device_map: every weight arrives for its module's forward alone."""
    inputs = batch(TWO_IMAGES, ONE_IMAGE)
    expected = model(**inputs, pixel_values=pixels(3)).logits
    cpu_offload(model, execution_device=torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs, pixel_values=pixels(3)).logits, expected)


# Generation


def answer(model, inputs, images, **kwargs):
    kwargs = {"max_new_tokens": 6, "do_sample": False, **kwargs}
    out = model.generate(**inputs, pixel_values=images, **kwargs)
    return out[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 3}])
def test_batched_generation_equals_one_by_one(model, options):
    together = answer(model, batch(TWO_IMAGES, ONE_IMAGE, NO_IMAGE), pixels(3), **options)
    apart = [
        answer(model, batch(TWO_IMAGES), pixels(3)[:2], **options)[0],
        answer(model, batch(ONE_IMAGE), pixels(3)[2:], **options)[0],
        answer(model, batch(NO_IMAGE), None, **options)[0],
    ]
    assert together == apart


def test_generation_equals_greedy_choice_over_whole_rows(model):
    """The cache, the positions and the kinds of each step against a forward over everything."""
    ids = list(TWO_IMAGES)
    for _ in range(6):
        logits = model(input_ids=torch.tensor([ids]), pixel_values=pixels(2)).logits[0, -1]
        logits[IMAGE] = -torch.inf
        ids.append(int(logits.argmax()))
    assert answer(model, batch(TWO_IMAGES), pixels(2)) == [ids[len(TWO_IMAGES) :]]


@pytest.mark.parametrize("cached", [7, 8])
def test_generation_over_a_filled_cache(model, cached):
    """A later round brings its own images only."""
    inputs = batch(TWO_IMAGES)
    cache = DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        model(
            **{name: tensor[:, :cached] for name, tensor in inputs.items()},
            pixel_values=pixels(2)[:1],
            past_key_values=cache,
        )
    seen = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    assert answer(model, inputs, pixels(2)[1:], past_key_values=cache) == answer(model, inputs, pixels(2))
    assert seen[0] == len(TWO_IMAGES) - cached


def test_the_image_token_is_never_generated(model):
    with torch.no_grad():
        model.lm_head.weight[IMAGE] = 100 * model.lm_head.weight.sum(0).sign()
    out = answer(model, batch(TWO_IMAGES, ONE_IMAGE), pixels(3), max_new_tokens=20)
    assert not any(IMAGE in row for row in out)


def test_generation_reads_the_table_that_was_trained(model):
    """There is one embedding: a change of a generated token's row changes what follows."""
    first = answer(model, batch(NO_IMAGE), None)[0]
    (table,) = [p for name, p in model.named_parameters() if p.shape == (50, 32) and "lm_head" not in name]
    assert table is model.get_input_embeddings().weight and table.requires_grad
    with torch.no_grad():
        table[first[0]] = -3 * table[first[0]]
    changed = answer(model, batch(NO_IMAGE), None)[0]
    assert changed[0] == first[0] and changed[1:] != first[1:]


def test_unknown_kinds_over_a_cache_are_an_error(model):
    cache = DynamicCache(config=model.config.text_config)
    model(**batch(ONE_IMAGE), pixel_values=pixels(1), past_key_values=cache)
    with pytest.raises(ValueError, match="mm_token_type_ids are missing"):
        model(input_ids=torch.tensor([[3]]), past_key_values=cache)


@pytest.mark.parametrize(
    ("field", "message"), [("attention", "mmca, cross, causal"), ("projector_type", "linear, vit, perceiver")]
)
def test_unknown_choices_name_the_known(field, message):
    with pytest.raises(ValueError, match=message):
        make(**{field: "other"})


LEARNED = {
    "packed": {"position_ids": torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7]])},
    "padded": {"attention_mask": torch.tensor([[1] * 14 + [0] * 2])},
}


def learned_batch(form: str) -> dict:
    ids = torch.tensor([[3, *PLACE, 7, 8, 4, *PLACE, 5, 0]])
    labels = torch.where((ids == IMAGE) | (ids < 5), -100, ids)
    counts = {"image_tokens": 2 * TOKENS, "supervised_tokens": 3}
    kinds = (ids == IMAGE).long()
    return {"input_ids": ids, "mm_token_type_ids": kinds, "labels": labels, "pixel_values": pixels(2)} | (
        counts | LEARNED[form]
    )


@pytest.mark.parametrize("form", LEARNED)
def test_counts_that_the_collator_knows_change_no_loss(model, form):
    known = learned_batch(form)
    unknown = {name: value for name, value in known.items() if isinstance(value, torch.Tensor)}
    ours, theirs = model(**known), model(**unknown)
    assert torch.equal(ours.loss, theirs.loss) and torch.equal(ours.token_losses, theirs.token_losses)


@pytest.mark.parametrize("form", LEARNED)
def test_a_training_step_never_waits_for_the_device(model, form, monkeypatch):
    """On the device "meta" there are no numbers, so whatever asks for one raises. Attention's blocks are prepared
    as on a GPU; only its kernel, which "meta" cannot run, is another.
    """

    def attend(layout, query, key, value, *_rest):
        read = [each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (key, value)]
        return (query + read[0] + read[1]).transpose(1, 2)

    monkeypatch.setattr(mmca_kernels.registered, "attend", attend)
    prepare = mmca_kernels.KERNELS["flex"].prepare
    monkeypatch.setattr(mmca_kernels.registered, "prepare", lambda *given: prepare(given[-1]))
    batch = {
        name: each.to("meta") if isinstance(each, torch.Tensor) else each
        for name, each in learned_batch(form).items()
    }
    model.train().to("meta")(**batch).loss.backward()
    assert model.get_input_embeddings().weight.grad.is_meta
