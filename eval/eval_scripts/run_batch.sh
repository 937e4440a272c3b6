#!/usr/bin/env bash
# Run the three shipped evaluation sets: bash eval/eval_scripts/run_batch.sh CHECKPOINT [further flags]
# EVAL_DATA="name another.json" chooses other sets; OUTPUT=folder another place than eval/results.
set -euo pipefail

if [[ $# -lt 1 ]]; then
    echo "usage: $0 CHECKPOINT_FOLDER [flags of python -m eval.batch_generation]" >&2
    exit 2
fi
checkpoint=$(realpath "$1")
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=$([[ -x "$root/.venv/bin/python" ]] && echo "$root/.venv/bin/python" || echo python3)
output=${OUTPUT:-$root/eval/results}

for data in ${EVAL_DATA:-eval_single eval_comprehensive eval_robustness}; do
    PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" "$python" -m eval.batch_generation \
        --checkpoint_path "$checkpoint" \
        --eval_data "$data" \
        --output_filename "$output/$(basename "$checkpoint")_$(basename "$data" .json)" \
        --seed 123 \
        "$@"
done
