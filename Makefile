# `make reproduce` and `make test` are all a newcomer needs; each installs what it needs into .venv by itself.
STUDY ?= $(shell sed -n 's/^study: *//p' config/config.yaml)
CORES ?= all
FIGURES := $(if $(filter mini full,$(STUDY)),figures,figures/$(STUDY))
REPORT := $(if $(filter mini full,$(STUDY)),report.html,report-$(STUDY).html)
KILLS ?= 30
BIN := .venv/bin
STAMP := .venv/.installed
SITE := site
DOCTREES := build/doctrees
# Only these studies fetch anything; without this Hugging Face may look on its hub for newer versions of local models.
HUB_STUDIES := paper long modern
export HF_HUB_OFFLINE ?= $(if $(filter $(HUB_STUDIES),$(STUDY)),0,1)
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help install reproduce test torture lint docs track clean

help:
	@echo "make install     what the others do first by themselves: install into .venv"
	@echo "make reproduce   run the $(STUDY) study and draw its figures (STUDY=smoke for a few minutes' worth, CORES=n)"
	@echo "make test        every test, lint and format check"
	@echo "make torture     kill the smoke study again and again, compare, and write docs/reliability.md (KILLS=30, SEED=n)"
	@echo "make docs        the documentation as a site, in $(SITE)/index.html"
	@echo "make track       put the finished study's stream results under DVC (STUDY=..., pushed where there is a remote)"
	@echo "make clean       remove results, logs, the report and the site; .venv, figures and DVC's cache stay"

$(STAMP): pyproject.toml constraints.txt
	@python=$$(sh scripts/find_python.sh "$(PYTHON)") || exit 1; \
	echo "Installing into .venv with $$($$python --version), a few minutes, once ..."; \
	$$python -m venv .venv || { echo "make: $$python cannot make a virtual environment; install its venv package" >&2; exit 1; }
	@$(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null || true # pip would do so on one core; some files are not for this Python
	@touch $@

install: $(STAMP)

reproduce: $(STAMP)
	@$(BIN)/snakemake --cores $(CORES) --config study=$(STUDY)
	@echo "Figures and tables: $(CURDIR)/$(FIGURES)"
	@echo "Report:             $(CURDIR)/$(REPORT)"

test: $(STAMP) lint
	@sh tests/slurm/install.sh || true
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 25

torture: $(STAMP)
	@cd tests && PYTHONPATH=../src ../$(BIN)/python -m torture --kills $(KILLS) $(if $(SEED),--seed $(SEED))

lint: $(STAMP)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/snakefmt --check Snakefile workflow
	@$(BIN)/snakemake --lint

docs: $(STAMP)
	@$(BIN)/sphinx-build -W --keep-going -q -d $(DOCTREES) docs $(SITE)
	@echo "Documentation:      $(CURDIR)/$(SITE)/index.html"

track: $(STAMP)
	@$(BIN)/python scripts/track_streams.py $(STUDY)

clean:
	rm -rf results logs report*.html .snakemake site build/doctrees
