"""What learns: the parts by name, and checkpoints of trained weights that hold them."""

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


@pytest.fixture(scope="module")
def folders(llama_folder, clip_folder):
    return str(llama_folder), str(clip_folder)


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
