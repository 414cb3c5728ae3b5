# make setup | demo | test | check | clean; each sets up .venv first if it is missing or out of date.
#
# TORCH_INDEX=URL    further package index for torch. PyPI's Linux build of torch brings CUDA; on a machine
#                    without a GPU take the CPU build from PyTorch's own index (README, "Installing").
# EXTRAS=gpu,dev     which extras to install; at first cpu,dev, then what .venv has. Other extras mean a new .venv.
# TESTS=path         what `make test` runs; everything by default.
# MARKS=expression   by pytest's marks; by default what takes long is left out, and MARKS=long runs that.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test check format clean

# Remembered, so that `make test` after `make setup EXTRAS=gpu,dev` does not add the other FAISS.
EXTRAS ?= $(shell cat .venv/.extras 2>/dev/null || echo cpu,dev)
TESTS ?= tests
MARKS ?= not long
BIN := .venv/bin
# Named after what it depends on, so that a change of either file, or of the extras, installs again.
STAMP := .venv/.installed-$(shell (cat pyproject.toml constraints.txt; echo '$(EXTRAS)') | cksum | tr ' ' '-')
PYTHON := $(shell for name in python3 python3.13 python3.12 python3.11; do \
    $$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info)' 2>/dev/null && echo $$name && break; done)

help: ## show the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP) ## build .venv with the tested versions

$(STAMP): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'error: Python 3.11 or newer is needed; found none on the PATH' >&2; exit 6; }
	@echo "setting up .venv with $(PYTHON) ($$($(PYTHON) --version)); about two minutes"
	@test ! -e .venv/.extras || test "$$(cat .venv/.extras)" = '$(EXTRAS)' || rm -rf .venv
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	    $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)') --editable '.[$(EXTRAS)]'
	@rm -f .venv/.installed-*
	@echo '$(EXTRAS)' > .venv/.extras
	@touch $@

demo: setup ## the whole path on a simulated log: train, evaluate, index, serve, ask
	@$(BIN)/python -m cluster.demo

test: setup ## the test suite
	@$(BIN)/python -m pytest $(TESTS) -m '$(MARKS)'

check: setup ## format, lint, types, import walls
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## rewrite the files in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove .venv, runs and caches
	rm -rf .venv runs build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
