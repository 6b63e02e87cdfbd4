"""Figure 5: relative change of parameters, from the files of `pusa drift`."""

import sys
from pathlib import Path

from pusa.figures.analysis import plot_drift

sys.stderr = Path(snakemake.log[0]).open("w")
files = [Path(file) for file in snakemake.input.tables]
plot_drift(files, Path(snakemake.output.picture), note=snakemake.params.note)
