#!/usr/bin/env bash
# Chat with a checkpoint at the terminal: bash chat/chat_scripts/run.sh CHECKPOINT [further flags of chat.chat]
# CHECKPOINT is a folder (of a checkpoint or a run) or a name on the hub. Works from any folder.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$root/utils/run_module.sh"

if [[ $# -lt 1 ]]; then
    echo "usage: $0 CHECKPOINT [flags of python -m chat.chat]" >&2
    exit 2
fi
if [[ $1 != -* ]]; then set -- --checkpoint_path "$@"; fi
run_module "$root" chat.chat "$@"
