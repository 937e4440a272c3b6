#!/usr/bin/env bash
# The demonstration on a laptop: a real decoder of 135 million parameters and a real encoder, from random projections, with
# everything else as run_7b.sh. `python -m helper.demo` makes what it reads and starts it (docs/demonstration.md). Set any
# value below or in launch.sh from the environment; DRY_RUN=1 prints the command and stops.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

: "${LM_MODEL:=$ROOT/data/demonstration/decoder}"
: "${VISION_MODEL:=$ROOT/data/demonstration/encoder}"
: "${DATA_PATH:=$ROOT/data/demonstration/dialogues-2560-150-1234}"
: "${DATASETS:=$DATA_PATH/single.json $DATA_PATH/names.json $DATA_PATH/learn.json}"
: "${OUTPUT_DIR:=$ROOT/output/demo}"
: "${DATA_TRAIN_SPLIT:=0.99}"
# The recipe
: "${LANG_LORA_DIM:=16}"
: "${LORA_MODULES:=self_attn}"
: "${LR:=3e-3}"
: "${LORA_LR:=1e-3}"
: "${EMBEDDING_LR:=1e-4}"
: "${WARMUP:=8}"
: "${GLOBAL_BATCH:=8}"
: "${BATCH:=4}"
: "${EPOCHS:=1}"
# How it runs: two processes on a CPU
: "${NUM_GPUS:=2}"
: "${ZERO_STAGE:=2}"  # 3 learns the same, but takes three times as long where all weights are gathered through gloo
: "${STAGE3_GATHER_LAYERS:=true}"  # for 3: a matrix at a time takes longer to gather than to multiply, at this size
: "${PRECISION:=bf16}"
: "${TORCH_COMPILE:=$(command -v "${CXX:-g++}" >/dev/null && echo true || echo false)}"
: "${GRADIENT_CHECKPOINTING:=false}"
: "${MAX_SEQ_LEN:=512}"
: "${WORKERS:=0}"
: "${LOGGING_STEPS:=10}"
: "${SAVE_STRATEGY:=no}"  # but `final`

# The encoder is frozen and each image comes in several dialogues: its features are computed once. The files come in their
# order, the simplest dialogues first.
set -- --lang_lora_module_name "$LORA_MODULES" --lora_learning_rate "$LORA_LR" \
    --torch_compile "$TORCH_COMPILE" --cache_vision_features true --train_sampling_strategy sequential "$@"
source "$ROOT/training/training_scripts/launch.sh"
