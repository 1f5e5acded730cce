PYTHON ?= python3
STEPS ?= full

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-distributed test-slow test-tokenizer test-transformers lint install clean

demo: install  ## The whole pipeline on Chinese reviews; STEPS=smoke for a quick look.
	$(BIN)/python recipes/demo/run.py --steps $(STEPS)

# Two files of tests at a time, each on one thread; what launches several processes runs one after the other.
SIDE_BY_SIDE := --numprocesses 2 --dist loadgroup --no-loadscope-reorder

test: install  ## All tests but those that take minutes; no GPU, no network.
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-tokenizer: install  ## The tokenizer against jieba itself on all reviews and 200,000 random texts, on both engines.
	$(BIN)/python -m pytest tests/gptpangu/test_official_ids.py -m ''

test-slow: install  ## The tests that `make test` leaves out because they take minutes.
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m slow

# The common tests that transformers runs on its own models, taken from the source distribution of the version we pin.
# That one lacks the generation and export tests; TRANSFORMERS_SOURCE=<checkout of the same version> has them as well.
TRANSFORMERS_VERSION := $(shell sed -n 's/^transformers==//p' constraints.txt)
TRANSFORMERS := .cache/transformers-$(TRANSFORMERS_VERSION)
TRANSFORMERS_SOURCE ?= $(TRANSFORMERS)

test-transformers: install $(TRANSFORMERS_SOURCE)/tests/__init__.py  ## transformers' own model tests, on GPTPangu.
	$(PIP) parameterized==0.9.0
	TRANSFORMERS_SOURCE=$(TRANSFORMERS_SOURCE) $(BIN)/python -m pytest tests/transformers_common \
	  --override-ini addopts= -rs -W ignore::pytest.PytestUnknownMarkWarning

$(TRANSFORMERS)/tests/__init__.py: | $(VENV)/.installed
	$(BIN)/pip download --quiet --no-binary :all: --no-deps --dest .cache transformers==$(TRANSFORMERS_VERSION)
	tar -xzf $(TRANSFORMERS).tar.gz -C .cache transformers-$(TRANSFORMERS_VERSION)/tests
	touch $@

test-distributed: install  ## Every stage on two CPU processes under DDP, ZeRO-1 to 3, offloading and FSDP2; faults; two nodes.
	$(BIN)/python -m pytest tests/distributed -m ''

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
	$(PIP) --editable '.[demo,dev,fast]'
	$(PIP) --no-deps pcl-pangu==1.2.6.2
	touch $@

clean:
	rm -rf $(VENV)
