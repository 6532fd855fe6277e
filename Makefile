# `make demo` and `make test` are the two commands of the README; both set up through `make setup`.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
NATIVE := $(wildcard csrc/*.h csrc/*.cpp csrc/cpu/* csrc/cuda/*) CMakeLists.txt setup.py

.PHONY: setup demo test lint sanitize clean
setup: $(STAMP) $(VENV)/.built

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade pip setuptools wheel
	$(PY) -m pip install -q "$(TORCH)" numpy
	$(PY) -m pip install -q pybind11 ninja cmake
	$(PY) -m pip install -q --no-build-isolation -e ".[train,triton,bench,dev]"
	touch $@ $(VENV)/.built

$(VENV)/.built: $(STAMP) $(NATIVE)
	$(PY) setup.py -q build_ext --inplace
	touch $@

test: setup
	$(PY) -m pytest -q -n 2 -m "not gpu and not slow"

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean:
	rm -rf build dist $(VENV) mmfast/_C*.so
