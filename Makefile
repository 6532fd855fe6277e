# `make demo` and `make test` are the two commands of the README; both set up through `make setup`.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
NATIVE := $(wildcard csrc/*.h csrc/*.cpp csrc/cpu/* csrc/cuda/*) CMakeLists.txt setup.py

.PHONY: setup demo test quick gpu lint types profile sanitize compilers install-check pythons wheel wheel-check vllm lmms-eval screenshots docs clean
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

# Two workers with one thread each: two 2-thread processes on 2 cores run several times slower.
demo: setup
	$(PY) -m mmfast.cli demo

test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 -m "not gpu and not slow"

# Half a minute of one core: no process is started, nothing is trained.
QUICK := $(addprefix tests/,test_house.py test_progress.py packing/test_tree.py packing/test_build.py \
  data/containers/test_splits.py data/formats data/text/test_segments.py feedback/test_rules.py evals/test_words.py \
  world/test_grammar.py ops/test_dispatch.py ops/test_splice.py ops/test_segments.py ops/test_logprob.py \
  ops/test_preference.py ops/test_attention.py models/test_proof.py config training/test_metrics.py training/test_optim.py)
quick: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m "not gpu and not slow" $(QUICK)

# What needs this machine's GPU: the op suite on every backend there, the kernels themselves (tests/ops/conftest.py), and whole
# runs (tests/train/test_gpu.py). `make test` is of the CPU on every machine: it hides the GPUs (tests/conftest.py).
GPU_WORKERS ?= 4
gpu: setup
	$(PY) -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'make gpu: there is no CUDA device here')"
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(GPU_WORKERS) -m gpu

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: setup
	$(PY) -m mypy

# One step by op, as a table and a trace: of a tiny model, or of CONFIG="my.toml train.tokens_per_pack=8192".
profile: setup
	$(PY) -m bench.profile $(CONFIG)

# The CPU half under AddressSanitizer and UndefinedBehaviorSanitizer, driven by the tests of the native ops.
SANITIZED := build/sanitize
sanitize: setup
	$(PY) -m cmake -S . -B $(SANITIZED) -G Ninja -DMMFAST_SANITIZE=ON -DMMFAST_CUDA=0 -DCMAKE_BUILD_TYPE=Debug \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja -DPython_EXECUTABLE=$(abspath $(PY)) \
	  -Dpybind11_DIR=$$($(PY) -m pybind11 --cmakedir) -DMMFAST_OUTPUT=$(abspath $(SANITIZED))/mmfast \
	  -DMMFAST_SUFFIX=$$($(PY) -c "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))")
	$(PY) -m cmake --build $(SANITIZED)
	MMFAST_NATIVE_DIR=$(abspath $(SANITIZED))/mmfast OMP_NUM_THREADS=2 ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  $(PY) -m pytest -q -m "not gpu and not slow" -k "cpu or native or segments or images or tree" tests/ops tests/packing tests/data

# Every host source through GCC 11 to 14 (as root on Debian; minutes). Not in CI.
compilers: setup
	$(PY) .ci/compilers.py

# The README's install line in a bare venv of this Python; then of others, one at a time: their torch may be the CUDA
# build, 5 GB each, which no cache keeps. PYTHONS="python3.12 python3.13" names others.
install-check:
	TORCH="$(TORCH)" .ci/install-check $(PYTHON)

PYTHONS ?= python3.12 python3.13
pythons:
	for python in $(PYTHONS); do TORCH="$(TORCH)" PIP_NO_CACHE_DIR=1 .ci/install-check $$python || exit 1; done

# dist/: a source distribution, and of it a wheel for each of these Pythons, audited and loaded without a compiler (docs/releasing.md).
# Then the README's path with the wheel of this Python, and with TORCH, in a bare venv. Minutes; not in CI.
WHEELS ?= python3.10 python3.11 python3.12 python3.13
wheel:
	$(PYTHON) .ci/wheels.py build $(WHEELS)

wheel-check:
	TORCH="$(TORCH)" $(PYTHON) .ci/wheels.py check $(PYTHON)

# The server engine against a real vLLM on this CPU, in a venv of its own (build/vllm, 3 GB, minutes). Not in CI.
vllm: setup
	OMP_NUM_THREADS=1 $(PY) -m bench.vllm --venv build/vllm

# An exported checkpoint in lmms-eval and in ours, in a venv of its own (build/lmms, 2.4 GB, minutes). Not in CI.
lmms-eval: setup
	OMP_NUM_THREADS=1 $(PY) -m bench.lmms --venv build/lmms

# The pictures of docs/correcting.md, taken of the page on the embedded world (needs a browser).
screenshots: setup
	OMP_NUM_THREADS=1 $(PY) -m tests.make.screenshots docs

# README and docs as a site in build/site, strict, in a venv of its own. tests/cli/test_docs.py checks the links without it.
docs: build/mkdocs/.installed
	rm -rf build/site-source && mkdir -p build/site-source
	cp -r --parents *.md LICENSE docs examples recipes bench/results tests/README.md build/site-source
	build/mkdocs/bin/mkdocs build --strict
	@echo "build/site/index.html"

build/mkdocs/.installed:
	$(PYTHON) -m venv build/mkdocs
	build/mkdocs/bin/python -m pip install -q mkdocs==1.6.1 pymdown-extensions==13.1.2
	touch $@

clean:
	rm -rf build dist $(VENV) mmfast/_C*.so
