"""The main setting's videos side by side: frames, and a video."""

import sys
from pathlib import Path

from pusa.data.suite import read_suite
from pusa.figures.strips import make_contact_sheet

sys.stderr = Path(snakemake.log[0]).open("w")
params = snakemake.params
prompts = read_suite(params.suite, height=params.height, width=params.width, counts=params.counts)
make_contact_sheet(prompts, params.title, Path(params.videos), Path(snakemake.output.picture))
