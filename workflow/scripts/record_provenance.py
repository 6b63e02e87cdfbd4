"""Where the tables' numbers come from."""

import sys
from pathlib import Path

import pandas as pd

from pusa.report.provenance import collect_provenance, write_provenance

sys.stderr = Path(snakemake.log[0]).open("w")
files = snakemake.input
record = collect_provenance(
    snakemake.params.config,
    negative_prompt=snakemake.params.negative_prompt,
    repository=snakemake.scriptdir,
    downloads=[Path(file) for file in files.downloads],
    benchmarks=snakemake.params.benchmarks,
    runs=[Path(file).parent for file in files.runs],
    manifests=[Path(file) for file in files.manifests],
    scores=[Path(file).with_suffix(".json") for file in files.scores],
)
write_provenance(record, pd.read_csv(files.costs), Path(snakemake.output.html))
