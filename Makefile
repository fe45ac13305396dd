# Each target makes the virtual environment it needs. PYTHON is the interpreter to make it with, 3.11 or later.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready
PYTEST := TF_CPP_MIN_LOG_LEVEL=3 $(VENV)/bin/python -m pytest -n 2

.PHONY: demo test test-long test-longest sanitize lint

demo: $(READY)
	$(VENV)/bin/python examples/train_gpt.py

test: $(READY)
	$(PYTEST)

test-long: $(READY)
	$(PYTEST) -m "long and not longest"

test-longest: $(READY)
	$(PYTEST) -m long

sanitize: $(READY)
	$(VENV)/bin/python tests/kernels/sanitize.py

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# What the build needs is installed first, so that pip does not fetch TensorFlow a second time to build against it.
$(READY): pyproject.toml setup.py $(wildcard protos/*.proto kernels/*/*)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
		> $(VENV)/build-requirements.txt
	$(VENV)/bin/python -m pip install --quiet --requirement $(VENV)/build-requirements.txt
	$(VENV)/bin/python -m pip install --quiet --no-build-isolation --editable '.[test]'
	touch $@
