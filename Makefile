# `make test` works on a fresh machine: it makes `.venv`, installs the package with its test tools, and runs the tests.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install test lint clean

help:
	@echo "make test   install into $(VENV) when needed, then run the tests (PYTEST_ARGS=... is passed on)"
	@echo "make lint   ruff, mypy and codespell"
	@echo "make clean  remove $(VENV), caches and built files"

install: $(STAMP)

# The stamp is younger than pyproject.toml exactly when the environment holds what pyproject.toml asks for.
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python" >&2; exit 2; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "installing into $(VENV) (some minutes on a fresh machine)"
	@$(BIN)/python -m pip install --quiet --quiet --progress-bar off -e ".[dev,demo]"
	@touch $@

# One thread a worker: two workers with a thread per core each would fight for the same cores.
test: $(STAMP)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
