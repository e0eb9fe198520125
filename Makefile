# `make train` and `make test` set up .venv when it is missing; nothing else is needed but Python >= 3.11 and pip.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: help train test check clean

help:
	@echo "make train   set up $(VENV) if missing and train the default experiment"
	@echo "make test    set up $(VENV) if missing and run all tests"
	@echo "make check   format, lint, types, import contracts and tests"
	@echo "make clean   remove $(VENV) and caches (outputs/ stays)"

$(VENV)/ready: requirements/lock.txt pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python >= 3.11 is needed, this is {sys.version}"'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements/lock.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

train: $(VENV)/ready
	$(RUN) run.py task=train model=blstm

test: $(VENV)/ready
	$(RUN) -m pytest -n auto

check: $(VENV)/ready
	scripts/check

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
