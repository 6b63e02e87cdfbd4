# make demo: the whole workflow on the embedded model. make test: the tests, minutes; make test-all:
# those that take long too.
# Everything runs in .venv, made from the pinned envs/requirements.txt. make vbench: VBench's own
# environment, 6.4 GB in .venv-vbench; make test-vbench: its tests.
PYTHON ?= python3.11
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
VENV := .venv
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"; export PATH;
DEMO := --configfile config/demo.yaml
MINIATURE := --configfile config/miniature.yaml
# Each stands alone, but for the overlay, which is laid over the paper's.
OVERLAY := config/480p.yaml
CONFIGS := $(filter-out config/claims.yaml $(OVERLAY),$(wildcard config/*.yaml))
PYTEST := -n $(CORES) --dist loadfile
FLAGS := --cores $(CORES) --rerun-incomplete --show-failed-logs
UNLOCK := snakemake --quiet all --unlock
OUT := results/demo
STUDY := results/miniature

.PHONY: demo test test-all effects check vbench test-vbench

# A killed run leaves Snakemake's lock behind, so it is taken away, unless a Snakemake is at work
# here. The report is made again when anything in it is newer.
demo: $(VENV)/installed
	@$(RUN) $(UNLOCK) $(DEMO) && snakemake $(FLAGS) $(DEMO) && \
	 if [ ! -f $(OUT)/report.html ] || [ -n "$$(find $(OUT)/tables $(OUT)/figures $(OUT)/effects \
	   -newer $(OUT)/report.html)" ]; \
	 then snakemake --cores 1 $(DEMO) --report $(OUT)/report-unfinished.html && \
	   mv $(OUT)/report-unfinished.html $(OUT)/report.html; fi && \
	 printf '\n%s\n' "Report:        $(OUT)/report.html" \
	   "Overview:      $(OUT)/tables/overview.md" \
	   "Gallery:       $(OUT)/gallery/index.html" \
	   "Tables:        $(OUT)/tables/table1.md and table2.md" \
	   "Claims, audit: $(OUT)/tables/claims.md and audit.md" \
	   "Effects:       $(OUT)/effects/tables.md" \
	   "Contact sheet: $(OUT)/figures/contact_sheet.png"

test: $(VENV)/installed
	$(RUN) python -m pytest $(PYTEST) -m "not slow" --durations=10

# What waits for Slurm, kills trainings, runs the documentation or drives a browser, too. Tests that
# wait most of their time go first.
test-all: $(VENV)/installed
	$(RUN) python -m pytest $(PYTEST) --no-loadscope-reorder --durations=10

vbench: $(VENV)-vbench/installed

# The tests of the real VBench code, on stand-in networks; make test skips them without it.
test-vbench: $(VENV)/installed $(VENV)-vbench/installed
	$(RUN) python -m pytest tests/score/test_vbench.py

# The study at the paper's own counts on the embedded model, hours; what it shows goes into docs.
effects: $(VENV)/installed
	$(RUN) $(UNLOCK) $(MINIATURE) && snakemake $(FLAGS) all effects $(MINIATURE)
	mkdir -p docs/miniature
	cp $(STUDY)/effects/effects.md $(STUDY)/tables/overview.md $(STUDY)/tables/table?.md \
	  $(STUDY)/tables/claims.md $(STUDY)/figures/*.png docs/miniature

check: $(VENV)/installed
	$(RUN) ruff check . && ruff format --check . && snakefmt --check Snakefile workflow && \
	  for config in $(CONFIGS) "config/config.yaml $(OVERLAY)"; do snakemake --lint --configfile $$config && \
	    snakemake --dry-run --quiet all --configfile $$config || exit 1; done

$(VENV)/installed: envs/requirements.txt pyproject.toml
	$(call install,$(VENV),$<)

$(VENV)-vbench/installed: envs/vbench-requirements.txt pyproject.toml
	$(call install,$(VENV)-vbench,$<)

define install
$(PYTHON) -m venv $(1)
$(1)/bin/pip install --quiet --disable-pip-version-check -r $(2)
$(1)/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
touch $@
endef
