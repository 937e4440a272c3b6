#!/usr/bin/env bash
# LLaMA-2-70B with Qwen-VL's encoder of 2B: what differs from run_7b.sh, whose settings it takes. Any value can be set
# from the environment.
set -euo pipefail
SCRIPTS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

export LM_MODEL="${LM_MODEL:-meta-llama/Llama-2-70b-hf}"
export ENCODER="${ENCODER:-qwen}"
export OUTPUT_DIR="${OUTPUT_DIR:-$SCRIPTS/../../output/70b}"
export BATCH="${BATCH:-1}"
export CHECKPOINT_FORM="${CHECKPOINT_FORM:-trained}"  # 0.5 GB instead of 140: helper.export_checkpoint makes it whole

exec bash "$SCRIPTS/run_7b.sh" "$@"
