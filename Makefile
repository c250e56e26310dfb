# make setup  the environment in .venv/
# make demo   trains the example, compiles it, checks it, times it; ends with one table
# make test   all tests
# make lint   format, lint and types
# make bench  the figures of the README (long); needs an idle machine
# make random-graphs  the property tests on 3,000 random networks (minutes)
# make nightly        all of the above
PYTHON := .venv/bin/python
MDPRUNE := .venv/bin/mdprune
STAMP := .venv/.installed
DEMO := out/demo
BENCH := out/bench
BUDGET := 0.5
# `make demo TRAIN=--quick` trains for seconds instead of minutes; its accuracies mean nothing.
TRAIN :=
# `make test TESTS=tests/test_cli.py` runs one file.
TESTS :=
# `make random-graphs SEED=20260131` draws the networks of another day again.
SEED := $(shell date +%Y%m%d)

# PyTorch's threads wait for each other by spinning: on a busy machine that takes ten times as long.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test lint bench random-graphs nightly
setup: $(STAMP)

$(STAMP): pyproject.toml
	@python3 -m venv .venv
	@echo "installing into .venv"
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: setup
	@mkdir -p $(DEMO)
	$(PYTHON) examples/train.py --output $(DEMO) $(TRAIN)
	$(MDPRUNE) compile $(DEMO)/model.pt --budget $(BUDGET) -o $(DEMO)/bundle --force
	$(MDPRUNE) verify $(DEMO)/bundle --against $(DEMO)/model.pt
	$(MDPRUNE) bench $(DEMO)/bundle --against $(DEMO)/model.pt --json > $(DEMO)/bench.json
	@$(PYTHON) examples/demo.py $(DEMO)

test: setup
	@$(PYTHON) -m pytest $(TESTS)

lint: setup
	@$(PYTHON) -m ruff format --check --quiet .
	@$(PYTHON) -m ruff check --quiet .
	@$(PYTHON) -m mypy

bench: setup $(BENCH)/r50-regular
	$(PYTHON) -m benchmarks.exactness $(addprefix --checkpoint ,$(wildcard $(DEMO)/model.pt))
	$(PYTHON) -m benchmarks.latency --styles regular --openvino
	$(PYTHON) -m benchmarks.latency --styles learned
	$(PYTHON) -m benchmarks.latency --styles regular --threads 2
	$(PYTHON) -m benchmarks.memory $(BENCH)/r50-regular
	$(PYTHON) -m benchmarks.torch_pruning
	$(PYTHON) -m benchmarks.budget_tradeoff
	$(PYTHON) -m benchmarks.layout
	$(PYTHON) -m benchmarks.compile_cost

$(BENCH)/r50-regular: | setup
	@mkdir -p $(@D)
	@$(PYTHON) -c "from pathlib import Path; from benchmarks.harness import compile_case, make_case; \
	compile_case(make_case('r50', 'regular'), Path('$(@D)'))"

random-graphs: setup
	@echo "seed $(SEED)"
	@$(PYTHON) -m pytest tests/passes/test_random_graphs.py tests/native/test_random_plans.py \
	--hypothesis-profile=nightly --hypothesis-seed=$(SEED)

nightly: lint test random-graphs demo bench
