# make env | check | test | interop | matrix | quickstart | gpu | docs | clean.    PYTHON=/path/to/python3.12 picks the interpreter.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help env style types arrows units check test interop matrix quickstart gpu docs clean

VENV := .venv
INTEROP := .venv-interop
STAMP = $(VENV)/.installed
REQUIREMENTS := requirements.txt
PYTHON ?=

help:
	@echo "make env         .venv/ with everything (Python 3.11 to 3.13; about 5.5 GB)"
	@echo "make check       style, types, arrows and the quick tests: before every commit"
	@echo "make test        make check and the slow tests, on the CPU: before a pull request"
	@echo "make interop     exported models in their consumers, galleries in Milvus (.venv-interop/, 0.6 GB)"
	@echo "make matrix      the unit tests on each pair of Python and torch that is claimed (.venv-matrix/, 6 GB a pair)"
	@echo "make quickstart  train and evaluate all stages on drawn pedestrians"
	@echo "make gpu         check and measure everything on a GPU, ten minutes; results in build/gpu_check"
	@echo "make docs        build/docs/index.html: guides, every key, every command, the API"
	@echo "make clean       remove build products; .venv/, outputs and data stay"

env: $(STAMP)

# Every candidate is run before it is believed: a pyenv shim answers to its name and then fails, and some system
# Pythons come without venv.
$(STAMP): $(REQUIREMENTS) requirements-test.txt setup.py pyproject.toml projects/SAGA/sagareid/evaluation/cython_ranking.py
	@set -e; \
	if ! $(VENV)/bin/python -m pip --version >/dev/null 2>&1; then \
	  for python in $(or $(PYTHON),$$(type -ap python3.11 python3.12 python3.13 python3 python)); do \
	    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	         >/dev/null 2>&1; then found="$$python"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "No usable Python 3.11, 3.12 or 3.13 (with the venv module) $(if $(PYTHON),at $(PYTHON),on PATH)." \
	         "Install one, or name it: make env PYTHON=/path/to/python3.12" >&2; exit 1; \
	  fi; \
	  echo "Using $$found"; "$$found" -m venv $(VENV); \
	fi
	$(VENV)/bin/python -m pip install --disable-pip-version-check -r $(REQUIREMENTS) -r requirements-test.txt
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-deps fastreid==1.4.0
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# One thread each is steady where two on a busy machine can stall at every barrier. The tests of a file stay with one
# worker of pytest-xdist, so that its fixtures are made once; what several files need is shared between workers.
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests -n 2 --dist loadfile

style: env
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

# all that others call; .mypy_cache/ makes the next run a matter of seconds
types: env
	$(VENV)/bin/mypy

arrows: env
	$(VENV)/bin/lint-imports

units: env
	$(PYTEST) -m "not slow"

check: style types arrows units

test: style types arrows
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

# Oldest and newest: Python-torch-torchvision. A pair that cannot be installed or fails is told, and the others go on.
MATRIX := 3.11-2.10.0-0.25.0 3.11-2.11.0-0.26.0 3.11-2.14.1-0.29.1 3.12-2.14.1-0.29.1 3.13-2.14.1-0.29.1

matrix:
	@mkdir -p build; failed=0; \
	printf '| Python | torch | torchvision | unit tests |\n|---|---|---|---|\n' > build/matrix.md; \
	for entry in $(MATRIX); do \
	  IFS=- read -r python torch vision <<< $$entry; \
	  sed "s/^torch==.*/torch==$$torch/; s/^torchvision==.*/torchvision==$$vision/" requirements.txt > build/requirements-$$entry.txt; \
	  $(MAKE) units VENV=.venv-matrix/$$entry PYTHON=python$$python REQUIREMENTS=build/requirements-$$entry.txt 2>&1 \
	    | tee build/matrix-$$entry.log; \
	  [ $${PIPESTATUS[0]} = 0 ] || failed=1; \
	  found=$$(grep -E '[0-9]+ (passed|failed|error).* in ' build/matrix-$$entry.log | tail -1 | sed 's/^=* *//; s/ in .*//'); \
	  echo "| $$python | $$torch | $$vision | $${found:-not run: see build/matrix-$$entry.log} |" >> build/matrix.md; \
	done; cat build/matrix.md; exit $$failed

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
