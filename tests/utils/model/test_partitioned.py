"""Built and trained in parts by two processes under ZeRO-3, one without images: as by one process alone."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.model import LoraSettings, build_visual_chat, load_checkpoint

ROOT = Path(__file__).parents[3]
STEPS = 3

WORKER = """
import sys, deepspeed, torch, torch.distributed
from transformers.integrations import HfDeepSpeedConfig
from utils.model import LoraSettings, build_visual_chat, save_full, save_trained_only

llama, clip, rows, target = sys.argv[1:]
deepspeed.init_distributed("gloo")
settings = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "zero_allow_untested_optimizer": True,
}
alive = HfDeepSpeedConfig(settings)
torch.manual_seed(0)
model, processor = build_visual_chat(llama, clip, lora=LoraSettings(lang_dim=2))
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
mine = torch.load(rows)[torch.distributed.get_rank()]
for _ in range(STEPS):
    engine.backward(engine(**mine).loss)
    engine.step()
state = engine._zero3_consolidated_16bit_state_dict()
if torch.distributed.get_rank() == 0:
    save_full(model, processor, target + "/full", state_dict=state)
    save_trained_only(model, processor, target + "/trained", state_dict=state)
torch.distributed.barrier()
"""


@pytest.mark.slow
def test_zero_3_with_mixed_batches_equals_one_process(llama_folder, clip_folder, tmp_path):
    torch.manual_seed(0)
    model, processor = build_visual_chat(str(llama_folder), str(clip_folder), lora=LoraSettings(lang_dim=2))
    model.eval()
    seen = torch.tensor([[1, 5, *[processor.image_token_id] * 5, 6, 7, 8]])
    read = torch.arange(10, 20)[None]
    rows = [
        {"input_ids": seen, "labels": seen.where(seen < 10, -100), "pixel_values": torch.randn(1, 3, 16, 16)},
        {"input_ids": read, "labels": read},
    ]
    torch.save(rows, tmp_path / "rows.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                WORKER.replace("STEPS", str(STEPS)),
                str(llama_folder),
                str(clip_folder),
                str(tmp_path / "rows.pt"),
                str(tmp_path),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "DS_ACCELERATOR": "cpu",
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    logs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], logs[0][-2000:] + logs[1][-2000:]

    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (sum(model(**row).loss for row in rows) / 2).backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
    text = {"input_ids": read}
    for form in ("full", "trained"):
        loaded, _ = load_checkpoint(tmp_path / form)
        torch.testing.assert_close(loaded(**text).logits, model(**text).logits, atol=1e-4, rtol=1e-4)
        for ours, theirs in zip(
            loaded.model.multi_modal_projector.parameters(),
            model.model.multi_modal_projector.parameters(),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
