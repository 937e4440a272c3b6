"""A checkpoint in 8 and 4 bits as transformers' users load it: it answers, and LoRA learns over it. Decoder and encoder
whose frozen weights are quantised in training (`--frozen_bits`): losses, gradients and features are those of the
dequantised weights.
"""

import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from tests.tiny import moved, two_images
from utils.model import LoraSettings, build_visual_chat, load_checkpoint
from utils.model.building import Learning
from utils.model.checkpoint import save_full, save_trained_only
from utils.model.open_clip_vision import describe
from utils.model.quantised import UNQUANTISED, FrozenBits, encoder_matrices, quantised_layers, whole_weight
from utils.model.vision import encode_images, image_size

pytestmark = pytest.mark.integration

BITS = {"4 bits": {"load_in_4bit": True}, "8 bits": {"load_in_8bit": True}}
NEAR = {"4 bits": 0.7, "8 bits": 0.99}
"""What is left of narrow random weights, as a cosine; those of another layer would give one near 0."""

SKIPPED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]


@pytest.fixture(scope="module", params=["linear", "vit", "perceiver"])
def made(request, folders):
    torch.manual_seed(0)
    return build_visual_chat(*folders, projector_type=request.param)


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    save_full(*made, folder)
    return folder


def load(folder, bits: str, skip: list[str] | None, **choices: str):
    config = BitsAndBytesConfig(**BITS[bits], llm_int8_skip_modules=skip)
    return AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config, **choices)


def nearness(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(found.flatten().float(), wanted.flatten(), dim=0))


@pytest.mark.parametrize("skip", [None, SKIPPED], ids=["all but the head", "decoder alone"])
@pytest.mark.parametrize("bits", BITS)
def test_it_answers_nearly_as_before(made, folder, bits, skip):
    whole, inputs = made[0].eval(), two_images(made[0])
    model = load(folder, bits, skip).eval()
    assert not model.model.language_model.layers[0].mlp.up_proj.weight.is_floating_point()
    assert model.lm_head.weight.is_floating_point()
    with torch.no_grad():
        logits = [each(**inputs).logits for each in (model, whole)]
        features = [each.get_image_features(inputs["pixel_values"]).pooler_output for each in (model, whole)]
    assert nearness(*logits) > NEAR[bits] and nearness(*features) > (0.99 if skip else NEAR[bits])
    mask = torch.ones_like(inputs["input_ids"])
    answer = model.generate(
        **inputs, attention_mask=mask, max_new_tokens=3, min_new_tokens=3, do_sample=False
    )
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 3


@pytest.mark.parametrize("image_layers", ["no_mlp", "none"])
@pytest.mark.parametrize("bits", BITS)
def test_images_may_skip_its_layers(made, folder, bits, image_layers, monkeypatch):
    monkeypatch.setattr(made[0].config, "image_layers", image_layers)
    model = load(folder, bits, SKIPPED, image_layers=image_layers).eval()
    inputs, ids = two_images(model), torch.full((1, 2 * model.config.image_seq_length), 299)
    with torch.no_grad():
        found, wanted = (each(**inputs).logits for each in (model, made[0].eval()))
        alone = model(**inputs | {"input_ids": ids.fill_(model.config.image_token_id)}).logits
    assert nearness(found, wanted) > NEAR[bits] and alone.isfinite().all()


@pytest.mark.parametrize("bits", BITS)
def test_adapters_learn_over_it(folder, bits):
    model = load(folder, bits, SKIPPED).train()
    inputs = two_images(model)
    adapted = get_peft_model(
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False),
        LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"]),
    ).train()
    learning = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.3)
    losses = []
    for _ in range(3):
        loss = adapted(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0]


@pytest.mark.parametrize("lora", [None, LoraSettings(lang_dim=2, vis_dim=2)], ids=["plain", "adapters"])
@pytest.mark.parametrize("bits", BITS)
def test_trained_weights_over_quantised_base_models(folders, tmp_path, bits, lora):
    torch.manual_seed(0)
    model, processor = build_visual_chat(*folders, lora=lora)
    save_trained_only(moved(model, 0.05), processor, tmp_path)
    inputs = two_images(model)
    found = load(tmp_path, bits, SKIPPED).eval()
    with torch.no_grad():
        assert nearness(found(**inputs).logits, model.eval()(**inputs).logits) > NEAR[bits]


