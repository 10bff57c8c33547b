# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo-results
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all check bench clean

demo: $(VENV)/.demo
	$(BIN)/scrd-fast demo --out $(OUT)

test: check
	$(BIN)/python -m pytest

test-all: check
	$(BIN)/python -m pytest -m ""

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.bench
	$(BIN)/python -m pytest benchmarks -s --benchmark-columns=min,median,max,rounds

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}; use make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# A stamp per set of extras: the second run starts at once.
INSTALL := pyproject.toml setup.py constraints.txt $(shell find csrc -name '*.[chi]pp' -o -name '*.inl')

$(VENV)/.demo: $(INSTALL) | $(VENV)/bin/python
	$(PIP) -e ".[demo]"
	@touch $@

$(VENV)/.test: $(INSTALL) | $(VENV)/bin/python
	$(PIP) -e ".[test]"
	@touch $@ $(VENV)/.demo

$(VENV)/.bench: $(INSTALL) | $(VENV)/bin/python
	$(PIP) -e ".[bench]"
	@touch $@ $(VENV)/.test $(VENV)/.demo

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
