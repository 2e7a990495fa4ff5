# Everything runs on a fresh Linux machine that has Python 3.11 or newer with pip: each goal sets up .venv for itself.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-all sweep lint bench zoo clean

# The first Python that is new enough; `make PYTHON=/path/to/python3.12 test` takes another.
PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11,$(shell \
	$(python) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(python))))
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
JOBS ?= 2
SINGLE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

help:
	@echo 'make demo    train a branched detector, fold it, prove it, export it, time it, show it (runs/demo/)'
	@echo 'make test    format, lint, types, floors, tests'
	@echo 'make sweep   2,000 random networks through each front end (an hour or two)'
	@echo 'make bench   every benchmark, side by side with its peers'
	@echo 'make zoo     fold the model zoos of other libraries, write docs/zoo.md (hours; it goes on where it was)'
	@echo 'make clean   remove runs/ and caches; .venv stays'

demo: $(VENV)/.demo
	$(BIN)/unbranch demo

test: lint
	$(SINGLE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow and not zoo"

test-all: lint
	$(SINGLE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not zoo"

sweep: $(VENV)/.dev
	UNBRANCH_RANDOM_GRAPHS=2000 $(SINGLE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/frontends/*/test_random.py

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache --no-logo

bench: $(VENV)/.dev
	@set -e; for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

zoo: $(VENV)/.dev
	$(SINGLE_THREAD) $(BIN)/python -m benchmarks.zoo

clean:
	rm -rf runs dist build .cache .pytest_cache .ruff_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# constraints.txt fixes every version, so that each machine gets the same ones.
# supervision and ultralytics ask for opencv-python, which needs a display's libGL. The extra `headless` holds
# opencv-python-headless and the rest of what they need; they follow by themselves, at the versions of constraints.txt.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) install -c constraints.txt -e '.[demo-base,headless]'
	$(PIP) install -c constraints.txt --no-deps supervision
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install -c constraints.txt --no-deps supervision ultralytics ultralytics-thop
	@touch $(VENV)/.demo $@

$(BIN)/pip:
	@test -n '$(PYTHON)' || { echo 'no Python 3.11 or newer found: install one, or say make PYTHON=/path/to/python3'; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment: install its venv package (Debian: python3-venv)"; exit 1; }
