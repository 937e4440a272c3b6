"""Built and trained by two processes under ZeRO, one without images: as by one process alone.

Starting the processes takes the time here, so one pair of them runs all cases.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from tests.ranks import run_ranks
from tests.tiny import SHAPE
from utils.model import LoraSettings, build_visual_chat, load_checkpoint
from utils.model.vision import image_size

STEPS = 3


@dataclass(frozen=True)
class Case:
    """What is joined and what learns, and how; alpha makes adapters move as fast as the rest."""

    decoder: str
    encoder: str
    projector: str = "linear"
    lora: dict = field(default_factory=dict)
    image_gate: str = "none"
    stage: int = 3
    reentrant: bool | None = None  # of gradient checkpointing, or None for none


CASES = {
    "embedding": Case("llama", "clip"),
    "LoRA in the decoder": Case("llama", "clip", lora={"lang_dim": 2}),
    "LoRA in both, SigLIP": Case("llama", "siglip", lora={"lang_dim": 2, "vis_dim": 3, "alpha": 6}),
    "LoRA in both, OpenCLIP": Case(
        "llama",
        "open_clip",
        "vit",
        {"lang_dim": 2, "vis_dim": 3, "vis_module_name": "resblocks.", "alpha": 6},
    ),
    "LoRA in both, Qwen-VL": Case("llama", "qwen_vl", "perceiver", {"lang_dim": 2, "vis_dim": 2}),
    "a tied decoder": Case("qwen3", "qwen_vl", lora={"vis_dim": 2}),
    "the perceiver": Case("qwen3", "open_clip", "perceiver"),
    "a gate, LoRA": Case("llama", "clip", lora={"lang_dim": 2, "alpha": 6}, image_gate="head"),
    "SigLIP 2, whose head pools": Case("llama", "siglip2_naflex"),
    "DINOv3": Case("llama", "dinov3"),
    "a gate, ZeRO-0": Case("llama", "clip", image_gate="head", stage=0),
    "a gate, LoRA, ZeRO-2": Case(
        "llama", "clip", lora={"lang_dim": 2, "alpha": 6}, image_gate="head", stage=2
    ),
    "a gate, LoRA, ZeRO-2, reentrant": Case(
        "llama", "clip", lora={"lang_dim": 2, "alpha": 6}, image_gate="head", stage=2, reentrant=True
    ),
    "a gate, LoRA, ZeRO-3, reentrant": Case(
        "llama", "clip", lora={"lang_dim": 2, "alpha": 6}, image_gate="head", reentrant=True
    ),
}

WORKER = """
import json, sys, deepspeed, torch, torch.distributed
from transformers.integrations import HfDeepSpeedConfig
from utils.model import LoraSettings, build_visual_chat, save_full, save_trained_only

deepspeed.init_distributed("gloo")
settings = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "zero_allow_untested_optimizer": True,
}
for case in json.load(open(sys.argv[1])):
    print("case", case["target"], flush=True)
    settings["zero_optimization"]["stage"] = case["stage"]
    alive = HfDeepSpeedConfig(settings)
    torch.manual_seed(0)
    lora = LoraSettings(**case["lora"])
    model, processor = build_visual_chat(
        case["decoder"], case["encoder"], case["projector"], lora=lora or None, image_gate=case["image_gate"]
    )
    if case["reentrant"] is not None:
        model.train().gradient_checkpointing_enable({"use_reentrant": case["reentrant"]})
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    mine = torch.load(case["target"] + "/rows.pt")[torch.distributed.get_rank()]
    for _ in range(STEPS):
        engine.backward(engine(**mine).loss)
        engine.step()
    partitioned = case["stage"] == 3
    state = engine._zero3_consolidated_16bit_state_dict() if partitioned else engine.module.state_dict()
    state = state and {name: tensor.clone() for name, tensor in state.items()}
    if torch.distributed.get_rank() == 0:
        save_full(model, processor, case["target"] + "/full", state_dict=state)
        save_trained_only(model, processor, case["target"] + "/trained", state_dict=state)
    torch.distributed.barrier()
    engine.destroy()
"""


@pytest.fixture(scope="module")
def decoders(tmp_path_factory, llama_folder) -> dict[str, str]:
    """LLaMA, and a Qwen3 whose head is tied to its embedding."""
    folder = tmp_path_factory.mktemp("qwen3")
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(4)
    sizes = dict(vocab_size=len(tokenizer), num_key_value_heads=2, head_dim=16, **SHAPE)
    Qwen3ForCausalLM(Qwen3Config(tie_word_embeddings=True, **sizes)).save_pretrained(folder)
    return {"llama": str(llama_folder), "qwen3": str(folder)}


def build(case, decoders, encoders):
    torch.manual_seed(0)
    return build_visual_chat(
        decoders[case.decoder],
        str(encoders[case.encoder]),
        case.projector,
        lora=LoraSettings(**case.lora) or None,
        image_gate=case.image_gate,
    )


@pytest.fixture(scope="module")
def partitioned(tmp_path_factory, decoders, encoder_folders) -> dict[str, Path]:
    """Each case's folder: its rows, and what two processes have made of them."""
    root = tmp_path_factory.mktemp("partitioned")
    folders, tasks = {}, []
    for number, (name, case) in enumerate(CASES.items()):
        model, processor = build(case, decoders, encoder_folders)
        side = image_size(model.config.vision_config)
        seen = torch.tensor([[1, 5, *[processor.image_token_id] * processor.image_seq_length, 6, 7, 8]])
        read = torch.arange(10, 20)[None]
        labels = seen.where(seen < 10, -100)
        rows = [
            {"input_ids": seen, "labels": labels, "pixel_values": torch.randn(1, 3, side, side)},
            {"input_ids": read, "labels": read},
        ]
        folders[name] = root / str(number)
        folders[name].mkdir()
        torch.save(rows, folders[name] / "rows.pt")
        paths = {
            "decoder": decoders[case.decoder],
            "encoder": str(encoder_folders[case.encoder]),
            "target": str(folders[name]),
        }
        tasks.append({**asdict(case), **paths})
    (root / "tasks.json").write_text(json.dumps(tasks))
    worker = WORKER.replace("STEPS", str(STEPS))
    codes, printed = run_ranks(["-c", worker, root / "tasks.json"], 2, root, seconds=900)
    assert codes == [0, 0], printed
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_mixed_batches_on_two_processes_equal_one_process(name, partitioned, decoders, encoder_folders):
    model, _ = build(CASES[name], decoders, encoder_folders)
    rows = torch.load(partitioned[name] / "rows.pt")
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    start = [parameter.detach().clone() for parameter in learning]
    optimizer = torch.optim.SGD(learning, lr=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (sum(model(**row).loss for row in rows) / 2).backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
    changed = sum(not torch.equal(*pair) for pair in zip(learning, start, strict=True))
    assert changed > 0.8 * len(learning)  # of adapters, some of the first gradients are lost in rounding
    for form in ("full", "trained"):
        loaded, _ = load_checkpoint(partitioned[name] / form)
        for row in rows:
            inputs = {key: value for key, value in row.items() if key != "labels"}
            with torch.no_grad():
                ours, theirs = (each.eval()(**inputs).logits for each in (loaded, model))
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        pairs = {
            name: parameter for name, parameter in loaded.named_parameters() if "vision_tower" not in name
        }
        wanted = dict(model.named_parameters())
        for parameter_name, parameter in pairs.items():
            if parameter_name in wanted and (form == "trained" or not CASES[name].lora):
                torch.testing.assert_close(parameter, wanted[parameter_name], atol=1e-5, rtol=1e-4)
