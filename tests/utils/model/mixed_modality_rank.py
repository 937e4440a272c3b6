"""One of two ranks that train and evaluate on batches of every mixture: `... llama clip batches.pt losses`.

All settings, one after the other, in one start of the processes: ZeRO-2 and 3, with and without gradient
checkpointing, and ZeRO-0, training and evaluation. The losses go into losses.RANK.jsonl as they come, so that a
batch at which the ranks hang costs no count of those before it.
"""

import faulthandler
import json
import os
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from transformers.integrations import HfDeepSpeedConfig

from utils.distributed import initialise
from utils.model import build_visual_chat, modeling_visual_chat, vision

# So few images at a time that the ranks' batches of up to 8 take different numbers of entries into the encoder.
modeling_visual_chat.encode = partial(vision.encode, at_once=2)
SECONDS = 500
faulthandler.dump_traceback_later(SECONDS, exit=True)  # where it hung, if it did
llama, clip, batches, losses = sys.argv[1:]
initialise(use_cpu=True, timeout=timedelta(seconds=SECONDS))
cases = torch.load(batches)  # of each case, what images go through and each rank's batch
results = Path(f"{losses}.{dist.get_rank()}.jsonl")
for stage in (0, 2, 3):
    for checkpointing in (False, True) if stage else (False,):
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        }
        alive = HfDeepSpeedConfig(settings)  # while it lives, transformers builds models partitioned
        torch.manual_seed(0)
        model, _ = build_visual_chat(llama, clip)
        if checkpointing:
            model.gradient_checkpointing_enable()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        for training in (True, False):
            engine.train(training)
            for name, (image_layers, ranks) in cases.items():
                case = (stage, checkpointing, training, name)
                engine.module.config.image_layers = image_layers
                with torch.set_grad_enabled(training):
                    loss = engine(**ranks[dist.get_rank()]).loss
                if training:
                    engine.backward(loss)
                    engine.step()
                with results.open("a") as lines:
                    lines.write(f"{json.dumps([case, loss.item()])}\n")
        engine.destroy()
        print("done:", stage, checkpointing, flush=True)
        del alive
dist.barrier()
sys.stdout.flush()
os._exit(0)  # DeepSpeed's engines that are gone leave hooks behind that outlive the interpreter
