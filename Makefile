PYTHON ?= python3
STEPS ?= full

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow lint install clean

demo: install  ## The whole pipeline on Chinese reviews; STEPS=smoke for a quick look.
	$(BIN)/python recipes/demo/run.py --steps $(STEPS)

test: install  ## All tests that need no GPU and no network.
	$(BIN)/python -m pytest

test-slow: install  ## The tests that `make test` leaves out because they take minutes.
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: $(VENV)/.installed

# torch first and alone: an open range would fetch a CUDA build. pcl-pangu brings the official vocabulary that the
# tests compare with; it asks for an old numpy that nothing here needs.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "pangu_trl needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[demo,dev]'
	$(PIP) --no-deps pcl-pangu==1.2.6.2
	touch $@

clean:
	rm -rf $(VENV)
