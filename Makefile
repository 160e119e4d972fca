# make setup | demo | test; Python 3.11 or newer, make and a package index are all that is needed.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup setup-dev demo test lint types unit slow clean

setup: $(VENV)/.installed

setup-dev: $(VENV)/.installed-dev

$(VENV)/.installed: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo 'error: no Python 3.11 or newer found; install one, or call make PYTHON=/path/to/python'; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: setup
	@$(BIN)/python -m jaxdl demo

test: setup-dev lint types unit

lint: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

# These tests check values, not speed: with little optimisation the compiler takes half the time. The slow ones compile
# as a user's run does.
QUICK := --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true \
	--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1

unit: setup-dev
	XLA_FLAGS="$(QUICK) $$XLA_FLAGS" $(BIN)/python -m pytest -n 2 --dist=worksteal

slow: setup-dev
	$(BIN)/python -m pytest -m slow -n 2 --dist=worksteal

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
