"""The paper's effects, measured on a study."""

import sys
from pathlib import Path

from pusa.report.effects import measure_effects, validation_losses, write_effects
from pusa.report.study import read_study

sys.stderr = Path(snakemake.log[0]).open("w")
params = snakemake.params
study = read_study(**params.study, effect_seeds=params.seeds)
losses = validation_losses(study, Path(params.runs))
write_effects(measure_effects(study), losses, Path(snakemake.output.html), params.caption)
