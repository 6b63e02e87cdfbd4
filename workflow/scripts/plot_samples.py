"""Figures 6 and 13: samples of the main setting, of other prompts than Figure 3's."""

import sys
from pathlib import Path

from pusa.data.suite import read_suite
from pusa.figures.strips import other_prompts, plot_strips

sys.stderr = Path(snakemake.log[0]).open("w")
files, params = snakemake.input, snakemake.params
suite = Path(files.suite).parent
prompts = read_suite(suite, height=params.height, width=params.width, counts=params.counts)
plot_strips(
    [Path(files.samples[0]).parent / prompt.video_name(0) for prompt in other_prompts(prompts)],
    Path(snakemake.output.picture),
    title=params.title,
    note=params.note,
)
