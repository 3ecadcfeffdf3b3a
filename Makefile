# Two commands matter: `make demo` and `make test`. Both set up their own virtual environment first.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test test-slow lint schemas clean

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "edgekd needs Python 3.11: install it, or call make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY)   ## train a teacher on handwritten digits, compress it for this machine, open out/demo/report.html
	$(BIN)/edgekd demo

test: $(READY)   ## the whole test suite without the slow marks, with the linters and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd runtime && $(abspath $(BIN))/mypy
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(READY)   ## the slow tests alone
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy
	cd runtime && $(abspath $(BIN))/mypy

schemas: $(READY)   ## the JSON Schemas of recipes and cards, after a change of their fields
	$(BIN)/python -c "from pathlib import Path; from edgekd.pipeline.schemas import write_schemas; write_schemas(Path('docs/schemas'))"

clean:
	rm -rf $(VENV) .edgekd .cache out .mypy_cache .ruff_cache .pytest_cache build *.egg-info
