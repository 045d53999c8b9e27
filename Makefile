# Slipway's targets. `make help` lists them. Everything runs in .venv, which each target sets up as it needs.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

RECIPE ?= news
FORM ?= quick
ENGINE ?= triton
HOST ?= 127.0.0.1
PORT ?= 8000
FORCE ?=
# More options for the command behind a target, as in make bench ARGS="--batches 1,8".
ARGS ?=
ARTIFACTS ?= artifacts
REPOSITORY ?= model_repository
RESULTS ?= docs/results
PYTHON ?= $(shell command -v python3.11 || command -v python3)

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# A recipe's results lie under its file's name; the full form has a folder of its own.
NAME := $(basename $(notdir $(RECIPE)))$(if $(filter full,$(FORM)),-full)
MODEL := $(ARTIFACTS)/$(NAME)
# The outside references of the bench, each in an environment of its own with its own lock.
REFERENCES ?= torch openvino
force = $(if $(FORCE),--force)

# PaddleNLP imports libraries that warn at import; a user can do nothing about those.
export PYTHONWARNINGS ?= ignore
export PYTHONUNBUFFERED := 1

##@ The journey
finetune: $(READY) ## train RECIPE (news) in FORM (quick|full), evaluate, write a bundle; resumes; FORCE=1 repeats
	@$(PY) -m finetune run $(RECIPE) --form $(FORM) --out $(ARTIFACTS) $(force)

export: $(READY) ## bundle → static graph → ONNX → fused → INT8, each proved; then the Triton repository
	@$(PY) -m export run $(MODEL) --repository $(REPOSITORY) $(force) $(ARGS)

plan: $(READY) ## measure how RECIPE's model is best run on this machine; both engines follow it; ARGS=--exhaustive
	@$(PY) -m export plan $(MODEL) --repository $(REPOSITORY) --out docs/bench/plan-$(NAME).json $(force) $(ARGS)

serve: $(READY) ## serve every exported bundle: ENGINE=triton|onnx HOST= PORT=; Ctrl-C stops
	@exec $(PY) -m serving run --engine $(ENGINE) --host $(HOST) --port $(PORT) \
	  --bundles $(ARTIFACTS) --model-repository $(REPOSITORY) $(ARGS)

##@ Measuring
evaluate: $(READY) ## every form of RECIPE on its whole test split, and the TF-IDF baseline; writes docs/results/
	@$(PY) -m finetune evaluate $(RECIPE) --form $(FORM) --out $(ARTIFACTS) --results $(RESULTS) $(ARGS)

bench: $(READY) ## every form of RECIPE side by side, with ARGS=--references others too; writes docs/bench/
	@$(PY) -m export.bench $(MODEL)/bundle $(ARGS)

openvino: $(VENV)/.openvino ## optional: OpenVINO in .venv, as a runtime that `make plan` may choose (0.2 GB)

references: $(REFERENCES:%=.venv-references/%/.ready) ## optional: PyTorch, optimum, OpenVINO for the bench (1.8 GB)

stages: $(READY) ## where a request's time goes: RECIPE's model over HTTP beside the bare engine; writes docs/bench/
	@$(PY) -m serving.stages $(MODEL)/bundle --repository $(REPOSITORY) $(ARGS)

loadtest: $(READY) ## Locust against the running gateway: MODEL= USERS= SECONDS= through ARGS="--users 8 --seconds 30"
	@$(PY) -m loadtests run --host http://$(HOST):$(PORT) --model $(NAME) $(ARGS)

report: $(READY) ## RUN="news reviews" (folders or names) on one HTML page: curves, layers, answers, examples
	@$(PY) -m finetune report $(or $(RUN),$(MODEL)/run) $(ARGS)

claims: $(READY) ## what articles claim of fine-tuning, measured again; resumes; then make tables writes docs/claims.md
	@$(PY) -m finetune claims $(ARGS)

chaos: $(READY) ## kill, hang, flood and stop a gateway of its own under traffic; compares every answer; writes docs/bench/chaos.*
	@$(PY) -m loadtests chaos --engine $(ENGINE) --bundles $(ARTIFACTS) --repository $(REPOSITORY) $(ARGS)

soak: $(READY) ## 30 minutes at 80% of the capacity: are memory and latency flat? ARGS="--minutes 5"; writes docs/bench/soak.*
	@$(PY) -m loadtests soak --engine $(ENGINE) --bundles $(ARTIFACTS) --repository $(REPOSITORY) $(ARGS)

tables: $(READY) ## write the measured tables of README and docs from their results files
	@$(PY) docs/tables.py

