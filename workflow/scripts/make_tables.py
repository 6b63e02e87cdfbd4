"""Tables 1 and 2, published and ours; a row whose setting has no scores is left empty."""

import sys
from pathlib import Path

import pandas as pd

from pusa.report.costs import describe_costs
from pusa.report.study import read_study
from pusa.report.tables import make_table1, make_table2, read_published, write_table1, write_table2

sys.stderr = Path(snakemake.log[0]).open("w")
study = read_study(**snakemake.params.study)
one = make_table1(study, read_published(snakemake.input.table1))
two = make_table2(study, read_published(snakemake.input.table2))
costs = describe_costs(pd.read_csv(snakemake.input.costs))
write_table1(one, Path(snakemake.output.table1), f"{snakemake.params.caption} {costs}")
write_table2(two, Path(snakemake.output.table2), snakemake.params.caption)
