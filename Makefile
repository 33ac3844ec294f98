# `make help` lists the targets. Everything is installed in .venv; nothing has to be done first.

# The first of these that is new enough makes the virtual environment; give another with PYTHON=...
PYTHON ?= python3 python3.13 python3.12 python3.11
# Arguments of pytest, for example: make test ARGS="-k archive -x"
ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PIP := $(RUN) -m pip install --disable-pip-version-check --quiet -c constraints.txt

# One thread for every process: two that share a busy core are many times slower than one alone.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export TF_NUM_INTRAOP_THREADS ?= 1
export TF_NUM_INTEROP_THREADS ?= 1
export TF_CPP_MIN_LOG_LEVEL ?= 2
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all lint format wheel-check bench install clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) ## package a small network for four frameworks, run and verify each, compress it
	$(RUN) examples/demo.py

test: $(STAMP) ## run the tests that are not marked slow
	$(RUN) -P -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

test-all: $(STAMP) ## run every test
	$(RUN) -P -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(STAMP) ## ruff (rules and format) and mypy
	@mkdir -p $(VENV)/mypy && ln -sfn ../.. $(VENV)/mypy/ingot
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	MYPYPATH=$(VENV)/mypy $(RUN) -m mypy -p ingot

format: $(STAMP) ## let ruff mend what it can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

wheel-check: $(STAMP) ## build the wheel and try it in an environment without any framework
	$(RUN) .ci/check_wheel.py

bench: $(STAMP) ## run every benchmark
	@for file in benchmarks/bench_*.py; do \
		[ -e "$$file" ] || { echo "there is no benchmark yet"; break; }; \
		echo "== $$file"; \
		$(RUN) "$$file" || exit 1; \
	done

install: $(STAMP) ## make .venv (the other targets do it when it is needed)

clean: ## remove .venv and everything that the targets made
	rm -rf $(VENV) build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp comes last: an interrupted installation is taken up again by the next make.
# PyTorch comes first, alone: what depends on it must find the pinned one, not fetch a newer.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@rm -f $@
	@PYTHON="$(PYTHON)" sh .ci/make_venv.sh $(VENV)
	@echo "installing PyTorch (a large download) ..."
	@$(PIP) torch
	@echo "installing Ingot with every framework and the tools for tests ..."
	@$(PIP) -e '.[all,dev]'
	@touch $@
