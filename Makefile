# hvdtrain: `make demo` and `make test` are all a bare machine needs.
#
# Variables (each may also come from the environment):
#   PYTHON                  the Python (3.11 to 3.13) that .venv is made with; found when not given
#   TORCH_REQUIREMENT       which torch; give pip an index with CPU wheels (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS)
#                           to get the small `+cpu` build: pip prefers it to the plain wheel of the same version
#   TENSORFLOW_REQUIREMENT  which TensorFlow
TORCH_REQUIREMENT ?= torch==2.13.0
TENSORFLOW_REQUIREMENT ?= tensorflow==2.21.0
export PYTHON TORCH_REQUIREMENT TENSORFLOW_REQUIREMENT

VENV := .venv
BIN := $(VENV)/bin
GPU_TESTS := tests/engine/test_wire.py tests/conformance/test_frameworks.py tests/dropin/test_gpu.py \
	tests/jobs/test_gpu.py
SOURCES := hvdtrain torch_jobs tf_jobs tests benchmarks examples

.PHONY: help setup demo test test-all test-faults test-gpu check format stubs bench clean
.DEFAULT_GOAL := help

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup:  ## .venv with both frameworks, and Horovod built for them (again only when something changed)
	@bash hvdtrain/engine/setup.sh $(VENV)

demo: setup  ## train the default BERT in PyTorch and in TensorFlow on 2 ranks, and compare the curves
	@$(BIN)/hvdtrain demo

# Two at a time: one test's ranks start while another's wait.
test: setup  ## the tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: export EMULATED_HOSTS := 1
test-all: setup  ## the tests, those included that take many minutes (CUDA build)
	@$(BIN)/python -m pytest -m "not gpu"

test-faults: setup  ## jobs that are killed more than 50 times at random moments, many minutes
	@$(BIN)/python -m pytest -m "not gpu" tests/jobs/test_kills.py

# Not in .venv: one Horovod has one CUDA, and the two frameworks' wheels are built for different ones.
test-gpu:  ## the tests that need a GPU, by the python3 on the path, which has a Horovod with NCCL
	@python3 -m pytest -m gpu $(GPU_TESTS)

check: setup  ## style and types, in seconds
	@$(BIN)/ruff check $(wildcard $(SOURCES))
	@$(BIN)/ruff format --check $(wildcard $(SOURCES))
	@$(BIN)/mypy

format: setup  ## put sources in the shape `make check` asks for
	@$(BIN)/ruff check --fix $(wildcard $(SOURCES))
	@$(BIN)/ruff format $(wildcard $(SOURCES))

stubs: setup  ## write again what editors see of hvdtrain.torch, .tensorflow and .keras, after a name is added
	@$(BIN)/python -m tests.stubs

bench: setup  ## step times beside stock Horovod, DDP and MultiWorkerMirroredStrategy
	@$(BIN)/python benchmarks/step_time.py

clean:  ## remove .venv, build and test leftovers (built Horovod wheels stay in the cache)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
