# Everything runs from .venv, which the first command that needs it makes.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
DEMO := $(BIN)/python -m bayespare fit data=digits net=mlp:400,400 method=ss-ghs project=runs name=demo exist_ok=true threads=1

.PHONY: demo test lint exact bench fuzz docs clean

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP) ## shrink a real network on bundled data and write the report
	$(DEMO)

lint: $(STAMP) ## format, lint and types
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini

test: lint ## lint, then all tests
	$(BIN)/python -m pytest -n 2

exact: $(STAMP) ## compact equals masked on 2,000 random networks; a quarter of an hour
	BAYESPARE_EXAMPLES=2000 $(BIN)/python -m pytest tests/structure/test_structure_random.py

bench: $(STAMP) ## the published comparisons; hours, resumable (BAYESPARE_DATA names the data)
	$(BIN)/python benchmarks/all.py

fuzz: $(STAMP) ## a coverage-guided fuzzer on every file that is read, a minute each
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python benchmarks/fuzz.py

docs: $(STAMP) ## docs/ from the committed results and structures, the README's example from a demo
	$(DEMO) 2>/dev/null > docs/demo.txt
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/structures.py

clean: ## remove what was made here, but no run
	rm -rf .venv build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
