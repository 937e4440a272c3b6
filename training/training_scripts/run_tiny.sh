#!/usr/bin/env bash
# The miniature world on a laptop: the models in assets/ in place of LLaMA-2 and CLIP, everything else as run_7b.sh.
# Its data: python -m helper.make_tiny_world. It is for trying the pipeline: models so small learn to see little. Set any
# value below or in launch.sh from the environment; DRY_RUN=1 prints the command and stops.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

: "${LM_MODEL:=$ROOT/assets/tiny_llama}"
: "${VISION_MODEL:=$ROOT/assets/tiny_clip}"
: "${DATA_PATH:=$ROOT/data/miniature}"
: "${OUTPUT_DIR:=$ROOT/output/tiny}"
[ -n "${DATASETS:-}" ] || : "${DATASET_CONCAT:=3}"
: "${DATASETS:=llava llava_dial}"
: "${DATA_TRAIN_SPLIT:=0.97}"
: "${LANG_LORA_DIM:=64}"
: "${LOGGING_STEPS:=25}"
: "${EPOCHS:=1}"
: "${PACKING:=true}"
: "${GLOBAL_BATCH:=4}"  # rows of MAX_SEQ_LEN tokens, about 3.2 conversations each
: "${BATCH:=2}"
: "${LR:=3e-4}"  # the adapters of a decoder so small destroy what it knows where they learn faster
: "${WARMUP:=0.05}"
: "${MAX_SEQ_LEN:=512}"
: "${ZERO_STAGE:=3}"
: "${STAGE3_GATHER_LAYERS:=true}"  # a matrix at a time takes longer to gather than to multiply, at this size
: "${NUM_GPUS:=2}"
: "${WORKERS:=0}"
: "${GRADIENT_CHECKPOINTING:=false}"

source "$ROOT/training/training_scripts/launch.sh"
