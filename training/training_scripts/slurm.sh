#!/usr/bin/env bash
# A job for SLURM: sbatch training/training_scripts/slurm.sh, with sbatch's own options before the name, and values of
# the training in the environment: RUN=run_7b.sh DATA_PATH=/data OUTPUT_DIR=/runs/7b sbatch --nodes 1 ...
# Two minutes before its time is up the training is told, saves and stops; the job queues again and goes on from there.
#SBATCH --job-name=visualchat
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=visualchat-%j.log
set -euo pipefail

# sbatch runs a copy of this file; the repository is where it was submitted from, unless ROOT says otherwise.
ROOT="${ROOT:-${SLURM_SUBMIT_DIR:-}}"
[ -n "${SLURM_JOB_NUM_NODES:-}" ] || { echo "error: this is a job for SLURM: start it with sbatch $0" >&2; exit 2; }
SCRIPT="$ROOT/training/training_scripts/${RUN:-run_70b.sh}"
[ -f "$SCRIPT" ] || { echo "error: no $SCRIPT: submit from the repository's folder, or set ROOT" >&2; exit 2; }

export LAUNCHER="${LAUNCHER:-torchrun}"  # needs no ssh between the nodes
export NNODES="$SLURM_JOB_NUM_NODES"
export NUM_GPUS="${NUM_GPUS:-${SLURM_GPUS_ON_NODE:-8}}"
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_ADDR
export MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 12000))}"  # two jobs may share a node

if [ "${DRY_RUN:-0}" = 1 ]; then
    NODE_RANK=0 exec bash "$SCRIPT" "$@"
fi
# shellcheck disable=SC2016 # SLURM_NODEID is another on every node
srun --kill-on-bad-exit=1 bash -c 'NODE_RANK="$SLURM_NODEID" exec bash "$@"' node \
    "$SCRIPT" --resume_from_checkpoint auto "$@" &
STEP=$!
IS_TIME_UP=0
SAVE_WITHIN="${SAVE_WITHIN:-100}"  # seconds of the two minutes; what has not ended then had not begun, or hangs
# srun hands USR1 on to all processes on all nodes; of TERM it makes kill -9.
trap 'IS_TIME_UP=1; kill -USR1 "$STEP"; { sleep "$SAVE_WITHIN"; kill -TERM "$STEP"; } > /dev/null 2>&1 &' USR1
CODE=0
wait "$STEP" || CODE=$?
if [ "$IS_TIME_UP" = 1 ]; then
    wait "$STEP" || true  # the first wait ended with the signal, before the training had saved
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$CODE"
