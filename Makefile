# make demo [SEED=0] | test | throughput | lint; each makes .venv itself where it is missing. PYTHON=python3.12 names another Python.
PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test throughput lint

demo: $(INSTALLED)
	$(BIN)/python -m benchmarks.demo --seed $(SEED)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2

throughput: $(INSTALLED)
	$(BIN)/python -m benchmarks.throughput

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# setuptools is installed first, so that the build uses the pinned one too.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, but $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt setuptools
	$(BIN)/python -m pip install --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $@
