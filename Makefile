# Every target does its own set-up: a virtual environment in $(VENV), torch as constrained, the package, editable.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_FLAGS ?= --quiet
TORCH ?= $(shell grep '^torch==' constraints.txt)
# CPU-only torch on Linux: make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

.PHONY: demo bench site docs gpu test lint types install clean
.DEFAULT_GOAL := demo

demo: $(STAMP)
	$(BIN)/biases demo

# The quick selection; make bench ASV=--full for everything, ASV="-b 'operators.Cpu.*swat'" for what matches.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.run $(ASV)

# The committed results of the asv suite over commits, as pages in .asv/html; SITE="--branch HEAD --out DIR".
site: $(STAMP)
	$(BIN)/python -m benchmarks.asv_site $(SITE)

# On a machine where nothing can be installed, a PYTHON that has torch is used as it is; GPU="--budget 500 --out DIR".
gpu:
	@if [ ! -x $(BIN)/python ] && $(PYTHON) -c 'import torch' 2>/dev/null; \
	then $(PYTHON) -m benchmarks.gpu $(GPU); \
	else $(MAKE) --no-print-directory $(STAMP) && $(BIN)/python -m benchmarks.gpu $(GPU); fi

# As HTML, into build/docs; a warning is an error.
docs: $(STAMP)
	$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[docs]'
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

test: lint types
	$(BIN)/python -m pytest -n 2

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"expected Python 3.11 to 3.13, got {v[0]}.{v[1]}: pass PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) '$(TORCH)' -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build
