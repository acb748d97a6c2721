# make demo   set up and run the main job on real data
# make test   set up and run the tests (under 15 minutes on two cores)
# make lint   formatting, lint, types
# make bench  the benchmarks, each against a named floor in the same run
# make power  what diagnosis finds and repair mends: planted faults and real ones (some hours)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/pytest -n 2 --dist loadfile

.PHONY: demo test test-all lint format bench power docs clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/trueport demo

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-all: $(STAMP)
	$(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

power: $(STAMP)
	$(BIN)/python benchmarks/power.py --limit 4
	$(BIN)/python benchmarks/real_cases.py
	$(BIN)/python benchmarks/repair_power.py --limit 4
	$(BIN)/python benchmarks/repair_cases.py

docs: $(STAMP)
	$(BIN)/python scripts/docs.py

clean:
	rm -rf $(VENV) demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
