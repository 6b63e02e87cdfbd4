"""Total scores against alpha, rank, iterations and steps, beside the paper's."""

import sys
from pathlib import Path

from pusa.figures.curves import plot_scores
from pusa.report.study import read_study
from pusa.report.tables import read_published

sys.stderr = Path(snakemake.log[0]).open("w")
study = read_study(**snakemake.params.study)
plot_scores(study, read_published(snakemake.input.table2), Path(snakemake.output.picture))
