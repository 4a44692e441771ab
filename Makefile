# Every verb works in a fresh clone with nothing but Python 3.11, a C++ compiler and the package
# registry: it creates the environment if it is missing, installs, builds, runs. A second call does
# nothing twice.
#
#   make demo | test | bench ...   VENV=dir   PYTHON=python3.11   TORCH_INDEX=index of CPU builds
#
# `make test-gpu` and `make sanitize` are for a machine with a GPU and perhaps no network: they use
# PYTHON itself, with the torch that it has, and make no environment.

VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do command -v $$p && break; done)
# Where plain `torch` would be the CUDA build of several GB, an index that has CPU builds.
TORCH_INDEX ?=

BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
STAMPS := $(VENV)/.stamps

# A process a processor, and tests that share what they compile in one (tests/cuda_host). WORKERS=0
# runs them in this process. Between two products an idle thread of OpenMP sleeps: spinning would take
# the processor from the other processes.
WORKERS ?= logical
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 \
  --dist loadgroup

# A broken kernel must never pass as pure Python: where there is a compiler, the build has to work.
ifneq ($(FEDKERNELS_NO_EXT),1)
ifneq ($(shell command -v $(firstword $(CXX)) 2>/dev/null),)
export FEDKERNELS_REQUIRE_EXT ?= 1
endif
endif

.PHONY: install demo test test-slow test-gpu sanitize cuda-check triton-check bench lint format clean \
  evidence-proto-evfl

install: $(STAMPS)/install

demo: $(STAMPS)/install
	$(BIN)/fedkernels demo

# Everything once, under the best instruction set of this machine; then the kernels under each other
# set, without what does not depend on it.
test: $(STAMPS)/dev
	$(PYTEST) --ignore=tests/triton
	@set -e; for set in $$($(BIN)/python -m fedkernels.info --capabilities | xargs -n1 | sed '$$d'); do \
	  echo "tests/ops, instruction set: $$set"; \
	  FEDKERNELS_CPU_CAPABILITY=$$set $(PYTEST) tests/ops -m 'not slow and not once'; \
	done

# Triton kernels without a GPU: interpreted, in processes of their own, and compiled for three
# architectures.
triton-check: $(STAMPS)/dev
	FEDKERNELS_TRITON_CHECK=1 $(PYTEST) tests/triton

# CUDA kernels without a GPU: setup.py's CUDA branch, built, linked and loaded. Needs nvcc.
cuda-check: $(STAMPS)/dev
	$(BIN)/python -m tests.cuda_host.rehearse $(if $(RECORD),--record) $(if $(ALL),--all)

test-gpu:
	@$(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' \
	  || { echo "make: no GPU for the torch of $(PYTHON)" >&2; exit 2; }
	FEDKERNELS_CUDA=1 $(PYTHON) -m pip --disable-pip-version-check install --quiet \
	  --no-index --no-deps --no-build-isolation --editable .
	$(PYTHON) -m fedkernels.info
	$(PYTHON) -m pytest tests/gpu
	$(PYTHON) -m pytest tests/ops

# Builds nothing: after `make test-gpu`.
sanitize:
	PYTHON=$(PYTHON) .ci/sanitize

test-slow: $(STAMPS)/dev
	$(BIN)/python -m pytest -m slow

bench: $(STAMPS)/install
	$(BIN)/fedkernels bench

# Hours; a stopped one goes on. FEDKERNELS_DATA names the folder of the tables that are not built in.
evidence-proto-evfl: $(STAMPS)/install
	$(BIN)/python -m examples.evidence.proto_evfl

lint: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMPS)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info fedkernels/*.so fedkernels/_build.json $(STAMPS)/install
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(STAMPS)/environment:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: PYTHON=$(PYTHON) must be Python 3.11 or newer" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# torch first and alone: the build compiles against it and needs it installed.
$(STAMPS)/torch: $(STAMPS)/environment constraints.txt
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch numpy
	$(PIP) setuptools wheel ninja pybind11
	@touch $@

$(STAMPS)/install: $(STAMPS)/torch pyproject.toml setup.py $(SOURCES)
	$(PIP) --no-build-isolation --editable '.[run]'
	@touch $@

# A CUDA build of torch brings the Triton that it was built with, a CPU build brings none.
$(STAMPS)/dev: $(STAMPS)/install
	$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) triton==3.9.0
	$(PIP) $$($(BIN)/python -c 'import tomllib; extras = \
	  tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	  print(*extras["dev"])')
	@touch $@
