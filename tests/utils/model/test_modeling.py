"""The whole model: images in their places, the loss, and what a training step asks of the device."""

import pytest
import torch
from accelerate import cpu_offload

from tests.tiny import visual_chat
from utils.model import VisualChatForConditionalGeneration, freeze, mmca_kernels

IMAGE, TOKENS = 49, 5  # the placeholder's id; four patches and the class token
PLACE = [IMAGE] * TOKENS


def make(**choices) -> VisualChatForConditionalGeneration:
    model = visual_chat(**choices)
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


@pytest.mark.parametrize("count", [1, 3])
def test_a_wrong_number_of_images_names_both_counts(model, count):
    with pytest.raises(ValueError, match=rf"10 image tokens, but {5 * count} image features: {count} images"):
        model(**batch(TWO_IMAGES), pixel_values=pixels(count))
    with pytest.raises(ValueError, match="10 image tokens, but no pixel_values"):
        model(**batch(TWO_IMAGES))


def test_no_supervised_token_gives_zero_with_a_graph(model):
    inputs = batch(ONE_IMAGE)
    loss = model(**inputs, pixel_values=pixels(1), labels=torch.full_like(inputs["input_ids"], -100)).loss
    assert loss.item() == 0.0
    loss.backward()
    assert model.get_input_embeddings().weight.grad.abs().max() == 0


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