def gradients(model, inputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = model.train()(**inputs, labels=inputs["input_ids"].where(inputs["input_ids"] < 300, -100)).loss
    loss.backward()
    return loss.detach(), {name: each.grad for name, each in model.named_parameters() if each.requires_grad}


def dequantised(whole, quantised) -> int:
    """Give `whole` the numbers that the bits of `quantised` stand for; returns of how many matrices."""
    layers = quantised_layers(quantised)
    with torch.no_grad():
        for name, layer in layers.items():
            whole.get_submodule(name).weight.copy_(whole_weight(layer))
    return len(layers)


@pytest.mark.parametrize(
    "lora", [None, LoraSettings(lang_dim=2, vis_dim=2, vis_module_name="mlp")], ids=["plain", "adapters"]
)
@pytest.mark.parametrize("bits", [(4, 0), (8, 0), (4, 4), (4, 8), (8, 8), (0, 4), (0, 8)])
def test_frozen_bits_cost_and_teach_what_their_whole_weights_do(folders, bits, lora):
    """4 bits compute with the whole weights; 8 bits round each layer's inputs to 8 bits as well."""
    made = {}
    for each in (UNQUANTISED, FrozenBits(*bits)):
        torch.manual_seed(0)
        choices = dict(lora=lora, image_gate="head", frozen_bits=each, dtype=torch.float32)
        model, _ = build_visual_chat(*folders, **choices)
        made[bool(each)] = moved(model)
    whole, quantised = made[False], made[True]
    assert {name for name, each in quantised.named_parameters() if each.requires_grad} == {
        name for name, each in whole.named_parameters() if each.requires_grad
    }
    assert Learning.of(quantised) == Learning.of(whole)
    # Of two layers each; head and projection are whole.
    assert dequantised(whole, quantised) == 2 * 7 * bool(bits[0]) + 2 * 6 * bool(bits[1])
    inputs = two_images(whole)
    (loss, grads), (wanted, wanted_grads) = gradients(quantised, inputs), gradients(whole, inputs)
    assert loss.item() == pytest.approx(wanted.item(), rel=2e-2 if 8 in bits else 1e-5)
    assert any("multi_modal_projector" in name for name in grads)
    for name, grad in grads.items():
        if 8 in bits:
            assert nearness(grad, wanted_grads[name]) > 0.98, name
        else:
            torch.testing.assert_close(grad, wanted_grads[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "family, left_whole",
    [
        ("clip", 0),
        ("siglip", 3),  # of the head that pools
        ("open_clip", 0),
        ("qwen_vl", 5),  # of the resampler
        ("siglip2_naflex", 4),  # of the patches, whose type the pixels take, and of the head
        ("dinov2", 0),
        ("dinov3", 0),
    ],
)
def test_every_encoder_gives_the_features_of_its_whole_weights(
    llama_folder, encoder_folders, family, left_whole, bits
):
    folders = str(llama_folder), str(encoder_folders[family])
    models = [
        build_visual_chat(*folders, dtype=torch.float32, frozen_bits=FrozenBits(0, each))[0]
        for each in (0, bits)
    ]
    whole, quantised = (each.model.vision_tower.eval() for each in models)
    matrices = [each for each in whole.modules() if isinstance(each, torch.nn.Linear)]
    assert dequantised(whole, quantised) == len(matrices) - left_whole
    assert all(re.search(r"layers?\.\d\.|blocks\.\d\.", name) for name in quantised_layers(quantised))
    side = image_size(whole.config)
    pixels = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    found, wanted = (encode_images(each, pixels) for each in (quantised, whole))
    if bits == 4:
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    else:
        assert nearness(found, wanted) > 0.999


def test_an_encoder_without_matrices_is_refused():
    import open_clip

    resnet = open_clip.get_model_config("RN50")
    resnet["vision_cfg"] |= {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}
    with pytest.raises(ValueError, match="no matrices to quantise: give --frozen_bits one number"):
        encoder_matrices(describe(resnet))


ASSETS = Path(__file__).resolve().parents[3] / "assets"


@pytest.mark.parametrize("encoder_bits", [0, 4, 8])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_learned_over_frozen_bits_is_near_over_whole_weights(tmp_path, bits, encoder_bits):
    """On the miniature's models; docs/training.md has the differences that it prints."""
    torch.manual_seed(0)
    frozen_bits = FrozenBits(bits, encoder_bits)
    choices = dict(lora=LoraSettings(lang_dim=2), frozen_bits=frozen_bits, dtype=torch.float32)
    model, processor = build_visual_chat(str(ASSETS / "tiny_llama"), str(ASSETS / "tiny_clip"), **choices)
    image = [model.config.image_token_id] * model.config.image_seq_length
    side = model.config.vision_config.image_size
    inputs = {
        "input_ids": torch.tensor([[1, 9, *image, *range(20, 60)]]),
        "pixel_values": torch.randn(1, 3, side, side),
    }
    model.eval()(**inputs)  # evaluation must not pack the weights anew
    gradients(model, inputs)
    save_trained_only(model, processor, tmp_path)
    names = [*load_file(tmp_path / "trained.safetensors"), *model.state_dict()]
    assert not [name for name in names if "absmax" in name or "SCB" in name]
    whole, _ = load_checkpoint(tmp_path)
    assert whole.model.language_model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.float32
    as_chat = BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=SKIPPED,
    )
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=as_chat)
    with torch.no_grad():
        trained, *others = (each.eval()(**inputs).logits for each in (model, whole, again))
    differences = [float((other - trained).norm() / trained.norm()) for other in others]
    print(
        f"{frozen_bits.describe()}: logits differ by {differences[0]:.1%} of their size over whole weights,",
        end=" ",
    )
    print(f"by {differences[1]:.1%} over a decoder in {bits} bits")
    limit = {0: 0.02, 4: 0.3, 8: 0.05}
    assert differences[0] < max(limit[bits], limit[encoder_bits]) and differences[1] < limit[encoder_bits]


@pytest.mark.parametrize("part, bits", [("decoder", (4, 0)), ("encoder", (4, 8))])
def test_quantised_weights_cannot_learn(folders, part, bits):
    with pytest.raises(ValueError, match="is quantised, so it cannot learn"):
        build_visual_chat(*folders, train=["projector", part], frozen_bits=FrozenBits(*bits))
