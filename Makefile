# `make demo` sets everything up, sorts a small recording and writes a report; `make test` runs the tests;
# `make docs` builds the documentation site.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH_CPU := torch==2.13.0+cpu
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
DEMO := demo
TRY := build/try

.PHONY: setup demo test lint bench docs dist clean

setup: $(STAMP)

# Where there is no NVIDIA card, the CPU build of PyTorch comes first: the default build for Linux brings
# gigabytes of CUDA. Elsewhere, and with a card, the default build is the right one.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Spikewise needs Python 3.11 or later; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi > /dev/null; then \
	  $(BIN)/pip install --quiet "$(TORCH_CPU)" 2> /dev/null || \
	  $(BIN)/pip install --quiet "$(TORCH_CPU)" --index-url $(TORCH_CPU_INDEX); fi
	$(BIN)/pip install --quiet --editable ".[simulate,nwb,cluster,live,gui,papers,docs,dev]"
	touch $(STAMP)

demo: setup
	rm -rf $(DEMO)
	$(BIN)/spikewise simulate --output $(DEMO)/simulation --num-units 10 --duration-s 40 --seed 7
	$(BIN)/spikewise sort $(DEMO)/simulation/recording --labels $(DEMO)/simulation/truth \
	  --label-interval 0 20 --labels-per-unit 30 --no-report --output $(DEMO)/sorted
	$(BIN)/spikewise report $(DEMO)/sorted --recording $(DEMO)/simulation/recording \
	  --truth $(DEMO)/simulation/truth --interval 20 40 --output $(DEMO)/report.html

# Two processes, each with one thread: tests are too small to share their work among threads.
test: setup
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Into site/: its index.html opens from the disk; served, its search works too. Not with --quiet, which hides the
# warnings from --strict.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: setup
	$(BIN)/python benchmarks/run.py

# The wheel and the source archive into dist/; then the wheel is installed into a fresh environment, and sorts.
dist: $(VENV)/bin/python
	rm -rf dist $(TRY)
	$(BIN)/python -m pip install --quiet build twine
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv $(TRY)
	if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi > /dev/null; then \
	  $(TRY)/bin/pip install --quiet "$(TORCH_CPU)" 2> /dev/null || \
	  $(TRY)/bin/pip install --quiet "$(TORCH_CPU)" --index-url $(TORCH_CPU_INDEX); fi
	$(TRY)/bin/pip install --quiet "$$(ls dist/*.whl)[simulate]"
	cd $(TRY) && bin/spikewise simulate --output simulation --num-units 4 --duration-s 10 --seed 7 && \
	  bin/spikewise sort simulation/recording --labels simulation/truth --output sorted && \
	  bin/spikewise evaluate simulation/truth sorted

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(DEMO) bench build dist site
