# Passerelle: install, run, test. `make help` lists the targets.
PY := .venv/bin/python
PYTEST_ARGS ?=
SLICE ?= $(shell expr $$(date +%s) / 86400)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup setup-dev system run test coverage test-slice test-long check fix scoreboard bench

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.runtime: requirements.lock pyproject.toml
	@test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install -q --require-hashes -r requirements.lock
	$(PY) -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: requirements-dev.lock .venv/.runtime
	$(PY) -m pip install -q --require-hashes -r requirements-dev.lock
	@touch $@

setup: .venv/.runtime ## install what running needs, nothing else

setup-dev: .venv/.dev

system: ## install the Debian packages the tests use (as root), or name what is missing
	@sh tests/system.sh

run: setup ## start the demo on SQLite with fictitious patients: DEMO='--dpi-port 3576' for other ports
	@.venv/bin/passerelle demo $(DEMO)

check: setup-dev ## format, lint, types, import contracts
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

fix: setup-dev ## format and mend what ruff can mend
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

test: check system ## everything but the full counts, some 9 minutes on two cores
	$(PY) -m pytest -n 3 --dist loadgroup -m "not long" $(PYTEST_ARGS)

coverage: check system ## the same, with line coverage; takes longer
	$(PY) -m coverage erase
	$(PY) -m pytest -n 2 --dist loadgroup -m "not long" --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

bench: setup-dev ## measure: ONLY=topic PEERS='hapi=http://... wso2=http://...'
	$(PY) -m benchmarks $(if $(ONLY),--only $(ONLY)) $(foreach peer,$(PEERS),--peer $(peer))

scoreboard: setup-dev ## the official suites, a line each
	$(PY) -m benchmarks.scoreboard

test-slice: setup-dev system ## today's part of the full counts, at most 20 minutes (SLICE=number for another)
	$(PY) -m pytest --slice $(SLICE) $(PYTEST_ARGS)

test-long: setup-dev system ## the full counts; run before an issue is closed
	$(PY) -m pytest -n 2 --dist loadgroup -m long --durations=0 --durations-min=1 $(PYTEST_ARGS)
