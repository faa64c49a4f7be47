# Every target makes its own virtual environment from the constraints file; `make demo` and `make test` need nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow quality style docs notebooks clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) --editable ".[dev]"
	touch $@

demo: $(VENV)/.installed  ## six real prompts, plain and with a draft
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed-dev  ## everything but the slow tests
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/.installed-dev  ## only the slow tests
	$(BIN)/python -m pytest -m slow

quality: $(VENV)/.installed-dev  ## what CI checks besides tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(VENV)/.installed-dev  ## rewrite files in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev  ## the documentation, in build/docs
	$(BIN)/python -m mkdocs build --strict

notebooks: $(VENV)/.installed-dev  ## run the notebooks and store their outputs
	$(BIN)/jupyter execute --inplace examples/*.ipynb

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
