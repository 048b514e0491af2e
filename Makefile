# make demo: the whole way on public data. make test: the tests. Both set up .venv first, once per pyproject.toml.

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
STAMP := .venv/.installed
ROOMS := train optimize runtime benchmarks

.PHONY: setup demo test lint check clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/edgefuse demo

# A file's tests share what they train, so a file stays in one process.
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# mypy finds a package by its folder, so it is shown the four folders under the name that they are installed as.
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/mypy/edgefuse
	ln -sfn $(ROOMS:%=$(CURDIR)/%) build/mypy/edgefuse/
	cd build/mypy && $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p edgefuse

check: lint test

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find $(ROOMS) tests -name __pycache__ -type d -prune -exec rm -rf {} +
