#!/usr/bin/env bash
# An example on two machines of 8 GPUs, started from the first one: DeepSpeed reaches the hosts of two_nodes.hostfile by
# ssh without a password. Repository, environment, data and output have to lie under the same paths on both.
#   HOSTFILE=my_hosts DATA_PATH=/data OUTPUT_DIR=/runs/70b bash training/training_scripts/two_nodes.sh
# Where ssh is not allowed, start run_70b.sh on every node: LAUNCHER=torchrun NNODES=2 NODE_RANK=0 (1) MASTER_ADDR=node1.
set -euo pipefail
SCRIPTS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

export HOSTFILE="${HOSTFILE:-$SCRIPTS/two_nodes.hostfile}"

exec bash "$SCRIPTS/${RUN:-run_70b.sh}" "$@"
