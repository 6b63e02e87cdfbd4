"""What the run took: hours, GPU-hours and cost of every stage."""

import sys
from pathlib import Path

from pusa.report.costs import measure_costs

sys.stderr = Path(snakemake.log[0]).open("w")
params = snakemake.params
table = measure_costs(
    params.benchmarks,
    [Path(run) for run in params.runs],
    gpus=params.gpus,
    main_run=params.main_run,
    usd_per_gpu_hour=params.usd_per_gpu_hour,
)
table.to_csv(snakemake.output[0], index=False)
