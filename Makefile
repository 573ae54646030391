# make train   create .venv, install, train and show where the pictures are
# make test    create .venv, install, check style and types, run the test suite; and a part of it on Python 3.12 with
#              the newest jax, if there is one beside Python 3.11
# make torture kill runs, refuse writes and fuzz input at length, of which `make test` does a little; an hour or two
# make docs    the documentation as a site, in build/site; a warning or a dead link is an error
# make bench   training speed beside PyTorch's
#
# A run that is there already is left alone: ARGS=--overwrite deletes it first, ARGS=--resume continues it.
# PYTHON chooses the interpreter (3.11 or newer), CONFIG the configuration, ARGS further options of `vae-jax train`.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/handwriting.yaml
RUN ?= runs/$(basename $(notdir $(CONFIG)))
ARGS ?=
BIN := $(VENV)/bin

# PyTorch, for the tests that compare with it. The exact version in constraints.txt has a CPU build for Python 3.11;
# elsewhere pip would fetch gigabytes of CUDA, so there those tests are skipped unless torch is installed already.
TORCH := $(shell $(PYTHON) -c 'import sys; print(",torch" if sys.version_info[:2] == (3, 11) else "")')

# The tests of trackio need it, but it holds pillow below 13: Python 3.12 has the newest pillow, and none of these tests.
TRACKIO := $(shell $(PYTHON) -c 'import sys; print(",trackio" if sys.version_info[:2] == (3, 11) else "")')

# Python 3.11 has jax 0.10 at the newest; a part of the suite runs on Python 3.12 with the newest jax as well.
ALSO := $(shell $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' && \
    for each in python3.12 "$$(pyenv root 2>/dev/null)"/versions/3.12*/bin/python; do \
    "$$each" -c '' 2>/dev/null && echo "$$each" && break; done)
ALSO_BIN := $(VENV)-newest/bin
SHARED := -n 2 --dist loadfile --no-loadscope-reorder
PYTEST := $(BIN)/python -m pytest $(SHARED)
# Most of the suite's time goes into compiling, of which jax 0.10 does less with the code generator of before. What must
# be equal bit for bit, or learn in earnest, is marked "optimized" and compiled as users do.
QUICKLY := $(shell $(PYTHON) -c 'import sys; print("--xla_cpu_use_fusion_emitters=false" * (sys.version_info[:2] == (3, 11)))')
QUICK := checkpoint compiled config convolution data_load evaluate likelihoods run

.PHONY: train test test-newest lint torture docs bench clean chromium

train: $(BIN)/.installed
	$(BIN)/vae-jax train --config $(CONFIG) --out $(RUN) $(ARGS)

test: $(BIN)/.installed-test lint chromium
	XLA_FLAGS="$(XLA_FLAGS) $(QUICKLY)" $(PYTEST) -m "not optimized"
	$(PYTEST) -m optimized
	$(if $(ALSO),$(MAKE) test-newest,@echo "no Python 3.12 beside $(PYTHON): the newest jax is not tested")

# Pages are tested in Chromium. Root on Debian gets it here; elsewhere, without it, those tests are skipped.
chromium:
	@command -v chromedriver >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && { apt-get update -qq; \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver; } >/dev/null 2>&1; } || \
	    echo "no Chromium here (apt-get install chromium chromium-driver): tests of pages are skipped"

test-newest: $(ALSO_BIN)/.installed
	$(ALSO_BIN)/python -m pytest $(SHARED) $(QUICK:%=tests/test_%.py)

torture: $(BIN)/.installed-test
	$(BIN)/python tests/faults.py kills --count 100
	$(BIN)/python tests/faults.py writes
	$(BIN)/python tests/faults.py removed
	$(BIN)/python tests/faults.py links
	$(BIN)/python tests/faults.py raises
	$(BIN)/python tests/faults.py presses --count 170
	VAE_JAX_TORTURE=1 $(BIN)/python -m pytest --timeout 3600 tests/test_fuzz.py

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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint,docs$(TORCH)$(TRACKIO)]'
	touch $@

$(ALSO_BIN)/.installed: pyproject.toml constraints.txt
	$(ALSO) -m venv $(VENV)-newest
	$(ALSO_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

# The variable silences a banner of the theme's.
docs: $(BIN)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(BIN)/.installed-test
	$(BIN)/python benchmarks/train_speed.py

clean:
	rm -rf $(VENV) $(VENV)-newest .pytest_cache .ruff_cache
