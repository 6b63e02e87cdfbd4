"""The paper's effects, measured on a study."""

import sys
from pathlib import Path

from pusa.report.claims import read_claims
from pusa.report.effects import (
    compare_models,
    measure_effects,
    validation_losses,
    write_effects,
)
from pusa.report.study import read_study

sys.stderr = Path(snakemake.log[0]).open("w")
params = snakemake.params
study = read_study(**params.study)
effects = measure_effects(read_claims(snakemake.input.claims), study)
models = compare_models(study)
losses = validation_losses(study, Path(params.runs))
write_effects(effects, models, losses, Path(snakemake.output.html), params.caption)
