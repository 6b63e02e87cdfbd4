"""What would decide the paper's claims."""

import sys
from pathlib import Path

from pusa.config import read_config
from pusa.layout import read_layout
from pusa.report.price import price_claims, write_prices

sys.stderr = Path(snakemake.log[0]).open("w")
params = snakemake.params
home = Path(snakemake.scriptdir).parents[1]
layout = read_layout(read_config(params.config), home=home)
prices = price_claims(layout)
scorer = layout.config.score.scorer
write_prices(prices, scorer, Path(snakemake.output.html), params.caption)
