"""Figure 1: quality, data, cost, steps and tasks of Pusa beside Wan-I2V."""

import json
import sys
from pathlib import Path

import pandas as pd

from pusa.clip import split_clips
from pusa.experiments import WAN_I2V, main_setting, read_experiments
from pusa.figures.summary import plot_figure1

sys.stderr = Path(snakemake.log[0]).open("w")
files, params = snakemake.input, snakemake.params
sheet = read_experiments(files.experiments, seed=params.seed)
clips = None  # that were trained on, of those in the cache
if files.cache:
    cached = json.loads(Path(files.cache).read_text())["clips"]
    clips = len(split_clips([clip["caption"] for clip in cached], params.held_out)[0])
plot_figure1(
    pd.read_csv(files.table1),
    pd.read_csv(files.costs),
    Path(snakemake.output.picture),
    main=main_setting(sheet),
    baseline=next((s for s in sheet["setting"] if s.model == WAN_I2V), None),
    clips=clips,
    note=params.note,
)
