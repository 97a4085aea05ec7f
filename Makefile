# Set-up, runs and tests in one word each; `make` alone says which there are.
PYTHON ?= python3
ARGS ?=
# Most of a test is waiting. Those of one file share what they start, so they stay together; files begin in the order of
# their names, the long ones (controls, integration) before the short.
WORKERS ?= 3
BIN := .venv/bin
PRIVATE_ENGINE := $(PYTHON) tools/docker_engine.py --

.PHONY: help setup run test mutants lint format clean lock

help:
	@echo 'make setup    prepare this checkout: everything goes to .tools/ and .venv/'
	@echo 'make run      prepare what is missing, then run the gate; ARGS="--config driver=singularity" goes to Snakemake,'
	@echo '              DOCKER=yes starts a Docker engine for the run where none answers (needs root)'
	@echo 'make test     prepare what is missing, then run the tests, as root; ARGS="-k ports" goes to pytest'
	@echo 'make mutants  see whether the tests notice small changes of the modules that decide'
	@echo 'make lint     check the code and the rules without changing them'
	@echo 'make format   put code and rules into their standard form'
	@echo 'make clean    remove what runs left in results/ and .snakemake/'
	@echo 'make lock     take the newest versions into the locks under tools/'

setup:
	@$(PYTHON) tools/setup.py

run:
	@$(PYTHON) tools/setup.py --brief $(if $(filter yes,$(DOCKER)),--docker)
	@$(if $(filter yes,$(DOCKER)),$(PRIVATE_ENGINE)) $(BIN)/sifproof run $(ARGS)

test:
	@$(PYTHON) tools/docker_engine.py --possible
	@$(PYTHON) tools/setup.py --brief --docker
	@$(PRIVATE_ENGINE) $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

mutants:
	@$(PYTHON) tools/setup.py --brief --mutation
	$(BIN)/python tests/mutation/mutants.py $(ARGS)

lint:
	@$(PYTHON) tools/setup.py --brief --python-only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/snakefmt --check Snakefile workflow

format:
	@$(PYTHON) tools/setup.py --brief --python-only
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

clean:
	find results -mindepth 1 ! -path results/README.md -delete
	rm -rf .snakemake

lock:
	@$(PYTHON) tools/setup.py --renew-lock
