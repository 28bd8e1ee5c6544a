# On a machine with git, make and Python 3.11 or newer, `make demo` and `make test` need nothing else.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint soak crash clean

demo: .venv/demo
	$(BIN)/batcher demo

test: .venv/test lint
	$(BIN)/pytest -n 4

# Some 20 minutes: 20,000 rows against a server that does everything wrong now and then, twice.
soak: .venv/test
	$(BIN)/python -m tests.soak

# A quarter of an hour: 20,000 simulated universes, 500 kills of real processes, a disk of every size.
crash: .venv/test
	$(BIN)/python -m tests.crash.universes --count 20000
	$(BIN)/python -m tests.crash.kills --kills 500
	$(BIN)/python -m tests.crash.full_disk

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "batcher needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo]'
	touch $@

.venv/test: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@ .venv/demo

clean:
	rm -rf .venv demo
