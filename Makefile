# make env | check | test | interop | quickstart | gpu | docs | clean.    PYTHON=/path/to/python3.12 picks the interpreter.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help env style types arrows check test interop quickstart gpu docs clean

VENV := .venv
INTEROP := .venv-interop
STAMP := $(VENV)/.installed
PYTHON ?=

help:
	@echo "make env         .venv/ with everything (Python 3.11 or 3.12; about 5.5 GB)"
	@echo "make check       style, arrows and unit tests: before every commit"
	@echo "make test        make check and the slow tests, on the CPU: before a pull request"
	@echo "make types       mypy on what others call (not clean yet)"
	@echo "make interop     exported models in their consumers: trackers, OpenVINO, OpenCV (.venv-interop/, 0.5 GB)"
	@echo "make quickstart  train and evaluate all stages on drawn pedestrians"
	@echo "make gpu         check and measure everything on a GPU, ten minutes; results in build/gpu_check"
	@echo "make docs        build/docs/index.html: guides, every key, every command, the API"
	@echo "make clean       remove build products; .venv/, outputs and data stay"

env: $(STAMP)

# Every candidate is run before it is believed: a pyenv shim answers to its name and then fails, and some system
# Pythons come without venv.
$(STAMP): requirements.txt requirements-test.txt setup.py pyproject.toml projects/SAGA/sagareid/evaluation/cython_ranking.py
	@set -e; \
	if ! $(VENV)/bin/python -m pip --version >/dev/null 2>&1; then \
	  for python in $(or $(PYTHON),$$(type -ap python3.11 python3.12 python3 python)); do \
	    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
	         >/dev/null 2>&1; then found="$$python"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "No usable Python 3.11 or 3.12 (with the venv module) $(if $(PYTHON),at $(PYTHON),on PATH)." \
	         "Install one, or name it: make env PYTHON=/path/to/python3.12" >&2; exit 1; \
	  fi; \
	  echo "Using $$found"; "$$found" -m venv $(VENV); \
	fi
	$(VENV)/bin/python -m pip install --disable-pip-version-check -r requirements.txt -r requirements-test.txt
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-deps fastreid==1.4.0
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# One thread each is steady where two on a busy machine can stall at every barrier. The tests of a file stay with one
# worker of pytest-xdist, so that its fixtures are made once; what several files need is shared between workers.
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests -n 2 --dist loadfile

style: env
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

types: env
	$(VENV)/bin/mypy

arrows: env
	$(VENV)/bin/lint-imports

check: style arrows
	$(PYTEST) -m "not slow"

test: style arrows
	$(PYTEST)

# Consumers have an environment of their own, since some install packages by themselves. PyTorch and the rest of .venv are
# borrowed by a path file, which reads them and writes nothing there.
$(INTEROP)/.installed: requirements-interop.txt $(STAMP)
	rm -rf $(INTEROP)
	$(VENV)/bin/python -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install --disable-pip-version-check --no-deps -r requirements-interop.txt
	folder=$$($(INTEROP)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	$(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$folder/borrowed.pth; \
	echo "$(CURDIR)/projects/SAGA" >> $$folder/borrowed.pth
	@touch $@

interop: $(INTEROP)/.installed
	PYTHONDONTWRITEBYTECODE=1 $(INTEROP)/bin/python -m pytest tests/interop -rs

quickstart: env
	$(VENV)/bin/python tools/train_net.py --config-file configs/SAGA/quickstart.yml --resume
	$(VENV)/bin/python tools/visualize.py logs/SAGA/quickstart/anchors
	$(VENV)/bin/python tools/report.py logs/SAGA/quickstart

gpu: env
	$(VENV)/bin/python tools/gpu_check.py -o build/gpu_check

# -E: all pages anew, since they are made from sources that Sphinx does not watch
docs: env
	$(VENV)/bin/python -m sphinx -q -E -W --keep-going -d build/doctrees docs build/docs

clean:
	rm -rf $(STAMP) build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache projects/SAGA/*.egg-info projects/SAGA/sagareid/evaluation/ranking_*
	find projects tests tools docs -name __pycache__ -type d -prune -exec rm -rf {} +
