# Each target makes the virtual environment it needs. PYTHON is the interpreter to make it with, 3.11 or later.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready
PYTEST := TF_CPP_MIN_LOG_LEVEL=3 $(VENV)/bin/python -m pytest -n 2

.PHONY: demo test test-long lint

demo: $(READY)
	$(VENV)/bin/python examples/train_gpt.py

test: $(READY)
	$(PYTEST)

test-long: $(READY)
	$(PYTEST) -m long

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(READY): pyproject.toml setup.py $(wildcard protos/*.proto)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[test]'
	touch $@
