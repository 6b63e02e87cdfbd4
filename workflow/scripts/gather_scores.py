"""All scores of a setting: every video has every score that the suite asks for."""

import sys
from pathlib import Path

from pusa.data.manifest import check_files, read_manifests
from pusa.data.suite import read_prompts
from pusa.score.files import gather_scores, write_scores

sys.stderr = Path(snakemake.log[0]).open("w")
videos, folder = read_manifests(snakemake.input.manifests)
check_files(videos, folder)
table, record = gather_scores(
    snakemake.input.scores,
    read_prompts(snakemake.params.suite, snakemake.params.counts),
    videos,
    samples=snakemake.params.samples,
)
write_scores(table, record, Path(snakemake.output.scores))
