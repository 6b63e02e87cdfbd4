# make demo: the whole workflow on the embedded model. make test: the tests, minutes; make test-all:
# those that take long too.
# Everything runs in .venv, made from the pinned envs/requirements.txt. make vbench: VBench's own
# environment, 6.4 GB in .venv-vbench; make test-vbench: its tests.
#
# The newest Python that can make an environment; Debian's own cannot without python3-venv.
PYTHONS := python3.13 python3.12 python3.11
VBENCH_PYTHONS := python3.11
able = $(shell $(1) -c 'import ensurepip' >/dev/null 2>&1 && echo $(1))
newest = $(firstword $(foreach python,$(1),$(call able,$(python))))
PYTHON ?= $(call newest,$(PYTHONS))
VBENCH_PYTHON ?= $(call newest,$(VBENCH_PYTHONS))
# TORCH=cpu: PyTorch's own CPU build; TORCH=cu126: its build for older drivers, and so on. PyPI's for
# Linux is for the newest CUDA, whose libraries it brings along.
WHEELS := https://download.pytorch.org/whl
BUILDS := cpu cu126 cu130 cu132
# nproc takes OMP_NUM_THREADS, which many set to 1, for the number of cores.
CORES ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || sysctl -n hw.ncpu)
VENV := .venv
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"; export PATH;
DEMO := --configfile config/demo.yaml
MINIATURE := --configfile config/miniature.yaml
# Each stands alone, but for overlays, which are laid over the paper's.
OVERLAYS := config/480p.yaml config/core.yaml
CONFIGS := $(filter-out config/claims.yaml $(OVERLAYS),$(wildcard config/*.yaml))
# In the order of tests/conftest.py, not that of the number of tests in a file.
PYTEST := -n $(CORES) --dist loadfile --no-loadscope-reorder --durations=10
FLAGS := --cores $(CORES) --rerun-incomplete --show-failed-logs
UNLOCK := snakemake --quiet all --unlock
ifneq ($(TORCH),)
  ifeq ($(findstring :$(TORCH):,:$(subst $() ,:,$(BUILDS)):),)
    $(error TORCH: found $(TORCH), expected one of $(BUILDS), or nothing for PyPI's)
  endif
  ifneq ($(wildcard $(VENV)/installed),)
    ifneq ($(TORCH),$(shell cat $(VENV)/installed))
      $(error TORCH: $(VENV) has another build already; remove it to have $(TORCH))
    endif
  endif
endif
OUT := results/demo
STUDY := results/miniature

.PHONY: demo test test-all effects check vbench test-vbench

# A killed run leaves Snakemake's lock behind, so it is taken away, unless a Snakemake is at work
# here. The report is made again when anything in it is newer.
demo: $(VENV)/installed
	@$(RUN) $(UNLOCK) $(DEMO) && snakemake $(FLAGS) $(DEMO) && \
	 if [ ! -s $(OUT)/report.html ] || [ -n "$$(find $(OUT)/tables $(OUT)/figures $(OUT)/effects \
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
	$(RUN) python -m pytest $(PYTEST) -m "not slow"

# What waits for Slurm, kills trainings, runs the documentation or drives a browser, too.
test-all: $(VENV)/installed
	$(RUN) python -m pytest $(PYTEST)

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
	  hadolint envs/Dockerfile && \
	  for config in $(CONFIGS) $(foreach over,$(OVERLAYS),"config/config.yaml $(over)"); do snakemake --lint --configfile $$config && \
	    snakemake --dry-run --quiet all --configfile $$config || exit 1; done

$(VENV)/installed: envs/requirements.txt pyproject.toml
	$(call install,$(VENV),$<,$(PYTHON),$(PYTHONS))

$(VENV)-vbench/installed: envs/vbench-requirements.txt pyproject.toml
	$(call install,$(VENV)-vbench,$<,$(VBENCH_PYTHON),$(VBENCH_PYTHONS))

PIP := bin/pip install --quiet --disable-pip-version-check

# Folder, requirements, the Python that makes it, and those that were looked for. An environment
# that is there keeps its own Python.
define install
$(if $(3),,$(error looked for $(4), with venv, and found none: apt, brew and `uv python install` have \
  them, or PYTHON=... (VBENCH_PYTHON=...) names one))
[ -x $(1)/bin/python ] || $(3) -m venv --clear $(1)
$(if $(TORCH),$(1)/$(PIP) --no-deps --index-url $(WHEELS)/$(TORCH) $$(grep '^torch==' $(2)))
$(1)/$(PIP) -r $(2)
$(1)/$(PIP) --no-deps -e .
echo $(TORCH) > $@
endef
