# run, test, lint: the three commands. Each makes .venv first if it is not there or is out of date.
# soak: SQLite in use for MINUTES.

PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
MINUTES ?= 1

.PHONY: run test lint soak

run: $(VENV)/run.stamp
	$(VENV)/bin/uvicorn app:app --port $(PORT) --timeout-graceful-shutdown 10

test: $(VENV)/dev.stamp
	$(VENV)/bin/pytest

lint: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy .

soak: $(VENV)/dev.stamp
	PYTHONPATH=.:tests $(VENV)/bin/python tests/soak.py $(MINUTES)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Roster needs Python 3.11 or later, this is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/dev.stamp: requirements.txt requirements-dev.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@ $(VENV)/run.stamp
