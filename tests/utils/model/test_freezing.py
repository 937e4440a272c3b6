"""What learns: the parts by name, the checkpoints that hold them, and what a later training begins with."""

import pytest
import torch

from tests.tiny import logits, moved
from training.model import init_from
from utils.model import CheckpointError, LoraSettings, build_visual_chat, freeze, load_checkpoint
from utils.model.building import Learning, of_base_models
from utils.model.checkpoint import save_full, save_trained_only

pytestmark = pytest.mark.integration

LORA = LoraSettings(lang_dim=2, vis_dim=2)
EMBEDDING = 32 * 301  # the image token has a row
LAYER = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32  # queries and output, keys and values, MLP, norms
HEAD = EMBEDDING
PROJECTOR = 32 * 32 + 32 + 2 * 32  # matrix and bias, norm


def build(folders, *train, lora=None, seed=0, **choices):
    torch.manual_seed(seed)
    more = {"train": train} if train else {}
    return build_visual_chat(*folders, lora=lora, **more, **choices)


@pytest.mark.parametrize(
    ("train", "wanted"),
    [
        ((), {"embedding": EMBEDDING, "projector": PROJECTOR}),
        (("projector",), {"projector": PROJECTOR}),
        (("decoder",), {"decoder": 2 * LAYER + 32 + HEAD}),
        (("decoder:top-2",), {"decoder": 2 * LAYER + 32 + HEAD}),
        (("embedding", "decoder:top-1"), {"embedding": EMBEDDING, "decoder": LAYER + 32 + HEAD}),
    ],
)
def test_parts_have_their_parameters_and_no_others(folders, train, wanted):
    model, _ = build(folders, *train)
    found = Learning.of(model)
    assert found.learns == wanted
    total = sum(parameter.numel() for parameter in model.parameters())
    assert found.frozen == total - sum(wanted.values())
    assert found.describe().startswith(f"{sum(wanted.values()):,} parameters ({next(iter(wanted))} ")


def test_every_parameter_is_of_one_part(folders):
    model, _ = build(
        folders, "embedding", "projector", "gate", "decoder", "encoder", "lora", lora=LORA, image_gate="head"
    )
    assert Learning.of(model).frozen == 0
    freeze(model, ["encoder"])
    assert [name for name, each in model.named_parameters() if each.requires_grad] == [
        name
        for name, _ in model.named_parameters()
        if name.startswith("model.vision_tower") and ".lora_" not in name
    ]


@pytest.mark.parametrize(
    ("train", "says"),
    [
        (["decodr"], "decodr is no part: choose of embedding, projector, gate, decoder, encoder, lora"),
        (["decoder:top-0"], "decoder:top-0 is no part"),
        (["decoder:top-3"], "decoder:top-3: this decoder has 2 layers"),
        (["decoder", "decoder:top-1"], "name the decoder once"),
    ],
)
def test_a_wrong_word_is_named(folders, train, says):
    model, _ = build(folders)
    with pytest.raises(ValueError, match=says):
        freeze(model, train)


def test_sets_join_to_what_holds_both():
    assert of_base_models(("embedding", "projector"), None) is None
    assert of_base_models(["decoder:top-1"], ["decoder:top-4", "encoder"]) == ["decoder:top-4", "encoder"]
    assert of_base_models(["decoder:top-1"], ["decoder"]) == ["decoder"]


SETS = [
    ("projector",),
    ("projector", "decoder:top-1"),
    ("embedding", "projector", "decoder", "encoder"),
    ("embedding", "projector", "decoder:top-1", "encoder", "lora"),
]


@pytest.mark.parametrize("train", SETS, ids=" ".join)
@pytest.mark.parametrize("save", [save_full, save_trained_only])
def test_a_checkpoint_computes_what_was_trained(folders, tmp_path, save, train):
    model, processor = build(folders, *train, lora=LORA if "lora" in train else None)
    moved(model)
    save(model, processor, tmp_path)
    again, _ = load_checkpoint(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-4 if save is save_full else 0)


@pytest.mark.parametrize("train", SETS[1:], ids=" ".join)
@pytest.mark.parametrize("save", [save_full, save_trained_only])
def test_a_training_that_begins_with_it_holds_it_too(folders, tmp_path, save, train):
    """Whatever of it learns in the second stage; the second's checkpoints hold both stages' weights."""
    lora = LORA if "lora" in train else None
    first, processor = build(folders, *train, lora=lora)
    save(moved(first), processor, tmp_path / "first")
    second, processor = build(folders, "embedding", "projector", lora=lora, seed=5)
    if lora and save is save_full:
        with pytest.raises(CheckpointError, match="merged"):
            init_from(second, tmp_path / "first")
        return
    init_from(second, tmp_path / "first")
    assert torch.equal(logits(second), logits(first))
    assert set(Learning.of(second).learns) == {"embedding", "projector"}
    save_trained_only(moved(second), processor, tmp_path / "second")
    again, _ = load_checkpoint(tmp_path / "second")
    assert torch.equal(logits(again), logits(second)) and not torch.equal(logits(again), logits(first))


