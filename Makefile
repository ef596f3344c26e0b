# What one does daily. `make PYTHON=python3.12 install` chooses another interpreter.
PYTHON ?= python3
BIN := .venv/bin/

.PHONY: install check test fast docs site bench

install:  ## a virtual environment with all that the tests need
	$(PYTHON) -m venv .venv
	$(BIN)pip install -e '.[test]'

check:  ## lint, format, types
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)mypy

test:  ## the whole suite
	$(BIN)pytest -n auto

fast:  ## the tests that changed, and those of structure
	$(BIN)pytest tests/test_floors.py tests/test_docs.py \
	  $$(git diff --name-only --diff-filter=d HEAD -- 'tests/test_*.py') \
	  $$(git ls-files -o --exclude-standard -- 'tests/test_*.py')

docs:  ## the pages that are generated from the tables and from docs/lecture
	$(BIN)python -m netdsl.insight.reference > docs/reference.md.new && mv docs/reference.md.new docs/reference.md
	$(BIN)python -m netdsl.insight.ebnf > grammar/netdsl.ebnf.new && mv grammar/netdsl.ebnf.new grammar/netdsl.ebnf
	$(BIN)python -m docs.tools.lecture page > docs/lecture.md.new && mv docs/lecture.md.new docs/lecture.md

site:  ## the documentation as a site, in site/
	$(BIN)python -m docs.tools.site build -o site

bench:  ## the CPU engine beside PyTorch and onnxruntime
	$(BIN)python benchmarks/cpu.py
