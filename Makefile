# make demo    a whole downtime window and hot swaps on a local web host, measured
#              (ports taken? make demo DEMO="--http-port 8081 --ssh-port 2223")
# make fleet   real Debian hosts on this machine, to play with (make fleet HOSTS=3 SUITE=trixie); needs root
# make measure figures: maint-down on 10 hosts beside other tools (make measure MEASURE="flips --help"); needs root
# make test    lint, types and the whole test suite
# make test-all  that, and every case of what the everyday suite has some cases of
# make soak    a million requests while every runtime is swapped without a pause (make soak SOAK="swaps --seed 2");
#              or downtime windows broken at random (make soak SOAK="faults --trials 300 --seed 7")
# make docs    the documents as a site, in build/docs; what is generated from the code is written anew
# make lock    renew requirements/ from pyproject.toml
# make wheel   what `pip install` installs elsewhere
# make clean   remove everything that the others made

# Debian's python3 where it is there: the sandbox's application runs on it as any user.
PYTHON ?= $(shell command -v /usr/bin/python3 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo fleet measure soak test test-all check docs lock wheel clean

demo: sandbox-packages $(VENV)/runs
	@$(BIN)/python -m deploytools.sandbox.demo $(DEMO)

HOSTS ?= 3
SUITE ?= bookworm
fleet: fleet-packages $(VENV)/ready
	@$(BIN)/python -m tests.fleet up $(HOSTS) --suite $(SUITE)

MEASURE ?= switch --hosts 10
measure: test-packages $(VENV)/ready
	@$(BIN)/python -m tests.measure.$(MEASURE)

# It names at its end the errors of docs/messages.md that none provoked; with PYTEST=--messages it fails then.
# Compiled once: where Python is told to write no bytecode, thousands of processes would do it each for itself.
test: test-packages $(VENV)/ready check
	@$(BIN)/python -m compileall -q deploytools remote_scripts tests
	@[ "$$(id -u)" != 0 ] || $(BIN)/python -m tests.fleet images
	@$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST)

test-all:
	@$(MAKE) --no-print-directory test PYTEST="-m 'exhaustive or not exhaustive'"

SOAK ?= swaps
soak: test-packages $(VENV)/ready
	@$(BIN)/python -m tests.measure.$(SOAK)

check: $(VENV)/ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@shellcheck packaging/system-packages .ci/run

docs: $(VENV)/ready
	@$(BIN)/python -m docs.generated
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs build/docs
	@echo "build/docs/index.html"

# What a checkout needs to run, and what its tests and documents need beyond that, which is ten times as much.
$(VENV)/runs: pyproject.toml requirements/checkout.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Python packages come into $(VENV): a minute or so"
	@$(INSTALL) --require-hashes -r requirements/checkout.txt
	@$(INSTALL) --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/ready: $(VENV)/runs requirements/dev.txt
	@$(INSTALL) --require-hashes -r requirements/dev.txt
	@touch $@

.PHONY: sandbox-packages fleet-packages test-packages
sandbox-packages:
	@packaging/system-packages sandbox
fleet-packages:
	@packaging/system-packages fleet
test-packages:
	@packaging/system-packages test

lock:
	@$(PYTHON) -m venv $(VENV)/lock
	@$(VENV)/lock/bin/pip install --quiet uv
	@for extra in checkout dev; do \
	  $(VENV)/lock/bin/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes \
	    --no-emit-index-url --no-emit-find-links --no-header \
	    --extra $$extra -o requirements/$$extra.txt pyproject.toml || exit 1; done

wheel: $(VENV)/ready
	@$(BIN)/python -m build --no-isolation --wheel

clean:
	@if [ -d .sandbox ] && [ -x $(BIN)/fab ]; then $(BIN)/fab sandbox.down; fi
	rm -rf .venv .sandbox build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
