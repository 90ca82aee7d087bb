# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# installed uncompiled, a module is compiled where it is imported first; that is kept, or every process does it again
unexport PYTHONDONTWRITEBYTECODE

.PHONY: kernels demo test test-all lint bench docs clean help

help:
	@echo "make demo      set up, train ten clients on real images with several compressors, show table and report"
	@echo "make test      set up, then lint, types and tests"
	@echo "make test-all  the same with the slow tests, and what these need"
	@echo "make bench     set up, then the benchmarks"
	@echo "make docs      set up, then write pages and pictures again, from result files and from the code"
	@echo "make clean     remove the virtual environment, caches and runs"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gradwire needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --prefer-binary --no-compile -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/gradwire run --seed 0 --seed 1 --seed 2

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

kernels: $(STAMP)
	$(BIN)/python -m gradwire.kernels

# types and kernels, which take a core each for as long, beside each other;
# two workers with one torch thread each: more threads than cores only wait for one another; hypothesis draws the same
# examples every time (its profile "ci"), so that a run depends on the code alone, and new ones in test-all
test: $(STAMP)
	$(MAKE) --jobs=2 lint kernels
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 --dist worksteal --hypothesis-profile=ci

test-all: $(STAMP)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev,frameworks,language,notebook]'
	$(MAKE) --jobs=2 lint kernels
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

bench: $(STAMP)
	$(BIN)/python -m benchmarks

docs: $(STAMP)
	$(BIN)/python -m benchmarks --document
	$(BIN)/python -m tools.picture

clean:
	rm -rf $(VENV) runs dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
