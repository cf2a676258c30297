# run, test, lint: the three commands. Each makes .venv first if it is not there or is out of date.
# faults breaks the app and its databases in all ways of tests/faults (make test: in the quick ones).
# test-more runs the suite on Valkey and, with PYTHON=python3.13, on mongoeco, and says what it had.
# bench measures, in a virtual environment of its own; bench-quick fails if speed was lost;
# bench-scale with ten million rows. soak: SQLite in use for MINUTES.

PYTHON ?= python3
VENV ?= .venv
BENCH_VENV ?= .venv-bench
MORE_VENV ?= .venv-more
PORT ?= 8000
MINUTES ?= 1

.PHONY: run test test-quick test-more lint faults bench bench-quick bench-scale soak

run: $(VENV)/run.stamp
	$(VENV)/bin/uvicorn app:app --port $(PORT) --timeout-graceful-shutdown 10

# Without restarts: in a new process, a test that hung would only hang again.
test: $(VENV)/dev.stamp
	$(VENV)/bin/pytest -n auto --max-worker-restart=0

# On SQLite alone, in the process or on one server: what to run after each change. The rest starts
# the app, its commands or a browser again and again.
QUICK := contract errors find hostile idioms models override plans sqlite
test-quick: $(VENV)/dev.stamp
	$(VENV)/bin/pytest -n auto --max-worker-restart=0 tests/engine $(QUICK:%=tests/test_%.py) \
		-k 'not postgresql and not mysql and not mongodb and not redis'

test-more: $(MORE_VENV)/more.stamp
	PYTHONPATH=.:tests $(MORE_VENV)/bin/python tests/more.py

faults: $(VENV)/dev.stamp
	FAULTS=1 $(VENV)/bin/pytest tests/faults -n 2 --max-worker-restart=0 -vv -o faulthandler_timeout=300
	FAULTS=1 $(VENV)/bin/pytest tests --ignore=tests/faults -m full -n 2 --max-worker-restart=0 -vv

lint: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy .
	$(VENV)/bin/python tests/layers.py

soak: $(VENV)/dev.stamp
	PYTHONPATH=.:tests $(VENV)/bin/python tests/soak.py $(MINUTES)

bench: $(BENCH_VENV)/bench.stamp
	$(BENCH_VENV)/bin/python bench/run.py

bench-quick: $(BENCH_VENV)/bench.stamp
	$(BENCH_VENV)/bin/python bench/run.py --quick

bench-scale: $(BENCH_VENV)/bench.stamp
	$(BENCH_VENV)/bin/python bench/scale.py $(SCALE)
	$(BENCH_VENV)/bin/python bench/find.py

$(VENV)/bin/python $(BENCH_VENV)/bin/python $(MORE_VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Roster needs Python 3.11 or later, this is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(@:/bin/python=)

$(VENV)/run.stamp: requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/dev.stamp: requirements.txt requirements-servers.txt requirements-dev.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@ $(VENV)/run.stamp

$(MORE_VENV)/more.stamp: requirements.txt requirements-servers.txt requirements-dev.txt requirements-more.txt | $(MORE_VENV)/bin/python
	$(MORE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-more.txt
	touch $@

$(BENCH_VENV)/bench.stamp: requirements.txt requirements-servers.txt bench/requirements.txt | $(BENCH_VENV)/bin/python
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r bench/requirements.txt
	touch $@
