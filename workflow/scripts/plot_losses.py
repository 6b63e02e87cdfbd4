"""Training and validation losses of every run."""

import sys
from pathlib import Path

from pusa.figures.curves import plot_losses

sys.stderr = Path(snakemake.log[0]).open("w")
runs = [Path(file).parent for file in snakemake.input.training]
models = snakemake.params.models
plot_losses(dict(zip(runs, models, strict=True)), Path(snakemake.output.picture))
