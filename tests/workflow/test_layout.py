from math import ceil

import pytest
import yaml

from pusa.config import read_config
from pusa.layout import read_layout
from tests.mini import ROOT


@pytest.fixture
def layout():
    """A function that reads a configuration, with some keys of its sections changed."""

    def read(name, **sections):
        config = yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())
        for section, keys in sections.items():
            config[section] = config.get(section, {}) | keys
        return read_layout(read_config(config))

    return read


SUBSET = {"subject": 4, "background": 2, "camera": 2}


@pytest.mark.parametrize(
    ("samples", "sampled", "scored", "jobs"),
    [
        (5, 2, 1000, (8, 1)),  # whole prompts, with all of their samples
        (5, 10, 1000, (4, 1)),
        (5, 10, 20, (4, 2)),
        (5, 10, 1, (4, 4)),  # whole sampling jobs
    ],
)
def test_jobs(layout, samples, sampled, scored, jobs):
    files = layout(
        "demo",
        suite={"subset": SUBSET},
        sample={"samples": samples, "videos_per_job": sampled},
        score={"videos_per_job": scored},
    )
    place = ("tables", files.main.name)
    assert files.videos(*place) == 40
    assert (files.shards(*place), files.score_shards(*place)) == jobs
    assert len(files.setting_manifests(*place)) == jobs[0]


def test_a_first_look(layout):
    """Of what figures compare; one job, one video per prompt, and nothing of `all` with it."""
    files = layout("config")
    settings = files.settings["first_look"]
    assert [s.model for s in settings.values()] == ["base", "wan_i2v", "pusa"]
    assert settings.keys() <= files.settings["tables"].keys()
    for name in settings:
        assert files.sampled("first_look", name) == {"subject": 2, "background": 1, "camera": 1}
        assert (files.videos("first_look", name), files.shards("first_look", name)) == (4, 1)
        assert files.videos("tables", name) >= 750
    assert not any("first_look" in file for file in files.manifests("tables"))
    assert set(files.manifests("first_look")) < set(files.lists)


def test_a_job_fills_half_of_its_time(layout):
    """By the plan's seconds of a video; a setting of few steps has fewer jobs."""
    files = layout("config")
    estimate = files.estimate
    jobs = {}
    for setting in files.settings["tables"].values():
        if setting.model != "pusa" or setting == files.main:
            continue
        number = files.videos_per_job(setting)
        seconds = estimate.sampling_job(setting) + number * estimate.video(setting)
        assert seconds <= 1440 * 60 / 2 < seconds + estimate.video(setting)
        jobs[setting.steps] = files.shards("tables", setting.name)
        assert jobs[setting.steps] == ceil(750 / number)
    assert jobs[2] < jobs[5] < jobs[10] < jobs[20]
    place = ("tables", files.main.name)
    for slower in ({"cost": {"gpu": "A100"}}, {"resources": {"sampling_minutes": 720}}):
        assert layout("config", **slower).shards(*place) > files.shards(*place)
    short = layout("config", resources={"sampling_minutes": 1})
    assert short.shards(*place) == 1118  # a prompt each


@pytest.mark.parametrize(
    ("name", "sections"),
    [("config", {"cost": {"gpu": None}}), ("demo", {}), ("demo", {"cost": {"gpu": "A100"}})],
)
def test_a_job_whose_seconds_are_not_known(layout, name, sections):
    files = layout(name, **sections)
    assert {files.videos_per_job(s) for s in files.settings["tables"].values()} == {50}


def test_paths_take_wildcards(layout):
    files = layout("demo")
    folder = "results/demo/samples/{study}/{setting}"
    assert files.manifest("{study}", "{setting}", "{shard}") == f"{folder}/shard{{shard}}.csv"
    assert files.weights("{run}", 24) == "results/demo/trained/{run}/iteration_24.safetensors"
    assert files.log("audit") == "results/demo/logs/audit.log"
    assert files.benchmark("train", "a") == "results/demo/benchmarks/train/a.tsv"


def test_training_follows_the_sheet(layout):
    files = layout("config")
    assert {name: run.iterations for name, run in files.runs.items() if name.endswith("0")} == {
        "control-rank512-seed0": (900,),
        "pusa-rank256-seed0": (750,),
        "pusa-rank512-seed0": (150, 450, 750, 900, 1200),
    }
    settings = files.train_settings(files.runs["control-rank512-seed0"])
    assert (settings.rank, settings.p_async, settings.iterations) == (512, 0.0, [900])
    assert settings.gradient_checkpointing and settings.dtype == "bfloat16"


def test_what_a_configuration_leaves_out(layout):
    released = layout("released")
    assert not released.runs and not released.tasks
    assert released.main_weights.endswith("pusa-rank512-released/iteration_900.safetensors")
    assert "models/PusaV1/download.json" in released.downloads
    small = layout("wan1.3b")
    assert not small.has_baseline and [s.model for s in small.compared] == ["base", "pusa"]
    assert layout("demo").downloads == [] and layout("demo").gpus == {}
    assert layout("config").gpus["train"] == 8


def test_a_rank_that_is_larger_than_the_model(tmp_path):
    config = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
    sheet = (ROOT / config["experiments"]).read_text()
    (tmp_path / "sheet.tsv").write_text(sheet.replace("\t64\t", "\t193\t"))
    config["experiments"] = str(tmp_path / "sheet.tsv")
    with pytest.raises(ValueError, match="rank: found 193, expected at most 192, the smallest"):
        read_layout(read_config(config))


@pytest.mark.parametrize("results", ["README.md", "README.md/inside"])
def test_a_file_where_the_results_are_to_be(results):
    config = yaml.safe_load((ROOT / "config/demo.yaml").read_text()) | {"results": results}
    with pytest.raises(FileExistsError, match=r"key results: README\.md is a file, expected a fol"):
        read_layout(read_config(config))


def test_clips_of_the_tasks(layout, dataset):
    demo = layout("demo")
    assert (demo.task_dataset, demo.task_clips) == ("results/demo/dataset", 4)
    few = layout("demo", train={"validation_clips": 2})
    assert (few.task_clips, len(few.task_videos("start_end"))) == (2, 2)
    own = layout("demo", tasks={"dataset": str(dataset), "clips": 9}, train={"validation_clips": 0})
    assert (own.task_dataset, own.task_clips) == (str(dataset), 9)


@pytest.mark.parametrize(
    "sections", [{"train": {"validation_clips": 0}}, {"cache": {"source": "released"}}]
)
def test_no_clips_for_tasks(layout, sections):
    files = layout("demo", **sections)
    assert (files.task_dataset, files.task_clips, files.tasks) == (None, 0, {})
