# The promise of the README: each target does all its own set-up.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt hatch_build.py src/medcontext/viewer/niivue.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "medcontext needs Python 3.11 or newer; found $$($(PYTHON) --version). Try: make PYTHON=python3.11 install"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	$(BIN)/medcontext demo --out demo --replace

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --cov

clean:
	rm -rf .venv demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
