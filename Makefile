# `make demo` sets up and runs the main job; `make test` sets up and passes the tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

TESTS := -m pytest -n logical --maxprocesses 4 --dist worksteal

# torch: the CPU build (TORCH=cpu), or that of PyPI, which brings CUDA on Linux (TORCH=pypi).
TORCH       ?= cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
LOCKS       := requirements.lock requirements-deploy.lock torch-$(TORCH).lock

.PHONY: setup demo test test-all coverage bench bench-data lint docs reference proto lock clean

# Nothing is installed whose hash is not in a lock. A folder of wheels that pip is configured with
# (PIP_FIND_LINKS) may hold torch's CPU build; otherwise it comes from PyTorch's index.
LOCKED    := $(PIP) install --require-hashes
torch-cpu  = $(LOCKED) --no-deps --no-index -r torch-cpu.lock 2>/dev/null || \
	$(LOCKED) --no-deps --index-url $(TORCH_INDEX) -r torch-cpu.lock
torch-pypi = $(LOCKED) -r torch-pypi.lock

$(VENV)/.core: pyproject.toml $(LOCKS)
	$(PYTHON) -m venv $(VENV)
	$(torch-$(TORCH))
	$(LOCKED) -r requirements-deploy.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# A device's agent, which trains from graphs: no torch, no SciPy.
$(VENV)/.agent: pyproject.toml requirements-agent.lock
	$(PYTHON) -m venv $(VENV)
	$(LOCKED) -r requirements-agent.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: pyproject.toml $(LOCKS)
	$(PYTHON) -m venv $(VENV)
	$(torch-$(TORCH))
	$(LOCKED) -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation -e .
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
	$(BIN)/python $(TESTS)

test-all: lint
	$(BIN)/python $(TESTS) -m ""

# How much of the code the tests reach, in every process that they start: TOTAL is the figure.
coverage: $(VENV)/.dev
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run $(TESTS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

# The pages that are written from the code; a test compares them.
reference: $(VENV)/.dev
	$(BIN)/python -m docs.reference

# The site, without the network; warnings are errors. Open build/docs/index.html.
docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -W --keep-going --quiet -b html -c docs -d build/doctrees . build/docs

proto: $(VENV)/.dev
	$(BIN)/python -m grpc_tools.protoc -I fedsys/wire/proto --python_out=fedsys/wire --pyi_out=fedsys/wire fleet.proto
	$(BIN)/python -m grpc_tools.protoc -I fedsys/graphs/proto --python_out=fedsys/graphs --pyi_out=fedsys/graphs training_graph.proto

# The peers of simulations/benchmarks, in an environment of their own (their requirements clash).
.venv-bench/.made: requirements.lock
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip --disable-pip-version-check --quiet install \
		torch==2.13.0 'flwr[simulation]==1.42.0' pfl==0.6.0
	@touch $@

.venv-nvflare/.made: requirements.lock
	$(PYTHON) -m venv .venv-nvflare
	.venv-nvflare/bin/python -m pip --disable-pip-version-check --quiet install \
		torch==2.13.0 nvflare==2.9.0
	@touch $@

# Each part ends with the file that it is named after, and a part whose file is there is not measured
# again: what was cut short goes on with `make bench`, and `make clean` starts it over. By the rates in
# simulations/RESULTS.md all of it takes about 40 minutes on 2 quiet cores, besides the installations.
BENCH := build/bench
WORK  := $(BENCH)/clients_per_second_w

bench: bench-data $(BENCH)/secure_aggregation.json $(BENCH)/deployment.json $(BENCH)/large_model.json \
	$(foreach work,1 2 3 4 5 6,$(WORK)$(work).json)
.NOTPARALLEL: bench

bench-data:
	@for file in mnist.npz cifar10-train.parquet shakespeare.parquet; do \
		test -e "$${FEDSYS_DATA:-data}/$$file" || { echo "make bench: $$file is not in" \
		"'$${FEDSYS_DATA:-data}'; set FEDSYS_DATA to the folder that holds it" >&2; exit 2; }; \
	done

PEERS := fedsys,pfl,flwr,nvflare,bound
OF_1  := --turns 3 --own-rounds 20
OF_2  := --turns 3 --own-rounds 1000
OF_3  := --turns 2 --own-rounds 6 --engines $(PEERS)
OF_4  := --turns 1 --own-rounds 4 --rounds 3 --engines $(PEERS)
OF_5  := --turns 1 --own-rounds 4 --rounds 3
OF_6  := $(OF_4)

# The environments are order-only: installing one again makes no measurement old.
$(WORK)%.json: | $(VENV)/.dev .venv-bench/.made .venv-nvflare/.made
	$(BIN)/python -m simulations.benchmarks.clients_per_second --work W$* --threads 1 $(OF_$*) \
		--out $(BENCH)

$(BENCH)/secure_aggregation.json: | $(VENV)/.dev
	mkdir -p $(BENCH)
	$(BIN)/python -m simulations.benchmarks.secure_aggregation --json $@

$(BENCH)/deployment.json: | $(VENV)/.dev
	$(BIN)/python -m simulations.benchmarks.deployment --turns 1 --out $(BENCH)

$(BENCH)/large_model.json: | $(VENV)/.dev .venv-bench/.made
	$(BIN)/python -m simulations.benchmarks.large_model --engines float,ideal,secure,pfl,flwr \
		--turns 1 --out $(BENCH)

# Versions stay as they are unless `make lock UPGRADE=--upgrade` or pyproject.toml asks for others.
# torch-cpu.lock is written by hand: its hashes are those that PyTorch's index lists.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-annotate --custom-compile-command 'make lock' $(UPGRADE)

lock: $(VENV)/.dev
	$(COMPILE) pyproject.toml --extra dev --group build --no-emit-package torch \
		--output-file requirements.lock
	$(COMPILE) pyproject.toml --extra deploy --group build --no-emit-package torch \
		--constraints requirements.lock --output-file requirements-deploy.lock
	$(COMPILE) pyproject.toml --group build \
		--constraints requirements.lock --output-file requirements-agent.lock
	$(COMPILE) pyproject.toml --extra track --extra ray --no-emit-package torch \
		--constraints requirements.lock --output-file requirements-extra.lock
	mkdir -p build  # datasets takes an fsspec of some months ago: all else is the same
	sed '/^fsspec==/,/[^\\]$$/d' requirements.lock >build/but-fsspec.txt
	$(COMPILE) pyproject.toml --extra hf --no-emit-package torch \
		--constraints build/but-fsspec.txt --output-file requirements-hf.lock
	grep -o '^torch==[0-9.]*' torch-cpu.lock | $(COMPILE) --no-config - \
		--constraints requirements.lock --output-file torch-pypi.lock

clean:
	rm -rf $(VENV) build dist
