PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slow proof bench lint clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## make .venv and install foretext with everything tests need

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

quickstart: $(READY)  ## the whole pipeline, on the documentation of the installed Python packages: ten minutes on two cores
	$(BIN)/foretext quickstart

test: $(READY)  ## the test-suite, without what takes minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-slow: $(READY)  ## the proofs that take minutes: kill -9 and resume, leak bounds, published numbers
	$(BIN)/python -m pytest -m slow

proof: $(READY)  ## where pre-training helps, and where it does not: about an hour
	$(BIN)/python benchmarks/proof.py

bench: $(READY)  ## what everything costs beside what people use today: twenty minutes on two idle cores; BENCH=--quick only tries it
	-$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	-$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps marge-pytorch  # its faiss-gpu would overwrite faiss-cpu
	$(BIN)/python benchmarks/bench.py $(BENCH)

lint: $(READY)  ## style
	$(BIN)/ruff check foretext tests benchmarks

clean:  ## remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
