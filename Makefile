# make demo: the whole workflow on the embedded model. make test: all tests.
# Everything runs in .venv, made from the pinned envs/requirements.txt.
PYTHON ?= python3.11
CORES ?= 2
VENV := .venv
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
DEMO := --configfile config/demo.yaml
OUT := results/demo

.PHONY: demo test effects check clean

demo: $(VENV)/installed
	@if [ -f .demo.pid ] && kill -0 "$$(cat .demo.pid)" 2>/dev/null; then \
	  echo "make demo is running already (process $$(cat .demo.pid))"; exit 1; fi
	@echo $$$$ > .demo.pid; trap 'rm -f .demo.pid' EXIT; $(RUN); export PATH; \
	 snakemake $(DEMO) --unlock --quiet all 2>/dev/null; \
	 snakemake --cores $(CORES) $(DEMO) --rerun-incomplete && \
	 if [ -n "$$(find $(OUT) -newer $(OUT)/report.html -path '*/figures/*' 2>/dev/null)" ] || \
	    [ ! -f $(OUT)/report.html ]; then \
	   snakemake --cores 1 $(DEMO) --report $(OUT)/report.html; fi && \
	 printf '\n%s\n' "Report:        $(OUT)/report.html" \
	   "Tables:        $(OUT)/tables/table1.md and table2.md" \
	   "Effects:       $(OUT)/effects/tables.md" \
	   "Contact sheet: $(OUT)/figures/contact_sheet.png"

test: $(VENV)/installed
	$(RUN) python -m pytest

effects: $(VENV)/installed
	$(RUN) snakemake --cores $(CORES) $(DEMO) --rerun-incomplete effects

check: $(VENV)/installed
	$(RUN); export PATH; ruff check . && ruff format --check . && snakefmt --check Snakefile workflow && \
	  snakemake --lint $(DEMO) && snakemake --cores 1 --dry-run --quiet

$(VENV)/installed: envs/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r envs/requirements.txt
	touch $@
