# `make demo` and `make test` are complete on a machine that has Python >= 3.11, make and a
# package index: they create .venv, install, and run.
PYTHON ?= python3
BIN := .venv/bin
# Tests run with a thread each, this many at a time.
JOBS ?= 2

.PHONY: demo test slow lint clean

demo: .venv/installed
	$(BIN)/rnnnas demo

test: .venv/dev
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

slow: .venv/dev
	$(BIN)/python -m pytest -m slow

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'rnnnas needs Python 3.11 or newer: make PYTHON=python3.12')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
