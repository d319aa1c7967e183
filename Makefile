# make demo   sets up .venv and runs the main job
# make test   sets up and runs everything that this machine can run
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check

.PHONY: demo test unit check format constraints clean

demo: $(VENV)/.train
	$(BIN)/seatrial demo

test: check
	@scripts/install-test-tools
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not alone" $(PYTEST_ARGS); beside=$$?; \
	$(BIN)/python -m pytest -m alone $(PYTEST_ARGS); alone=$$?; \
	case $$beside$$alone in 00 | 05 | 50) ;; *) exit 1 ;; esac  # 5: none of the tests asked for is of this kind

# What is quick: style, types, and the tests that start nothing.
unit: check
	$(BIN)/python -m pytest -m "not integration and not gpu" $(PYTEST_ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Seatrial needs Python 3.11 or newer; make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: pyproject.toml constraints.txt $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[train]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[train,lora,images,dev]'
	@touch $@ $(VENV)/.train

# Writes constraints.txt anew from the newest versions that install and pass the tests.
constraints:
	$(PYTHON) -m venv $(VENV)-new
	$(VENV)-new/bin/pip install --quiet 'torch==2.13.0' --editable '.[train,lora,images,dev]'
	$(VENV)-new/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt
	rm -r $(VENV)-new

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
