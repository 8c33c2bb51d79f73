# Works with GNU make 3.81, which macOS ships: no .ONESHELL, no .SHELLFLAGS.
SHELL := bash
PYTHON ?= python3
ARGS ?=
SEED ?= $$RANDOM
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-hosts test-pythons check faults bench clean

help:
	@echo 'make demo      install into $(VENV), and compare models of built-in pictures of letters'
	@echo 'make test      install for development, and run the tests but for the slow ones; ARGS="-k glyphs" chooses some'
	@echo 'make test-all  run the slow tests too, in a random order whose seed it prints; SEED=7 repeats one'
	@echo 'make test-hosts  run the tests of jobs on several hosts, which are namespaces of this machine'
	@echo 'make test-pythons  check syntax, help and types with each newer Python that is found, without torch'
	@echo 'make check     lint, formatting and types'
	@echo 'make faults    break all that tests break, more often, and write the table of docs/reliability.md'
	@echo 'make bench     run the short benchmarks, one JSON line per figure; benchmarks/README.md has the others'
	@echo 'make clean     remove caches and build outputs, and install anew next time; runs/ stays'
	@echo 'PYTHON=python3.12 chooses the Python that $(VENV) is made with (3.11 or newer).'

demo: $(VENV)/.installed
	@$(BIN)/calotype demo

# Two processes; one that has nothing left takes tests from the other, and until then each has modules to itself.
PYTEST := PYTHONUTF8=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(VENV)/.installed-dev
	@$(PYTEST) -m 'not slow' $(ARGS)

test-all: $(VENV)/.installed-dev
	@$(PYTEST) -m 'not hosts' --shuffle $(SEED) --durations 15 $(ARGS)

test-hosts: $(VENV)/.installed-dev
	@$(PYTEST) -m hosts $(ARGS)

test-pythons: $(VENV)/.installed-dev
	@bash .ci/pythons

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

faults: $(VENV)/.installed-dev
	FAULTS=50 PYTHONUTF8=1 $(BIN)/python -m pytest -m fault

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/trainer.py

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis $(VENV)/.installed $(VENV)/.installed-dev
	find . -name $(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# Pip's own output without the lines that say that nothing was to be done; its errors come through.
SHOW := awk '/^(Collecting|Downloading|Installing|Successfully|  Downloading|  Using cached)/ { print "  " substr($$0, 1, 100); fflush() }'

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	@echo 'Installing Calotype into $(VENV); the first time this takes some minutes.'
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e . | $(SHOW)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/pip
	@echo 'Installing Calotype for development into $(VENV); the first time this takes some minutes.'
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' | $(SHOW)
	@touch $(VENV)/.installed $@

# pip comes last when an environment is made: one without it was interrupted, and is made again.
$(BIN)/pip:
	@command -v '$(PYTHON)' >/dev/null || { \
		echo "There is no $(PYTHON): install Python 3.11 or newer, or name yours, as in make PYTHON=python3.12" >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$('$(PYTHON)' --version 2>&1), but Calotype needs 3.11 or newer: install one and name it," \
			"as in make PYTHON=python3.12" >&2; exit 1; }
	@echo 'Creating $(VENV).'
	@'$(PYTHON)' -m venv --clear $(VENV)
