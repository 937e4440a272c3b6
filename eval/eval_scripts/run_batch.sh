#!/usr/bin/env bash
# Run the three shipped evaluation sets: bash eval/eval_scripts/run_batch.sh CHECKPOINT [further flags]
# CHECKPOINT is a folder (of a checkpoint or a run) or a name on the hub. Works from any folder.
# EVAL_DATA="name another.json" chooses other sets; OUTPUT=folder another place than eval/results.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$root/utils/run_module.sh"

if [[ $# -lt 1 ]]; then
    echo "usage: $0 CHECKPOINT [flags of python -m eval.batch_generation]" >&2
    exit 2
fi
if [[ $1 == -* ]]; then
    run_module "$root" eval.batch_generation "$@"
    exit
fi
checkpoint=$1
shift
name=$(basename "$(cd "$checkpoint" 2> /dev/null && pwd || echo "$checkpoint")")  # a hub name as it is
output=${OUTPUT:-$root/eval/results}
left_out=0  # 3: some dialogues of a set could not be asked, the others were; other codes end it

for data in ${EVAL_DATA:-eval_single eval_comprehensive eval_robustness}; do
    set=$(basename "$data")
    set=${set%.*}
    run_module "$root" eval.batch_generation \
        --checkpoint_path "$checkpoint" \
        --eval_data "$data" \
        --output_filename "$output/${name}_$set" \
        --seed 123 \
        "$@" || { code=$?; ((code == 3)) || exit "$code"; left_out=3; }
done
exit "$left_out"
