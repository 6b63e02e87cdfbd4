"""Figures 7 to 12: a row of frames for each video of a task, with the given ones marked."""

import sys
from pathlib import Path

from pusa.figures.strips import plot_strips

sys.stderr = Path(snakemake.log[0]).open("w")
params = snakemake.params
videos = [Path(file) for file in params.videos]
plot_strips(videos, Path(snakemake.output.picture), title=params.title, note=params.note)
