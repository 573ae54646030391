# make train   create .venv, install, train and show where the pictures are
# make test    create .venv, install, check style and types, run the test suite
# make bench   training speed beside PyTorch's
#
# A run that is there already is left alone: ARGS=--overwrite deletes it first, ARGS=--resume continues it.
# PYTHON chooses the interpreter (3.11 or newer), CONFIG the configuration, ARGS further options of `vae-jax train`.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/digits.yaml
RUN ?= runs/$(basename $(notdir $(CONFIG)))
ARGS ?=
BIN := $(VENV)/bin

# PyTorch, for the tests that compare with it. The exact version in constraints.txt has a CPU build for Python 3.11;
# elsewhere pip would fetch gigabytes of CUDA, so there those tests are skipped unless torch is installed already.
TORCH := $(shell $(PYTHON) -c 'import sys; print(",torch" if sys.version_info[:2] == (3, 11) else "")')

.PHONY: train test lint bench clean

train: $(BIN)/.installed
	$(BIN)/vae-jax train --config $(CONFIG) --out $(RUN) $(ARGS)

test: $(BIN)/.installed-test lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(BIN)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed; found {sys.version}")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(BIN)/.installed-test: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint$(TORCH)]'
	touch $@

bench: $(BIN)/.installed-test
	$(BIN)/python benchmarks/train_speed.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
