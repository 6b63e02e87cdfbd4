"""The main setting's videos side by side: frames, and a video."""

import sys
from pathlib import Path

from pusa.data.suite import read_suite
from pusa.figures.strips import make_contact_sheet

sys.stderr = Path(snakemake.log[0]).open("w")
files, params = snakemake.input, snakemake.params
suite = Path(files.suite).parent
prompts = read_suite(suite, height=params.height, width=params.width, counts=params.counts)
videos = Path(files.samples[0]).parent
make_contact_sheet(prompts, params.title, videos, Path(snakemake.output.picture))
