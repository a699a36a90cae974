# `make demo` sets up and runs the main job; `make test` sets up and passes the tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: setup demo test test-all bench lint proto clean

$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $(VENV)/.core $@

setup: $(VENV)/.dev

demo: $(VENV)/.core
	$(BIN)/fedsys simulate --out runs/demo-$$(date +%Y%m%d-%H%M%S)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-all: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m ""

proto: $(VENV)/.dev
	$(BIN)/python -m grpc_tools.protoc -I fedsys/wire/proto --python_out=fedsys/wire --pyi_out=fedsys/wire fleet.proto

# The peers of simulations/benchmarks, in an environment of their own (their requirements clash).
.venv-bench/.made: constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip --disable-pip-version-check --quiet install \
		torch==2.13.0 'flwr[simulation]==1.41.0' pfl==0.6.0
	@touch $@

bench: $(VENV)/.dev .venv-bench/.made
	$(BIN)/python -m simulations.benchmarks.secure_aggregation
	$(BIN)/python -m simulations.benchmarks.deployment
	$(BIN)/python -m simulations.benchmarks.clients_per_second --work W1,W2,W3 --own-rounds 20 --out build/bench

clean:
	rm -rf $(VENV) build dist
