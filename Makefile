# Everything a developer or CI does. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
ARGS ?=
WORKERS ?= 3
SEEDS ?= 100000
FIRST ?= 0

.PHONY: help setup run test check proto simulate bench bench-feed format lock schema clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

setup: $(STAMP) ## Make the virtual environment from the lock file

run: setup ## Run the broker on embedded defaults (ARGS=--once: the tour, then stop)
	@$(BIN)/broker dev $(ARGS)

test: setup ## Run all tests, OpenBao and PostgreSQL included
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: setup ## Lint, types, import contracts, protos, generated code unchanged
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint
	$(MAKE) --no-print-directory proto
	git diff --exit-code -- broker/v1
	@test -z "$$(git status --porcelain -- broker/v1)" || { git status --short -- broker/v1; exit 1; }

proto: setup ## Regenerate broker/v1 from protos/
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. --grpc_python_out=. protos/broker/v1/*.proto

simulate: setup ## Run the simulation of the feed with SEEDS seeds (100,000) on all cores; FIRST= begins elsewhere
	$(BIN)/python -m tests.simulation --first $(FIRST) --seeds $(SEEDS)

bench: setup ## Run the benchmarks beside their peers; prints a table, writes bench-results/*.json
	$(BIN)/python -m tests.bench $(ARGS)

bench-feed: setup ## Run the feed at scale: 10 to 10,000 verifiers, a million revocations; table, JSON, PNG (ARGS=--quick)
	$(BIN)/python -m tests.bench.feed $(ARGS)

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only --quiet .

lock: setup ## Resolve the dependencies anew into requirements.lock
	$(BIN)/uv pip compile pyproject.toml --all-extras --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 --upgrade --quiet -o requirements.lock

clean: ## Remove what setup and the tools made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
