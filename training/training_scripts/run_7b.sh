#!/usr/bin/env bash
# LLaMA-2-7B with CLIP ViT-L/14 under MMCA: the settings of the published run (6 epochs, global batch 128, sequence
# 4096, ZeRO-3). Images stay out of the decoder's layers (docs/models.md); --enable_mmca_attention true lets them through, as
# published. Set any value below or in launch.sh from the environment, e.g.
#   DATA_PATH=/data OUTPUT_DIR=/runs/7b BATCH=4 bash training/training_scripts/run_7b.sh --save_total_limit 3
# ENCODER=bigg or qwen takes another encoder; DRY_RUN=1 prints the command, the memory plan and the datasets, and stops.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

: "${LM_MODEL:=meta-llama/Llama-2-7b-hf}"
: "${ENCODER:=clip}"
: "${DATA_PATH:=$ROOT/data}"
: "${OUTPUT_DIR:=$ROOT/output/7b}"
[ -n "${DATASETS:-}" ] || : "${DATASET_CONCAT:=3 2 1 1 1 1 1 1 1}"  # for the sets below; others are not joined
: "${DATASETS:=llava llava_dial otter_mimicit_cgd otter_mimicit_sd otter_mimicit_sn otter_mimicit_tvc \
    otter_mimicit_vst llava_otter_blend sparkles_dialogue}"
: "${EPOCHS:=6}"
: "${GLOBAL_BATCH:=128}"
: "${BATCH:=2}"
: "${LR:=1e-3}"
: "${WARMUP:=0.1}"
: "${MAX_SEQ_LEN:=4096}"
: "${ZERO_STAGE:=3}"

source "$ROOT/training/training_scripts/launch.sh"
