"""The same training under each launcher: two processes are two processes, whoever starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "training" / "training_scripts" / "run_tiny.sh"


@pytest.mark.long
def test_every_launcher_trains_to_the_same_losses(trainings, world, tmp_path):
    def losses(launcher: str, processes: int, **values: object) -> list[float]:
        output = tmp_path / f"{launcher}-{processes}"
        environment = {
            **{"LAUNCHER": launcher, "NUM_GPUS": processes, "OUTPUT_DIR": output, "DATA_PATH": world.data},
            **{"LM_MODEL": world.language_model, "VISION_MODEL": world.vision_model},
            **{"GLOBAL_BATCH": 8, "BATCH": 4, "MAX_STEPS": 3, "LANG_LORA_DIM": 0, "MAX_SEQ_LEN": 256},
            **{"LOGGING_STEPS": 1, "SAVE_STRATEGY": "steps", "SAVE_STEPS": 3, "EVAL_STRATEGY": "no"},
            **{
                "DS_ACCELERATOR": "cpu",
                "PYTHON": sys.executable,
                "PRECISION": "fp32",
                "TENSORBOARD": "false",
            },
            **values,
        }
        done = subprocess.run(
            ["bash", SCRIPT],
            env={**os.environ, **{name: str(value) for name, value in environment.items()}},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return trainings.losses(output)

    expected = losses("deepspeed", 2)
    assert len(expected) == 3
    assert losses("torchrun", 2) == expected
    assert losses("accelerate", 1) == pytest.approx(expected, rel=1e-4)  # the same batches on one process
