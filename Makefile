# make demo   the flagship experiment on real data, from a bare checkout
# make test   ruff, mypy, all tests, doctests and README snippets
# make check  ruff and mypy only        make test-slow  the long tests and the examples      make bench  the benchmarks
# make docs   the site: these pages, the gallery, a reference made from the docstrings
# make gpu    on a machine with a GPU: the tests that need one, then benchmarks/gpu.py; GPU_PYTHON=python3 takes another interpreter
# make papers  published numbers against ours (docs/papers.md): about 5 minutes on two idle cores, benchmarks/results/papers.json
# make test-versions  the fast tests on the lowest and the newest dependencies (docs/versions.md); 5 to 6 GB each in VERSIONS
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt
WORKERS ?= 2
# one thread a worker; bytecode is kept: rewriting the tests' asserts takes each worker as long as collecting them
TESTED := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
VERSIONS ?= /tmp/spectral-versions
LOWEST_PYTHON ?= python3.10
NEWEST_PYTHON ?= python3.14
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU_SECONDS ?= 270
RESULTS ?= benchmarks/results
BENCHMARKS := product_cost short_runs model_table accuracy time_to_accuracy

.PHONY: demo test check test-slow test-versions test-lowest test-newest docs bench papers gpu clean
demo: $(VENV)/.demo
	$(BIN)/spectral

test: check
	$(TESTED) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

test-versions: test-lowest test-newest

test-lowest test-newest: test-%: $(VERSIONS)/%/.built
	$(TESTED) $(VERSIONS)/$*/bin/python -m pytest -n $(WORKERS) --dist worksteal -p no:cacheprovider

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -W --keep-going -E -b html docs build/docs
	@echo "the documentation: $(CURDIR)/build/docs/index.html"

bench: $(VENV)/.dev
	for script in $(wildcard $(BENCHMARKS:%=benchmarks/%.py)); do $(BIN)/python $$script || exit 1; done

papers: $(VENV)/.demo
	$(BIN)/python benchmarks/papers.py --json $(RESULTS)/papers.json --html $(RESULTS)/papers.html

# nothing is installed: the interpreter has a torch that sees the card, numpy, scipy, tqdm, safetensors, jinja2, matplotlib and pytest
gpu:
	@$(GPU_PYTHON) -c 'import torch; torch.cuda.is_available() or exit("make gpu needs a GPU that torch can see; $(GPU_PYTHON) has torch " + torch.__version__ + " and sees none.")'
	PYTHONPATH=$(CURDIR):$$PYTHONPATH timeout -s INT 200 $(GPU_PYTHON) -m pytest -m gpu -p no:cacheprovider --durations=5 $$(grep -l 'mark\.gpu' tests/*.py); \
	  tests=$$?; PYTHONPATH=$(CURDIR):$$PYTHONPATH $(GPU_PYTHON) benchmarks/gpu.py --seconds $(GPU_SECONDS) --out $(RESULTS) && exit $$tests

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "spectral needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml constraints.txt
	@echo "installing spectral and its examples into $(VENV) ..."
	$(PIP) -e '.[examples]'
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -e '.[examples,dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.python pyproject.toml constraints.txt
	@echo "installing spectral and sphinx into $(VENV) ..."
	$(PIP) -e '.[docs]'
	touch $@

# PIP_CONSTRAINT, not -c: a set is what its file says, whatever constraint pip is configured to have
$(VERSIONS)/lowest/.built: INTERPRETER = $(LOWEST_PYTHON)
$(VERSIONS)/newest/.built: INTERPRETER = $(NEWEST_PYTHON)
$(VERSIONS)/%/.built: constraints-%.txt pyproject.toml
	@$(INTERPRETER) -c '' || { echo "$(INTERPRETER) does not run; name one by LOWEST_PYTHON= or NEWEST_PYTHON=" >&2; exit 1; }
	$(INTERPRETER) -m venv $(@D)
	@echo "installing the $* dependencies into $(@D) ..."
	PIP_CONSTRAINT=$< $(@D)/bin/python -m pip --disable-pip-version-check install -qq -e '.[examples,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache
