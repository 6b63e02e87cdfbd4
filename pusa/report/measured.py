"""What finished jobs took against what was assumed for them, by Snakemake's benchmark files.

A benchmark times the attempt that finished. One that found its videos, and the scores of them, in
place says nothing of how long they take, and is told by the videos' times.
"""

import csv
from collections.abc import Iterable
from pathlib import Path

from pusa.experiments import Setting
from pusa.layout import Layout
from pusa.report.costs import job_seconds, training_seconds
from pusa.speed import Estimate

#: Finished sampling jobs that are looked at, the latest.
LATEST = 20
#: Measured seconds over assumed ones, and how many jobs they are of; 1 and 0 without any.
Measured = tuple[float, int]


def measure_training(layout: Layout, estimate: Estimate) -> Measured:
    """Of all runs that have ended, with their earlier attempts."""
    train = layout.config.train
    pairs = []
    for run in layout.runs.values():
        file, folder = Path(layout.benchmark("train", run.name)), Path(layout.trained(run.name))
        if file.is_file() and (folder / "run.json").is_file():
            seconds = training_seconds(file, folder)
            pairs.append((train.nodes * train.processes * seconds, estimate.training(run)))
    return _compare(pairs, len(pairs))


def measure_sampling(layout: Layout, estimate: Estimate) -> Measured:
    """Of the latest jobs of the suite, each by the videos that it made itself."""
    finished = []
    for study, settings in layout.settings.items():
        for setting in settings.values():
            for shard in _sampling_jobs(layout, study, setting):
                file = _sampling_benchmark(layout, study, setting, shard)
                if file.is_file():
                    finished.append((file.stat().st_mtime, file, study, setting, shard))
    pairs = []
    for _, file, study, setting, shard in sorted(finished)[-LATEST:]:
        if made := len(_made(layout, study, setting, shard)[0]):
            assumed = made * estimate.video(setting) + estimate.sampling_job(setting)
            pairs.append((job_seconds(file), assumed))
    return _compare(pairs, len(pairs))


def measure_encoding(layout: Layout, assumed: dict[str, float]) -> Measured:
    """Of the jobs whose assumed seconds are given by their names."""
    files = {name: Path(layout.benchmark(name)) for name in assumed}
    pairs = [(job_seconds(f), assumed[name]) for name, f in files.items() if f.is_file()]
    return _compare(pairs, len(pairs))


def measure_scoring(layout: Layout, estimate: Estimate) -> Measured:
    """Of the settings whose videos are all scored, and none was there before."""
    pairs, jobs = [], 0
    for name, setting in layout.settings["tables"].items():
        files = [
            Path(layout.benchmark("score_videos", "tables", name, dimension, f"shard{n}"))
            for dimension in layout.dimensions
            for n in range(layout.score_shards("tables", name))
        ]
        shards = _sampling_jobs(layout, "tables", setting)
        if not shards or not all(file.is_file() for file in files):
            continue
        if all(
            made == listed for made, listed in (_made(layout, "tables", setting, n) for n in shards)
        ):
            assumed = estimate.scoring(layout.sampled("tables", name))
            pairs.append((sum(map(job_seconds, files)), assumed))
            jobs += len(files)
    return _compare(pairs, jobs)


def _compare(pairs: Iterable[tuple[float, float]], jobs: int) -> Measured:
    if not jobs:
        return 1.0, 0
    took, assumed = (sum(column) for column in zip(*pairs, strict=True))
    return took / assumed, jobs


def _sampling_jobs(layout: Layout, study: str, setting: Setting) -> range:
    return range(layout.shards(study, setting.name) if setting.steps is not None else 0)


def _sampling_benchmark(layout: Layout, study: str, setting: Setting, shard: int) -> Path:
    return Path(layout.benchmark("sample_suite", study, setting.name, f"shard{shard}"))


def _made(layout: Layout, study: str, setting: Setting, shard: int) -> tuple[list[str], list[str]]:
    """The videos that a finished job made in its last run, and all that it listed."""
    file = _sampling_benchmark(layout, study, setting, shard)
    manifest = Path(layout.manifest(study, setting.name, shard))
    if not (file.is_file() and manifest.is_file()):
        return [], []
    start = file.stat().st_mtime - job_seconds(file)
    with manifest.open(newline="", encoding="utf-8") as lines:
        listed = [row["file"] for row in csv.DictReader(lines)]
    videos = {name: manifest.parent / name for name in listed}
    made = [n for n, video in videos.items() if video.is_file() and video.stat().st_mtime >= start]
    return made, listed
