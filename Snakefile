# What `snakemake` finds in a checkout; the workflow lies where Snakemake's catalog looks for it.
include: "workflow/Snakefile"


workflow.default_target = "all"  # which an include does not set
