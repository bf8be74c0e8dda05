# demo and test are all that a visitor needs; both work on a fresh clone with Python 3.11 or newer.
#
#   PYTHON       interpreter to create the environment with (default: the first one >= 3.11 found)
#   VENV         environment to use (default: the active virtual environment, else .venv)
#   CONSTRAINTS  constraints file for pip; empty for none. By default constraints.txt, except in an
#                environment that was there before and has torch: its releases are kept.
#   MIN_VENV     environment of test-min (default: .venv-min)
#   ARGS         passed on to the command, as in `make test ARGS="-k tree"`

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= $(or $(VIRTUAL_ENV),.venv)
MIN_VENV ?= .venv-min
BIN := $(VENV)/bin
# Written where make created the environment.
MARK := $(VENV)/.made-for-specdec
# Which checkout an environment holds, so that two checkouts can take turns in one.
CHECKOUT := $(firstword $(shell pwd | cksum))
USER_STAMP := $(VENV)/.specdec-user-$(CHECKOUT)
DEV_STAMP := $(VENV)/.specdec-dev-$(CHECKOUT)
DOCS_STAMP := $(VENV)/.specdec-docs-$(CHECKOUT)

has_torch = $(shell $(BIN)/python -c 'import importlib.util as u; print(u.find_spec("torch") and 1 or "")' 2>/dev/null)
CONSTRAINTS ?= $(if $(wildcard $(MARK)),constraints.txt,$(if $(has_torch),,constraints.txt))
PIP = $(BIN)/python -m pip --disable-pip-version-check
# Progress is shown where it takes long: torch is large.
INSTALL = $(PIP) install $(if $(CI)$(has_torch),--quiet) $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable

LINKED := drafters verifiers training eval

.PHONY: help demo test test-min test-gpu dev check lint types imports wheel bench train-demo docs links \
	clean
.DEFAULT_GOAL := help

help:
	@echo "make demo        a vision-language model answers about images, plain and speculative"
	@echo "make test        the test suite"
	@echo "make test-min    the same with the oldest torch and transformers that are supported"
	@echo "make bench       speed against transformers' generate, in one interleaved run"
	@echo "make train-demo  trains the demo's models from nothing, into runs/; resumes where it stopped"
	@echo "make docs        the documentation as a site, in site/"
	@echo "make test-gpu    the tests that need a CUDA device"
	@echo "make dev         set up for development"
	@echo "make check       lint, types, direction of imports, the built wheel"

demo: $(USER_STAMP)
	@$(BIN)/specdec demo $(ARGS)

bench: $(USER_STAMP)
	@$(BIN)/specdec bench $(ARGS)

train-demo: $(DEV_STAMP)
	@$(BIN)/python -m specdec.training.target --out runs/lvlm $(ARGS)
	@$(BIN)/python -m specdec.training.release --run runs/lvlm --assets runs/assets
	@for pair in drafter:text-only eagle-hidden:eagle-hidden eagle-shared:eagle-shared; do \
		out=runs/assets/$${pair%%:*}; \
		[ -e $$out/drafter.json ] || \
			$(BIN)/specdec distill --verifier runs/assets/lvlm --out $$out --recipe $${pair#*:} \
				$$([ -e $$out/unfinished/plan.json ] && echo --resume) || exit 1; \
	done

# A process a core, each with one thread: the tests are many small things.
test: $(DEV_STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile -m "not gpu" $(ARGS)

test-min:
	@$(MAKE) --no-print-directory test VENV=$(MIN_VENV) CONSTRAINTS=constraints-min.txt

test-gpu: $(DEV_STAMP)
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		$(BIN)/pytest -m gpu $(ARGS) && \
		for tool in memcheck racecheck; do \
			command -v compute-sanitizer >/dev/null || { echo "no compute-sanitizer here"; break; }; \
			compute-sanitizer --tool $$tool --error-exitcode 1 --target-processes all \
				$(BIN)/pytest -q -m gpu tests/kernels -k "oracle and all-split or paths" || exit 1; \
		done; \
	else \
		echo "make test-gpu: torch sees no CUDA device here, so no GPU test was run" >&2; exit 1; \
	fi

# Not --quiet: it would let warnings pass. The variable silences a notice of mkdocs-material's.
docs: $(DOCS_STAMP) links
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)
	@echo "site/index.html"

dev: $(DEV_STAMP) links
	@if [ -e .git ]; then $(BIN)/pre-commit install; fi

check: lint types imports wheel

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV_STAMP) links
	$(BIN)/mypy

imports: $(DEV_STAMP) links
	$(BIN)/lint-imports --no-logo

wheel: $(DEV_STAMP)
	$(BIN)/python tests/wheel_check.py

# mypy and import-linter cannot follow setuptools' package-dir mapping; nothing at run time needs these.
links:
	@for name in $(LINKED); do \
		[ -L specdec/$$name ] || ln -s ../$$name specdec/$$name; done

clean:
	rm -rf build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -f $(addprefix specdec/,$(LINKED))

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "specdec needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -f $(BIN)/python; exit 1; }
	@touch $(MARK)

$(USER_STAMP): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "installing specdec into $(VENV) (the first time this takes a few minutes)"
	@rm -f $(VENV)/.specdec-*
	$(INSTALL) .
	@touch $@

$(DEV_STAMP): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "installing specdec and its development tools into $(VENV) (the first time this takes a few minutes)"
	@rm -f $(VENV)/.specdec-*
	$(INSTALL) '.[dev]'
	@touch $(USER_STAMP) $@

$(DOCS_STAMP): pyproject.toml $(CONSTRAINTS) | $(USER_STAMP)
	@echo "installing what builds the documentation into $(VENV)"
	$(INSTALL) '.[docs]'
	@touch $@
