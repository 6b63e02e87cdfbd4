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
