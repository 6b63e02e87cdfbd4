# Pusa V1.0, reproduced: dataset -> cached latents -> LoRA training -> merged checkpoints ->
# image-to-video samples -> scores -> Tables 1 and 2, figures, report.
from snakemake.utils import min_version

min_version("9.0")


# A file given with --configfile stands alone: it does not inherit from the paper's.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/tiny.smk"


localrules:
    all,
    download,
    train,
    sample,
    score,
    figures,
    effects,
    tiny_wan,


# Intermediate results are asked for too: Snakemake would not make a deleted one again otherwise.
rule all:
    default_target: True
    input:
        FILES.tiny_lists,
        FILES.path("cache/prompts.safetensors"),
        FILES.trained_files("tables"),
        FILES.manifests("tables"),
        FILES.scored("tables"),
        rules.measure_costs.output,
        rules.make_tables.output,
        rules.audit.output,
        rules.claims.output,
        rules.price.output,
        rules.record_provenance.output,
        expand(rules.measure_effects.output, study="tables"),
        FIGURE_FILES,
        rules.make_overview.output,
        expand(rules.gallery_page.output, page=VIDEO_PAGES),
        rules.gallery.output,


rule download:
    input:
        FILES.downloads,


rule train:
    input:
        FILES.trained_files("tables"),


rule sample:
    input:
        FILES.manifests("tables"),


rule score:
    input:
        FILES.score_files("tables"),


rule effects:
    input:
        expand(rules.measure_effects.output, study="effects"),


rule figures:
    input:
        FIGURE_FILES,
