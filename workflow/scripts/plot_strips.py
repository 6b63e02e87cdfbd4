"""Figures 7 to 12: each video of a task under the true clip, with the given frames marked."""

import sys
from pathlib import Path

from pusa.figures.strips import plot_strips

sys.stderr = Path(snakemake.log[0]).open("w")
params = snakemake.params
videos = [Path(file) for file in params.videos]
plot_strips(
    videos,
    Path(snakemake.output.picture),
    title=params.title,
    dataset=Path(snakemake.input.dataset).parent,
    note=params.note,
)
