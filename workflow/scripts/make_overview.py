"""What a run shows, on one page."""

import sys
from pathlib import Path

from pusa.report.overview import read_run, write_overview

sys.stderr = Path(snakemake.log[0]).open("w")
run = read_run(Path(snakemake.params.tables), Path(snakemake.input.effects))
write_overview(run, Path(snakemake.output.html), snakemake.params.caption)
