# `make reproduce` and `make test` are all a newcomer needs; each installs what it needs into .venv by itself.
STUDY ?= mini
CORES ?= all
BIN := .venv/bin
STAMP := .venv/.installed
# A file, not a symlink to a cache: matplotlib and Hugging Face must never look for anything outside.
export HF_HUB_OFFLINE ?= 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DELETE_ON_ERROR:
.PHONY: help reproduce test lint track clean

help:
	@echo "make reproduce   run the $(STUDY) study and draw its figures (STUDY=smoke for two minutes' worth, CORES=n)"
	@echo "make test        every test, lint and format check"
	@echo "make track       put the finished study's stream results under DVC (STUDY=..., pushed where there is a remote)"
	@echo "make clean       remove results, logs and the report; .venv, figures and DVC's cache stay"

$(STAMP): pyproject.toml constraints.txt
	@python=$$(sh scripts/find_python.sh "$(PYTHON)") || exit 1; \
	echo "Installing into .venv with $$($$python --version), about two minutes, once ..."; \
	$$python -m venv .venv || { echo "make: $$python cannot make a virtual environment; install its venv package" >&2; exit 1; }
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

reproduce: $(STAMP)
	@$(BIN)/snakemake --cores $(CORES) --config study=$(STUDY)
	@$(BIN)/python scripts/report_places.py $(STUDY)

test: $(STAMP) lint
	@$(BIN)/python -m pytest

lint: $(STAMP)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/snakefmt --check Snakefile workflow
	@$(BIN)/snakemake --lint

track: $(STAMP)
	@$(BIN)/python scripts/track_streams.py $(STUDY)

clean:
	rm -rf results logs benchmarks/*.jsonl report.html .snakemake
