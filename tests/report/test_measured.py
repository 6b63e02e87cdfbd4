"""What finished jobs took, by benchmark files that are made up."""

import os
from pathlib import Path

import pytest
import yaml

from pusa.config import read_config
from pusa.layout import read_layout
from pusa.report.measured import LATEST, measure_encoding, measure_sampling, measure_scoring
from pusa.report.plan import video_hours

ROOT = Path(__file__).parents[2]
END = 1_750_000_000  # of the jobs, seconds


@pytest.fixture
def layout(tmp_path):
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config |= {"results": str(tmp_path)}
    return read_layout(read_config(config))


def write(file, text, end=END):
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    os.utime(file, (end, end))


def finish(layout, setting, shard, seconds, *, made, kept=0, end=END):
    """A sampling job that made some videos, and found others in place."""
    names = [f"{shard}-{n}.mp4" for n in range(made + kept)]
    manifest = Path(layout.manifest("tables", setting.name, shard))
    write(manifest, "\n".join(["file", *names]) + "\n", end)
    for n, name in enumerate(names):
        write(manifest.parent / name, "", end - 1 if n < made else end - seconds - 60)
    benchmark = layout.benchmark("sample_suite", "tables", setting.name, f"shard{shard}")
    write(benchmark, f"s\th:m:s\n{seconds}\t-\n", end)


def test_nothing_is_measured_before_a_job_has_finished(layout):
    estimate = layout.estimate
    assert measure_sampling(layout, estimate) == (1, 0)
    assert measure_scoring(layout, estimate) == (1, 0)
    assert measure_encoding(layout, {"cache_prompts": 5.0}) == (1, 0)


def test_sampling_counts_the_videos_that_a_job_made(layout):
    estimate, setting = layout.estimate, layout.main
    video, reading = estimate.video(setting), estimate.sampling_job(setting)
    before = video_hours(layout, setting)
    finish(layout, setting, 0, 1.5 * (20 * video + reading), made=20)
    finish(layout, setting, 1, 1.5 * (5 * video + reading), made=5, kept=15)
    finish(layout, setting, 2, 40, made=0, kept=20)  # only looked
    assert measure_sampling(layout, estimate) == (pytest.approx(1.5), 2)
    assert video_hours(layout, setting) == pytest.approx(1.5 * before)


def test_the_latest_jobs_count(layout):
    estimate, setting = layout.estimate, layout.main
    job = estimate.video(setting) + estimate.sampling_job(setting)
    for shard in range(LATEST + 3):
        slow = shard < 3
        finish(layout, setting, shard, (9 if slow else 2) * job, made=1, end=END + shard)
    assert measure_sampling(layout, estimate) == (pytest.approx(2), LATEST)


def test_scoring_counts_settings_whose_videos_are_all_new(layout):
    estimate = layout.estimate
    settings = layout.settings["tables"].values()
    new, partly = [s for s in settings if s.model == "pusa" and s != layout.main][:2]
    for setting, kept in ((new, 0), (partly, 1)):
        for shard in range(layout.shards("tables", setting.name)):
            finish(layout, setting, shard, 100, made=2, kept=kept)
        for dimension in layout.dimensions:
            place = ("tables", setting.name, dimension, "shard0")
            write(layout.benchmark("score_videos", *place), "s\n500\n")
    assumed = estimate.scoring(layout.sampled("tables", new.name))
    factor, jobs = measure_scoring(layout, estimate)
    assert (factor, jobs) == (pytest.approx(9 * 500 / assumed), 9)


def test_encoding_by_its_jobs(layout):
    write(layout.benchmark("cache_latents"), "s\n30\n")
    assumed = {"cache_latents": 10.0, "cache_prompts": 5.0}
    assert measure_encoding(layout, assumed) == (3, 1)
