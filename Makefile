# `make demo` and `make test` work on a fresh machine: they make `.venv` and install what they need into it.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOOLS := $(VENV)/.tools
SITE_TOOLS := $(VENV)/.site-tools
WORKERS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=
SEEDS ?= 0,1,2
BENCHMARKS := criterion attention steps huggingface loading evaluation startup bounds

.DEFAULT_GOAL := help
.PHONY: help demo install test test-slow soak evidence bench lint docs clean

help:
	@echo "make demo   install into $(VENV) when needed, then run 'loradetr demo': minutes on a CPU (DEMO_ARGS=... is passed on)"
	@echo "make test   install into $(VENV) when needed, then run the tests (PYTEST_ARGS=... is passed on)"
	@echo "make test-slow  run the tests that take long: several processes, signals, exports, large files"
	@echo "make soak   faults in large numbers, to be stopped and continued at any time (PART=... TRIALS=... JOBS=...)"
	@echo "make evidence  hours of training for docs/evidence.md, to be stopped and continued (DATA=path/to/bccd SEEDS=0,1,2)"
	@echo "make bench  measure speed on this machine, many minutes; writes bench/*.json (BENCHMARKS='loading startup' runs these)"
	@echo "make lint   ruff, mypy and codespell"
	@echo "make docs   build the pages into a site, build/site/index.html; a broken link is an error"
	@echo "make clean  remove $(VENV), caches and built files"

install: $(TOOLS)

# A stamp is younger than pyproject.toml exactly when the environment holds what pyproject.toml asks for: the package
# with what the demo needs, and, in the second one, the tools of development too.
$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python" >&2; exit 2; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "installing into $(VENV) (some minutes on a fresh machine)"
	@$(BIN)/python -m pip install --quiet --quiet --progress-bar off -e ".[demo]"
	@touch $@

$(TOOLS): $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --quiet --progress-bar off -e ".[dev,demo,log,hf,onnx]"
	@touch $@

$(SITE_TOOLS): $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --quiet --progress-bar off -e ".[docs]"
	@touch $@

demo: $(INSTALLED)
	$(BIN)/loradetr demo $(DEMO_ARGS)

# One thread per worker: two workers with a thread per core each would fight for the same cores. The tests of a file,
# which share expensive fixtures, go to one worker.
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
test: $(TOOLS)
	$(PYTEST) $(PYTEST_ARGS)

test-slow: $(TOOLS)
	$(PYTEST) -m "slow and not gpu" $(PYTEST_ARGS)

# Results are kept in soak/: what is in there is not run again.
soak: $(TOOLS)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m tests.soak $(PART) \
		$(if $(TRIALS),--trials $(TRIALS)) $(if $(JOBS),--jobs $(JOBS))

# The studies of docs/evidence.md: hours. What is done is not run again.
ABLATE = $(BIN)/loradetr ablate run
STUDY = --scale tiny --seeds $(SEEDS) --eval-every 1 --jobs $(WORKERS)
DIAGNOSED = --set train.diagnostics=40
SPARSE = --data shapes-sparse --set model.num_queries=300
evidence: $(TOOLS)
	@test -d "$(DATA)" || { echo "error: give the folder of the blood-cell photos: make evidence DATA=path/to/bccd" >&2; exit 2; }
	$(ABLATE) arms $(STUDY) --data $(DATA) --max-steps 876 $(DIAGNOSED) --output-dir evidence/bccd-arms
	$(ABLATE) early $(STUDY) --data $(DATA) --max-steps 438 --output-dir evidence/bccd-early \
		--rows control,lora3,third,rise,fall,zero-b,no-cap,slow-boxes,authors-control,authors
	$(ABLATE) arms $(STUDY) $(SPARSE) --max-steps 1000 $(DIAGNOSED) --rows control,lora3,identical,ffn3 \
		--output-dir evidence/sparse-arms
	$(ABLATE) early $(STUDY) $(SPARSE) --max-steps 1000 $(DIAGNOSED) --rows control,lora3,fall,heavier \
		--output-dir evidence/sparse-early
	$(ABLATE) arms $(STUDY) --data $(DATA) --max-steps 1752 --rows control,lora3 --output-dir evidence/bccd-long

# A script that fails does not keep the others from running.
bench: $(TOOLS)
	@mkdir -p bench
	@failed=; for name in $(BENCHMARKS); do \
		echo "benchmarks/$$name.py"; \
		$(BIN)/python benchmarks/$$name.py --json bench/$$name.json || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

# The pages keep their places in the repository, so that their links lead to the same files as on GitHub.
docs: $(SITE_TOOLS)
	@rm -rf build/pages build/site
	@mkdir -p build/pages
	@tar -cf - *.md benchmarks/README.md tests/README.md docs examples | tar -xf - -C build/pages
	$(BIN)/zensical build --clean --strict
	$(BIN)/python docs/site/check.py build/site

clean:
	rm -rf $(VENV) dist build .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
