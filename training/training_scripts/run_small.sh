#!/usr/bin/env bash
# A recipe of the folder recipes, started as `visualchat train` does: small (one GPU of 24 GB), or the one that RECIPE
# names. Changes (key=value) and flags may follow; DRY_RUN=1 shows what the training needs, and stops.
#   DRY_RUN=1 DATA_PATH=/data OUTPUT_DIR=/runs/small bash training/training_scripts/run_small.sh max_seq_len=2048
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
source "$ROOT/utils/run_module.sh"
PYTHON="$(python_of "$ROOT")"

modules_from "$ROOT"
exec "$PYTHON" -m visualchat train "${RECIPE:-small}" ${DATA_PATH:+"data_path=$DATA_PATH"} \
    ${OUTPUT_DIR:+"output_dir=$OUTPUT_DIR"} ${NUM_GPUS:+"processes=$NUM_GPUS"} "$@"