##@ Development
test: $(READY) ## all tests, with real Paddle, Triton, ONNX Runtime, Locust and Chromium; two processes
	@$(PY) -m pytest -q --numprocesses 2 --dist loadscope --durations=8

test-unit: $(READY) ## the quick part of the tests
	@$(PY) -m pytest -q -m "not slow"

properties: $(READY) ## only the property tests, with twenty times the cases of `make test`, other ones each time
	@SLIPWAY_PROPERTIES=long $(PY) -m pytest -q -m properties --durations=8

fuzz: $(READY) ## thousands of generated and mutated requests against a running gateway, other ones each time
	@SLIPWAY_PROPERTIES=long $(PY) -m pytest -q -s tests/serving/test_fuzz.py

audit: .venv-audit/.ready ## look every locked package up for known vulnerabilities; fails where that cannot be done
	@.venv-audit/bin/python requirements/audit.py

check: $(READY) ## lint, format, types, layers
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(PY) -m pytest -q tests/test_layers.py

efficiency: $(READY) ## what lighter ways of training cost and save, and what late gradients do to the curve
	@$(PY) -m tests.finetune.efficiency $(ARGS)

recipes: $(READY) ## list the recipes that ship
	@$(PY) -m finetune recipes

setup: $(READY) ## only set up .venv

lock: $(READY) ## make the hashed locks in requirements/ anew from pyproject.toml
	@$(PY) requirements/lock.py

clean: ## remove results and .venv (the cache of downloaded data and weights in .cache stays)
	rm -rf $(VENV) $(ARTIFACTS)
	find $(REPOSITORY) -mindepth 1 -maxdepth 1 -type d -exec rm -rf {} +

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nA first run: make finetune export serve\n'

# The environment: hashed locks only. The Triton wheel goes in without its declared dependencies, which are for a
# Python layer that is not used here.
$(READY): requirements/cpu.txt requirements/triton-server.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "error: Slipway needs Python 3.11; set PYTHON=/path/to/python3.11 (found: $$($(PYTHON) --version))"; exit 1; }
	@echo "setup: .venv with $$(grep -c == requirements/cpu.txt) pinned packages (about 2 GB; one to three minutes)"
	@started=$$SECONDS; \
	[ -x $(PY) ] || $(PYTHON) -m venv $(VENV); \
	for step in "requirements/cpu.txt" "requirements/triton-server.txt --no-deps"; do \
	  { $(PY) -m pip install --disable-pip-version-check --require-hashes -r $$step 2>$(VENV)/setup.log || \
	    { echo "error: pip failed; the end of $(VENV)/setup.log:"; tail -n 5 $(VENV)/setup.log; exit 1; }; } | \
	  awk -v tty="$$([ -t 1 ] && echo 1)" '/^error/ || bad {bad = 1; print "\n" $$0; fflush(); next} \
	    /^Collecting/ {n++} {if (tty) printf "\r  %4d packages found; %-60.60s", n, $$1 " " $$2 " " $$3; fflush()} \
	    END {if (tty) printf "\r%-90s\r", ""; exit bad}'; \
	done; \
	touch $(READY); echo "setup: done in $$((SECONDS - started)) s"

# Beside what is there already, and in the same versions.
$(VENV)/.openvino: $(READY) requirements/openvino.txt
	@$(PY) -m pip install --disable-pip-version-check --quiet --require-hashes -r requirements/openvino.txt
	@touch $@

# One that cannot be installed is told and is no hindrance for the others: `make -k`, or REFERENCES=openvino.
.venv-references/%/.ready: requirements/references-%.txt
	@echo "setup: .venv-references/$* with $$(grep -c == $<) pinned packages"
	@mkdir -p .venv-references
	@$(PYTHON) -m venv .venv-references/$*
	@.venv-references/$*/bin/python -m pip install --disable-pip-version-check --quiet --require-hashes -r $< \
	  2>.venv-references/$*.log || { tail -n 3 .venv-references/$*.log; echo "error: .venv-references/$* could not be \
	made (the whole of it: .venv-references/$*.log); torch==...+cpu is in PyTorch's own index of CPU wheels, which pip \
	must be told of (PIP_EXTRA_INDEX_URL); the bench goes without"; exit 1; }
	@touch $@

.venv-audit/.ready: requirements/audit.txt
	@$(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python -m pip install --disable-pip-version-check --quiet --require-hashes -r $<
	@touch $@

.PHONY: finetune export plan serve evaluate bench openvino references stages loadtest chaos soak report claims efficiency tables test test-unit properties fuzz audit check recipes setup lock clean help
