# make repro: runs the whole pipeline.   make test: runs all checks and tests.   make base: trains the embedded base from scratch (hours).
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)

.PHONY: repro test base
repro: .venv/installed
	@echo "Running the pipeline: fetch, encode, train, evaluate (to resume a stopped run, type dvc repro)"
	dvc repro
	@echo
	@echo "The model:       data/model (StableDiffusionPipeline.from_pretrained loads it)"
	@echo "The report:      data/reports/report.html (open it in a browser)"
	@echo "Draw:            .venv/bin/t2i sample \"red heart\" --compare"

test: .venv/installed-test
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	pytest

base: .venv/installed
	cd base/recipe && dvc repro
	rm -rf base/openmoji
	cp -rL base/recipe/data/openmoji base/openmoji
	chmod -R u+w base/openmoji

.venv/installed: requirements.txt pyproject.toml
	@echo "Installing the pinned packages into .venv (2 GB on disk, some minutes; pip names each package below)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

.venv/installed-test: .venv/installed requirements-test.txt
	@echo "Installing the packages that the tests need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-test.txt
	@touch $@
