# Two commands do everything on a machine with python3, venv and make:
#   make pretrain   environment, install, a BERT from the built-in documentation
#   make test       environment, install with the test tools, lint, types, tests
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/quickstart.py
WORKDIR ?= runs/quickstart
ARGS ?=
PYTEST_ARGS ?= -m "not slow"
# Two processes, each with whole files: fixtures of a file are made once.
WORKERS ?= -n 2 --dist loadfile
# `make test EXTRAS=test,parity` also compares with PyTorch's BERT.
EXTRAS ?= test

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: pretrain test clean
pretrain: $(VENV)/.installed
	$(BIN)/python -m bert_jax train --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest $(WORKERS) $(PYTEST_ARGS)

# Removes the environment only: runs/ is yours.
clean:
	rm -rf $(VENV) build bert_jax.egg-info

# `--editable`, so that the commands always run the code of this folder.
$(VENV)/.installed: setup.py | $(BIN)/python
	@echo "installing into $(VENV) (once; a minute or two)"
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: setup.py | $(BIN)/python
	@echo "installing with the test tools into $(VENV) (once)"
	$(PIP) --editable '.[$(EXTRAS)]'
	@touch $@ $(VENV)/.installed

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
