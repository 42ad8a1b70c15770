# Every target works alone on a machine that has only Python (3.10 or newer) and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup test test-all coverage fuzz mutation demo bench check clean

setup: .venv/ready

# Made again when a dependency or what is compiled changes.
.venv/ready: pyproject.toml constraints.txt hatch_build.py $(wildcard src/meldkit/kernels/*.[ch])
	$(PYTHON) -m venv .venv
	@echo "installing into .venv (a few minutes the first time)"
	@$(BIN)/pip install -qq --no-compile --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@# On all processors, which pip does on one. Some files are of other versions of Python.
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	touch $@

test: setup
	$(BIN)/python -m pytest -n auto

test-all: setup
	$(BIN)/python -m pytest -n auto -m ""

# Lines and branches that the tests run, for docs/reliability.md; fails under 90 %.
coverage: setup
	$(BIN)/python scripts/reliability_coverage.py
	$(BIN)/python scripts/reliability.py

# Minutes in all: make fuzz MINUTES=60
MINUTES ?= 10
fuzz: setup
	$(BIN)/python scripts/fuzz.py --minutes $(MINUTES)

# An hour or two: make mutation ARGS="--area journal"
mutation: setup
	$(BIN)/python scripts/mutation.py $(ARGS)

demo: setup
	$(BIN)/python examples/demo.py

# Hours, and 75 GB of disk. Parts of it: see benchmarks/bench.py.
bench: setup
	$(BIN)/python benchmarks/bench.py

check: setup
	scripts/check

clean:
	rm -rf .venv .cache build dist
