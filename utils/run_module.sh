# For scripts to source: how a module of the project is run from any folder.

# What runs Python: $PYTHON, the environment that `make` has made in folder $1, or python3.
python_of() {
    if [ -n "${PYTHON:-}" ]; then echo "$PYTHON"
    elif [ -x "$1/.venv/bin/python" ]; then echo "$1/.venv/bin/python"
    else echo python3
    fi
}

# Modules are found in the repository at $1, whatever lies in the caller's folder: `python -m` would look there first,
# where a chat.py or a folder utils hides the project's own. Relative paths mean the caller's folder.
modules_from() {
    export PYTHONPATH="$1${PYTHONPATH:+:$PYTHONPATH}"
    export PYTHONSAFEPATH=1  # of Python 3.11 and later
}

run_module() {  # ROOT MODULE [flags]
    modules_from "$1"
    "$(python_of "$1")" -m "${@:2}"
}
