# make generate PROMPT="a red apple, twemoji style"   paint a picture
# make test                                           the whole test suite
# make lint                                           style and types
PYTHON ?= python3
VENV ?= .venv
PROMPT ?= a smiling cat with sunglasses, noto style
export PROMPT
PIP = $(VENV)/bin/pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: install generate test lint clean

install: $(VENV)/.installed

# torch first, by its exact version: asked for so, pip takes the CPU build where there is one at hand.
$(VENV)/.installed: pyproject.toml constraints.txt miniai/__init__.py
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "miniai needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(shell grep '^torch==' constraints.txt)
	$(PIP) --editable .
	@touch $@

# Without byte code ahead of time, of which the tests' packages have 20,000 files: Python writes what it imports.
# k-diffusion asks for torchvision, which its samplers do not need: tests/diffusion/test_against_k_diffusion.py.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --no-compile --editable '.[dev]'
	$(PIP) --no-compile --no-deps k-diffusion
	@touch $@

generate: $(VENV)/.installed
	@$(VENV)/bin/miniai generate "$$PROMPT" $(if $(OUT),--out "$(OUT)") $(ARGS)

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
