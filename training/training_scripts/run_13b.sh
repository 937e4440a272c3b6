#!/usr/bin/env bash
# LLaMA-2-13B: what differs from run_7b.sh, whose settings it takes. Any value can be set from the environment.
set -euo pipefail
SCRIPTS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

export LM_MODEL="${LM_MODEL:-meta-llama/Llama-2-13b-hf}"
export OUTPUT_DIR="${OUTPUT_DIR:-$SCRIPTS/../../output/13b}"

exec bash "$SCRIPTS/run_7b.sh" "$@"
