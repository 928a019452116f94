# Two commands on a fresh machine: `make demo` and `make test`. All is installed in .venv.
VENV   := .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
DEMO   := runs/demo

.PHONY: demo test check format clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.installed  ## train on the embedded digits, sample, write a picture grid, print the measures
	rm -rf $(DEMO)
	$(BIN)/ornstein train digits --preset digits --out $(DEMO)
	$(BIN)/ornstein sample $(DEMO) -n 100 --out $(DEMO)/samples.png
	$(BIN)/ornstein evaluate $(DEMO)

test: $(VENV)/.dev  ## all tests
	$(BIN)/python -m pytest

check: $(VENV)/.dev  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs build dist
