# `make quickstart` and `make test` work on a fresh machine that has Python 3.11 and nothing else.
SHELL := /bin/bash
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest -q -n 2

# Nothing here downloads from a hub or reports home.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
export RAY_USAGE_STATS_ENABLED ?= 0
export VLLM_NO_USAGE_STATS ?= 1

.PHONY: help setup quickstart test test-all test-algorithm bench lint clean clean-venv

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: ## the environment in .venv (3 minutes once, then at once)
	@bash launch/setup.sh

quickstart: setup ## train two tiny models to solve problems together (about 20 minutes on two cores)
	@.venv/bin/longshort run recipes/quickstart.yaml $(ARGS)

test: setup ## everything important, in under eight minutes on two cores
	@$(PYTEST) --ignore tests/nightly $(ARGS)

test-all: setup ## every test, those of tests/nightly too
	@$(PYTEST) $(ARGS)

test-algorithm: setup ## the tests that start no process (45 seconds)
	@$(PYTEST) tests/unit $(ARGS)

bench: setup ## ratios to ideal limits, written to docs/performance.md (35 minutes on two quiet cores)
	@$(PYTHON) -m tests.benchmarks.performance --measure $(ARGS)

lint: setup ## style and format (ruff), layers of imports (import-linter), types (pyright)
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@.venv/bin/lint-imports
	@.venv/bin/pyright --pythonpath $(PYTHON)

clean: ## caches and runs of the quick start
	rm -rf runs/quickstart .pytest_cache .ruff_cache *.egg-info
	find longshort tests -name __pycache__ -type d -exec rm -rf {} +

clean-venv: ## the environment too
	rm -rf .venv
