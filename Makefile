# make serve    install what serving needs, start the server on 127.0.0.1:8000
# make test     the whole test suite           make test ARGS="tests/server -x"
# make check    formatting, lint and types
# make train    the shipped adapters once more, into runs/      one of your own: make train ARGS="--name .. --data .."
# make load     one minute of load against a server of its own; the report lands in loadtests/results/
# make docs     the documentation as a site, in build/docs/; nothing is fetched
# make bench    the engine against the bare backbone and its rivals      make bench ARGS="--quick"
#
# The first target to run makes the environment, in .venv. PYTHON names the interpreter, VENV another place.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=

BIN   := $(VENV)/bin
PINS  := pyproject.toml constraints.txt
SERVE := $(VENV)/.installed-serve
ALL   := $(VENV)/.installed-all

.DEFAULT_GOAL := help
.PHONY: help serve test check train load bench docs

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

serve: $(SERVE)
	@exec $(BIN)/python -m server $(ARGS)

test: $(ALL)
	@$(BIN)/python -m pytest $(ARGS)

check: $(ALL)
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy

train: $(ALL)
ifneq ($(strip $(ARGS)),)
	@$(BIN)/python -m adakron train $(ARGS)
else
	@test -n "$$ADAKRON_DATA_DIR" || { echo "make: ADAKRON_DATA_DIR must name the folder of labelled text" >&2; exit 1; }
	@for folder in adapters/*/; do \
		name=$$(basename $$folder); data=$$ADAKRON_DATA_DIR/$$name; \
		if test -f $$folder/task.json; then data=$$folder/task.json; fi; \
		$(BIN)/python -m adakron train --like $$folder --data $$data --out runs/$$name || exit 1; \
	done
endif

load: $(ALL)
	@$(BIN)/python -m loadtests.run $(ARGS)

bench: $(ALL)
	@$(BIN)/python -m loadtests.engine $(ARGS)

docs: $(ALL)
	@$(BIN)/python -m sphinx -q -W --keep-going -b html -c docs . build/docs $(ARGS)
	@echo "build/docs/index.html"

# Both stamps are older than the pins as soon as one of these changes, and the next target installs again.
$(SERVE): $(PINS) | $(BIN)/pip
	@echo "installing the server into $(VENV) (a few minutes, the first time) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[quickstart]'
	@touch $@

$(ALL): $(PINS) | $(BIN)/pip
	@echo "installing the server, training, load test and developer tools into $(VENV) (a few minutes, the first time) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[quickstart,train,load,dev]'
	@touch $(SERVE) $@

# pip is the last thing that `venv` writes: an environment without it was cut short and is made again.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "make: Python 3.11 or newer is needed, and '$(PYTHON)' is not: try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "make: '$(PYTHON)' cannot make environments: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "making a Python environment in $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
