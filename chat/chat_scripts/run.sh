#!/usr/bin/env bash
# Chat with a checkpoint at the terminal: bash chat/chat_scripts/run.sh CHECKPOINT [further flags of chat.chat]
set -euo pipefail

if [[ $# -lt 1 ]]; then
    echo "usage: $0 CHECKPOINT_FOLDER [flags of python -m chat.chat]" >&2
    exit 2
fi
checkpoint=$(realpath "$1")
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=$([[ -x "$root/.venv/bin/python" ]] && echo "$root/.venv/bin/python" || echo python3)

# The module is found through PYTHONPATH, so that relative image paths mean the folder the user is in.
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m chat.chat --checkpoint_path "$checkpoint" "$@"
