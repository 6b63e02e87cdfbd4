"""Figure 3: the same image and prompt through base with VTA, Wan-I2V, and adapted model."""

import sys
from pathlib import Path

from pusa.data.suite import first_subjects, read_suite
from pusa.figures.strips import plot_figure3

sys.stderr = Path(snakemake.log[0]).open("w")
params, suite = snakemake.params, Path(snakemake.input.suite).parent
size = {"height": params.height, "width": params.width}
references = suite / "reference"
plot_figure3(
    first_subjects(read_suite(suite, **size, counts=params.counts)),
    {model: Path(folder) for model, folder in params.models.items()},
    Path(snakemake.output.picture),
    **size,
    references=references if references.is_dir() else None,
    note=params.note,
)
