# Every command of the project; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready
RUN := $(BIN)/saebench
CONSTRAINTS := .ci/constraints.txt
PEERS := .peers

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long check format figures sweep bench docs peers tiny-gpt2 clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  make %-11s %s\n", $$1, $$2}'

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"saebench needs Python 3.11 or newer; {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS) torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS) -e '.[test,dev]'
	@touch $(READY)

setup: $(READY)  ## install into .venv

demo: $(READY)  ## the main job on the embedded model and text: train, evaluate, tables, figures
	$(RUN) sweep experiment=demo
	$(RUN) tables
	$(RUN) figures

test: $(READY)  ## the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not long"

test-long: $(READY)  ## what takes minutes: soaks, browsers, peers
	$(if $(wildcard $(PEERS)/bin/python),SAEBENCH_PEERS_PYTHON=$(PEERS)/bin/python) $(BIN)/python -m pytest -m long

check: $(READY)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(READY)  ## write the format and the safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

sweep: $(READY)  ## a sweep: make sweep ARGS='experiment=demo'
	$(RUN) sweep $(ARGS)

figures: $(READY)  ## tables and figures of every run in outputs/
	$(RUN) tables
	$(RUN) figures

bench: $(READY)  ## step times against floors and, after make peers, against other libraries; what a gang costs and saves
	$(BIN)/python -m tests.bench.step $(if $(wildcard $(PEERS)/bin/python),--peers $(PEERS)/bin/python) $(ARGS)
	$(BIN)/python -m tests.bench.gang

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS) -e '.[docs]'
	@touch $(DOCS_READY)

docs: $(DOCS_READY)  ## the documentation into site/: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build # the variable silences a notice on successors of mkdocs

peers:  ## install SAELens, sparsify and dictionary_learning into .peers, for bench and test-long
	$(PYTHON) -m venv $(PEERS)
	grep '^torch==' $(CONSTRAINTS) > $(PEERS)/constraints.txt
	$(PEERS)/bin/python -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS) torch
	$(PEERS)/bin/python -m pip install -q --disable-pip-version-check -c $(PEERS)/constraints.txt sae-lens eai-sparsify
	$(PEERS)/bin/python -m pip install -q --disable-pip-version-check --no-deps dictionary-learning # nnsight, which it wants for language models, is not needed
	$(PEERS)/bin/python -m pip install -q --disable-pip-version-check einops zstandard

tiny-gpt2: $(READY)  ## train the embedded model again (seeded, about 15 minutes on two cores)
	$(BIN)/python -m saebench.assets.build

clean:  ## remove the virtual environment (never outputs)
	rm -rf $(VENV)
