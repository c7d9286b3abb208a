# Everything a developer runs. Needs Python >= 3.11 (with venv) and make; the rest is installed into .venv from lock files.

VENV := .venv
BIN := $(VENV)/bin
CONFORMANCE := tests/conformance/npm
SUITABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
UV_COMPILE := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-emit-find-links --no-annotate --quiet
NPM_LOCK := npm install --package-lock-only --omit-lockfile-registry-resolved --legacy-peer-deps --ignore-scripts --no-audit --no-fund

# Test processes; tests of one file stay together. More than cores: many tests wait for blocks and for processes.
WORKERS ?= 4

PROOFS ?= tests/prove
PROVE := $(BIN)/python -m pytest --override-ini python_files='prove_*.py' --override-ini timeout=7200
export SOAK_S ?= 1200

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint format prove soak bench lock clean

help: ## This list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

setup: $(VENV)/.packages $(VENV)/.node-packages ## .venv with hash-locked dependencies and the local chain's npm packages

demo: setup ## x402 payments end to end on a local chain with Circle's USDC code
	$(BIN)/facilitator demo

test: setup $(VENV)/.conformance-packages $(VENV)/.hledger $(VENV)/.chromium ## the whole test suite, in WORKERS processes
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

check: setup lint test ## what CI runs: format, lint, types, import rules, tests

lint: setup ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

prove: setup $(VENV)/.conformance-packages ## the long proofs, or PROOFS: minutes to an hour
	$(PROVE) $(PROOFS) --numprocesses $(WORKERS) --dist worksteal

soak: setup ## SOAK_S seconds under a steady load: nothing may grow
	$(PROVE) tests/prove/prove_soak.py --capture no

bench: setup $(VENV)/.conformance-packages ## the benchmarks, figures as JSON lines
	@for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit; done

lock: setup ## resolve all locks anew
	$(UV_COMPILE) --extra service --extra console --output-file requirements/runtime.txt
	$(UV_COMPILE) --extra service --extra console --extra dev --extra gateway --extra aws --extra gcp --extra otel --extra xlsx --extra parquet --group test --group lint --group deploy --group build --group image --constraint requirements/runtime.txt \
		--output-file requirements/dev.txt
	$(UV_COMPILE) --group build --group image --constraint requirements/dev.txt --output-file requirements/build.txt
	cd facilitator/devstack/npm && $(NPM_LOCK)
	cd $(CONFORMANCE) && $(NPM_LOCK)

clean: ## remove everything that make and the tools made
	rm -rf $(VENV) $(CONFORMANCE)/node_modules dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find facilitator tests -name __pycache__ -type d -prune -exec rm -rf {} +

# PYTHON names an interpreter; otherwise the first suitable one is taken.
$(BIN)/python:
	@python="$(PYTHON)"; \
	for candidate in python3.13 python3.12 python3.11 python3; do \
		test -n "$$python" && break; \
		"$$candidate" -c '$(SUITABLE)' >/dev/null 2>&1 && python="$$candidate"; \
	done; \
	if test -z "$$python"; then echo "make: no Python >= 3.11 with venv found: install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; fi; \
	"$$python" -m venv $(VENV)

$(VENV)/.packages: requirements/dev.txt pyproject.toml | $(BIN)/python
	$(PIP) install --require-hashes --only-binary :all: --requirement requirements/dev.txt
	$(PIP) install --no-index --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.node-packages: facilitator/devstack/npm/package.json facilitator/devstack/npm/package-lock.json $(VENV)/.packages
	$(BIN)/python -m facilitator.devstack.install
	@touch $@

$(VENV)/.hledger: tests/fixtures/hledger.py $(VENV)/.packages
	$(BIN)/python tests/fixtures/hledger.py
	@touch $@

$(VENV)/.chromium: tests/fixtures/chromium.py $(VENV)/.packages
	$(BIN)/python tests/fixtures/chromium.py
	@touch $@

$(VENV)/.conformance-packages: $(CONFORMANCE)/package.json $(CONFORMANCE)/package-lock.json $(VENV)/.packages
	$(BIN)/python -m facilitator.devstack.install $(CONFORMANCE)
	@touch $@
