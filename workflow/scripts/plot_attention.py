"""Figure 4: attention between frames, from the files of `pusa attention`."""

import sys
from pathlib import Path

from pusa.figures.analysis import plot_attention

sys.stderr = Path(snakemake.log[0]).open("w")
files = [Path(file) for file in snakemake.input.tables]
plot_attention(files, Path(snakemake.output.picture), note=snakemake.params.note)
