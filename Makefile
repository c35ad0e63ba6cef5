# Every target makes the virtualenv it needs. Recipes are POSIX sh.
SHELL := /bin/sh

ifneq (3.81,$(firstword $(sort 3.81 $(MAKE_VERSION))))
$(error GNU make 3.81 or newer is needed, this is $(MAKE_VERSION): install make with your package manager)
endif

PYTHON ?= python3
DEMO_WORKDIR ?= runs/demo
BENCH_WORKDIR ?= runs/benchmarks
TEST_WORKERS ?= 2
BAZEL_TARGETS ?= //...
VENV := .venv
BIN := $(VENV)/bin
# Written last, so that a virtualenv whose making was interrupted is made again.
LOCK_INSTALLED := $(VENV)/.lock-installed
PACKAGE_INSTALLED := $(VENV)/.package-installed

TF_CPP_MIN_LOG_LEVEL ?= 2
export TF_CPP_MIN_LOG_LEVEL
ifeq (,$(TFP_SURGERY_MNIST_DIR))
ifneq (,$(wildcard ../shared/mnist))
export TFP_SURGERY_MNIST_DIR := $(CURDIR)/../shared/mnist
endif
endif

.DEFAULT_GOAL := help
.PHONY: help venv demo bench test test-slow check format bazel-test bazel-found lock clean

help: ## lists the targets
	@echo 'usage: make TARGET [PYTHON=/path/to/python3]'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1 - \2/p' Makefile

venv: $(PACKAGE_INSTALLED) ## makes .venv with the locked packages and this package in it

# A PYTHON given by the user that is not the one the virtualenv was made with: make it again.
ifneq (,$(filter command environment,$(firstword $(origin PYTHON))))
INTERPRETER := -c 'import os, sys; print(os.path.realpath(sys._base_executable))' 2>/dev/null
ifneq ($(shell "$(PYTHON)" $(INTERPRETER)),$(shell $(BIN)/python $(INTERPRETER)))
.PHONY: $(LOCK_INSTALLED)
endif
endif

$(LOCK_INSTALLED): requirements.lock
	@sh tools/make_venv.sh "$(PYTHON)" $(VENV) requirements.lock
	@touch $@

$(PACKAGE_INSTALLED): $(LOCK_INSTALLED) pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(PACKAGE_INSTALLED) ## trains VAEs on the bundled digits and takes their ELBO apart, into runs/demo
	@$(BIN)/python -m experiments.elbo_surgery --dataset=digits --workdir="$(DEMO_WORKDIR)"

bench: $(PACKAGE_INSTALLED) ## measures time, memory and error beside other libraries, into runs/benchmarks
	$(BIN)/python -m benchmarks.run --workdir="$(BENCH_WORKDIR)" \
	    $(if $(TFP_SURGERY_MNIST_DIR),--manual_dir="$(TFP_SURGERY_MNIST_DIR)") $(BENCH_FLAGS)

test: $(PACKAGE_INSTALLED) ## runs the fast tests
	$(BIN)/python -m pytest -n $(TEST_WORKERS)

test-slow: $(PACKAGE_INSTALLED) ## runs the slow tests
	$(BIN)/python -m pytest -n $(TEST_WORKERS) -m slow

check: $(PACKAGE_INSTALLED) ## lints, checks the format and the types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(PACKAGE_INSTALLED) ## formats the code and mends what the linter can mend
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

bazel-test: bazel-found $(PACKAGE_INSTALLED) ## runs the fast tests with Bazel
	PATH="$(CURDIR)/$(BIN):$$PATH" bazel test $(BAZEL_TARGETS)

bazel-found:
	@sh tools/check_bazel.sh

lock: $(LOCK_INSTALLED) ## renews requirements.lock from the ranges in pyproject.toml
	UV_PYTHON_DOWNLOADS=never $(BIN)/python -m uv pip compile --quiet --universal --python-version 3.10 \
	    --extra dev --upgrade --no-emit-index-url --no-header --no-annotate \
	    --output-file requirements.lock pyproject.toml

clean: ## removes .venv and the caches, and leaves runs alone
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