@pytest.mark.parametrize(
    "train", [("projector",), ("encoder",), ("gate",), ("decoder:top-1",), ("embedding",)], ids=str
)
@pytest.mark.parametrize("image", [True, False], ids=["image", "text"])
def test_a_batch_reaches_what_learns_or_learns_nothing(folders, train, image):
    """Text alone too, where it has no way to what learns: a loss with a graph."""
    model, _ = build(folders, *train, image_gate="head")
    model.train()
    pixels = {"pixel_values": torch.randn(1, 3, 16, 16)} if image else {}
    ids = torch.tensor([[1, *[model.config.image_token_id] * 5 * image, 20, 21, 22]])
    loss = model(input_ids=ids, labels=ids.where(ids < 300, -100), **pixels).loss
    loss.backward()
    assert loss.isfinite()
    reached = [each for each in model.parameters() if each.grad is not None]
    assert reached and all(each.requires_grad for each in reached)


NARROW = LoraSettings(lang_dim=2)


def begun(folders, **choices):
    """What an earlier training has learnt."""
    model, processor = build(folders, **choices)
    return moved(model), processor


def learning(model) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("save", [save_full, save_trained_only])
def test_projector_and_embedding_come_over_from_either_form(folders, tmp_path, save):
    earlier, processor = begun(folders)
    save(earlier, processor, tmp_path / "earlier")
    model, _ = build(folders, lora=NARROW)
    init_from(model, tmp_path / "earlier")
    for name, parameter in learning(earlier).items():
        torch.testing.assert_close(learning(model)[name], parameter, rtol=0, atol=0)
    ups = [parameter for name, parameter in learning(model).items() if ".lora_B." in name]
    assert ups and not any(parameter.any() for parameter in ups)  # adapters stay as new


@pytest.mark.parametrize(
    ("earlier", "factor"),
    [({"attention": "mmca"}, 1.0), ({"attention": "causal"}, 0.0), ({"image_gate": "head"}, None)],
)
def test_a_gate_begins_as_what_was_computed_before(folders, tmp_path, earlier, factor):
    earlier, processor = begun(folders, **earlier)
    save_trained_only(earlier, processor, tmp_path)
    model, _ = build(folders, image_gate="head")
    init_from(model, tmp_path)
    for name, factors in model.model.image_gate.named_parameters():
        learnt = earlier.model.image_gate
        wanted = learnt.get_parameter(name) if learnt else torch.full_like(factors, factor)
        assert torch.equal(factors, wanted) and factors.requires_grad


def test_a_gate_that_the_run_has_not_is_refused(folders, tmp_path):
    save_full(*begun(folders, image_gate="head"), tmp_path)
    model, _ = build(folders)
    with pytest.raises(
        CheckpointError, match="has learnt an image gate that this run has not; give --image_gate"
    ):
        init_from(model, tmp_path)


@pytest.mark.parametrize("now", [{"image_layers": "none"}, {"image_summary": "mean"}])
def test_another_way_of_images_through_the_decoder_is_refused(folders, tmp_path, now):
    save_trained_only(*begun(folders), tmp_path)
    model, _ = build(folders, **now)
    with pytest.raises(CheckpointError, match="with --image_layers full --image_summary none, this run has"):
        init_from(model, tmp_path)


@pytest.mark.parametrize(
    "save, wanted, message",
    [
        (save_full, {"lora": NARROW}, "merged into its decoder"),
        (save_trained_only, {}, "adapters that this run has not"),
        (save_trained_only, {"lora": LoraSettings(lang_dim=3)}, "of the same decoder"),
        (save_trained_only, {"lora": NARROW, "projector_type": "vit"}, "its projector is linear"),
    ],
)
def test_what_does_not_fit_is_refused(folders, tmp_path, save, wanted, message):
    save(*begun(folders, lora=NARROW), tmp_path)
    model, _ = build(folders, **wanted)
    with pytest.raises(CheckpointError, match=message):
        init_from(model, tmp_path)


def test_a_folder_that_is_no_checkpoint_is_refused(folders, tmp_path):
    model, _ = build(folders)
    with pytest.raises(CheckpointError, match=r"no config\.json; give a checkpoint"):
        init_from(model, tmp_path)
    trained_model, processor = begun(folders)
    save_trained_only(trained_model, processor, tmp_path)
    (tmp_path / "trained.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="is damaged"):
        init_from(model, tmp_path)
    (tmp_path / "trained.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        init_from(model, tmp_path)
