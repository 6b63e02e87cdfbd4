import copy
from pathlib import Path

import pytest
import yaml

from pusa.config import check_config, prompt_counts
from pusa.data.suite import INFO_FILE, VBENCH_COUNTS
from pusa.experiments import (
    check_available,
    check_published,
    read_experiments,
    require_base,
    unique_settings,
)

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
FILES = (ROOT / "config").glob("*.yaml")
CONFIGS = sorted(file.name for file in FILES if file.name != "claims.yaml")


def load(name):
    return yaml.safe_load((ROOT / "config" / name).read_text())


@pytest.fixture
def demo():
    return load("demo.yaml")


@pytest.fixture
def released():
    return load("released.yaml")


def check_study(config):
    """Everything that the workflow checks before its first job; returns the sheet."""
    check_config(config, SCHEMA)
    seed = config["train"]["seed"] if config["lora"]["source"] == "trained" else None
    sheet = read_experiments(ROOT / config["experiments"], seed=seed)
    check_available(sheet, config)
    require_base(sheet)
    check_published(sheet, *(ROOT / f"config/published/table{n}.csv" for n in (1, 2)))
    prompt_counts(config)
    return sheet


def flatten(config, prefix=""):
    """Values by path: ``{"train.ranks": [256, 512], ...}``."""
    flat = {}
    for key, value in config.items():
        flat |= (
            flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def differences(name):
    """Keys that differ between config.yaml and another file, and keys that only one has."""
    ours, other = flatten(load("config.yaml")), flatten(load(name))
    different = {key for key in ours.keys() & other.keys() if ours[key] != other[key]}
    return different, ours.keys() - other.keys(), other.keys() - ours.keys()


def spoil(config, path, value):
    """A copy of ``config`` with ``path`` (``train.ranks``) set, or removed if value is None."""
    config = copy.deepcopy(config)
    *parents, last = path.split(".")
    part = config
    for key in parents:
        part = part.setdefault(key, {})
    if value is None:
        del part[last]
    else:
        part[last] = value
    return config


def test_there_are_four_configs():
    assert CONFIGS == ["config.yaml", "demo.yaml", "released.yaml", "wan1.3b.yaml"]


@pytest.mark.parametrize("name", CONFIGS)
def test_our_configs_are_valid_and_their_sheets_fit(name):
    check_study(load(name))


LORA = {f"lora.{k}" for k in ("source", "repo", "revision", "path", "file", "rank", "iteration")}
BASELINE = {f"baseline.{k}" for k in ("source", "repo", "revision", "path")}


def test_the_small_model_differs_from_the_paper_in_the_model_alone():
    different, left_out, added = differences("wan1.3b.yaml")
    assert different == {"results", "experiments", "model.repo", "model.path", "train.processes"}
    assert left_out == LORA | BASELINE  # both are of the 14B model
    assert not added


def test_the_small_models_sheet_is_the_papers_without_wan_i2v():
    """There is none of its size."""
    full, small = (
        (ROOT / f"config/{name}.tsv").read_text().splitlines()
        for name in ("experiments", "wan1.3b_experiments")
    )
    assert [line for line in full if line not in small] == [
        "1\tbaseline\tWan-I2V\tsubset\twan_i2v\ti2v\t\t\t\t50"
    ]
    assert [line for line in full if "wan_i2v" not in line] == small


def test_the_released_lora_differs_from_the_paper_in_the_training_alone():
    different, left_out, added = differences("released.yaml")
    assert different == {"results", "experiments", "lora.source"}
    training = {
        key for key in flatten(load("config.yaml")) if key.startswith(("train.", "dataset."))
    }
    assert left_out == training
    assert not added


def test_the_papers_config_with_the_released_lora():
    """As its comment says: two keys, and nothing is trained."""
    config = spoil(load("config.yaml"), "lora.source", "released")
    config["experiments"] = "config/released_experiments.tsv"
    sheet = check_study(config)
    assert all(setting.seed is None for setting in sheet["setting"])
    assert (
        unique_settings(sheet).keys() == unique_settings(check_study(load("released.yaml"))).keys()
    )


def test_defaults(demo):
    check_config(demo, SCHEMA)
    assert demo["lora"]["source"] == "trained"
    assert demo["cache"] == {"source": "encode", "skip_unusable": False}
    defaults = {
        "method": "lora",
        "objective": "paper",
        "offload": False,
        "checkpoint_every": 50,
        "nodes": 1,
        "micro_batch": 8,
    }
    assert defaults.items() <= demo["train"].items()
    assert demo["sample"]["videos_per_job"] == 50
    assert demo["cost"] == {}


def test_released_needs_neither_dataset_nor_training(released):
    check_config(released, SCHEMA)
    assert "dataset" not in released
    assert released["train"]["iterations"] == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("clip.heigth", 64, "config key clip.heigth is unknown; expected one of frames, height"),
        ("extra", 1, "config key extra is unknown; expected one of baseline, cache, clip"),
        ("sample.shards", 16, "config key sample.shards is unknown; expected one of batch_size, "),
        ("device", None, "config key device is missing"),
        ("device", "gpu", "config key device: found 'gpu', expected one of cuda, cpu"),
        ("dataset", None, "config key dataset is missing"),
        ("train", None, "config key train is missing"),
        ("train.iterations", None, "config key train.iterations is missing"),
        ("clip.height", "64", "config key clip.height: found '64', expected a value of type integ"),
        ("clip.height", 65, "config key clip.height: found 65, expected a multiple of 16"),
        ("clip.height", 0, "config key clip.height: found 0, expected at least 16"),
        ("clip.frames", 32, "config key clip.frames: .* 4k\\+1, found 32; 29 and 33 are"),
        ("dataset.source", "web", "config key dataset.source: found 'web', expected one of folder"),
        ("dataset.clips", None, "config key dataset.clips is missing"),
        ("dataset.clips", 32, "config key dataset.clips: found 32, expected more than .*, 32"),
        ("model.source", "hub", "config key model.repo is missing"),
        ("suite.subset", None, "config key suite.subset is missing"),
        ("suite.subset.camera", 1, "config key suite.subset.camera: found 1, expected at least 2"),
        ("suite.subset.camera", None, "config key suite.subset.camera is missing"),
        ("lora.source", "hub", "config key lora.source: found 'hub', expected one of trained, rel"),
        ("baseline.path", None, "config key baseline.path is missing"),
        ("baseline.source", None, "config key baseline.source is missing"),
        ("baseline.source", "web", "config key baseline.source: found 'web', expected one of fold"),
        ("baseline.source", "hub", "config key baseline.repo is missing"),
        ("baseline.steps", None, "config key baseline.steps is missing"),
        ("baseline.guidance_scale", 0, "baseline.guidance_scale: found 0, expected at least 1"),
        (
            "cache.source",
            "raw",
            "config key cache.source: found 'raw', expected one of encode, rel",
        ),
        (
            "cache.skip_unusable",
            1,
            "cache.skip_unusable: found 1, expected a value of type boolean",
        ),
        ("train.ranks", None, "config key train.ranks is missing"),
        ("train.method", "dora", "config key train.method: found 'dora', expected one of lora, f"),
        (
            "train.objective",
            "ours",
            "train.objective: found 'ours', expected one of paper, authors",
        ),
        ("train.offload", "yes", "config key train.offload: found 'yes', expected a value of type"),
        ("train.checkpoint_every", 0, "train.checkpoint_every: found 0, expected at least 1"),
        ("train.nodes", 0, "config key train.nodes: found 0, expected at least 1"),
        ("sample.videos_per_job", 0, "sample.videos_per_job: found 0, expected at least 1"),
        ("cost.tflops", 0, "config key cost.tflops: found 0, expected more than 0"),
        ("cost.usd_per_gpu_hour", "2", "cost.usd_per_gpu_hour: found '2', expected a value of typ"),
        ("train.ranks", [], r"config key train.ranks: found \[\], expected at least 1 items"),
        (
            "train.ranks",
            [16, 16],
            r"config key train.ranks: found \[16, 16\], expected no value tw",
        ),
        ("train.ranks", [0], "config key train.ranks.0: found 0, expected at least 1"),
        ("train.iterations", [300, 50], r"train.iterations: found \[300, 50\], expected rising"),
        ("train.learning_rate", "1e-5", r"found the text '1e-5', .* YAML wants .* 1\.0e-05"),
        ("train.learning_rate", float("nan"), "learning_rate: found nan, expected a number"),
        ("train.learning_rate", 0, "config key train.learning_rate: found 0, expected more than 0"),
        ("train.models.pusa.p_async", 1.5, "models.pusa.p_async: found 1.5, expected at most 1"),
        ("train.models.base", {"p_async": 1}, "found 'base', expected a name that matches"),
        ("train.models.pusa", {}, "config key train.models.pusa.p_async is missing"),
        ("results", "", "config key results: found '', expected at least 1 characters"),
        ("sample.guidance_scale", 0.5, "sample.guidance_scale: found 0.5, expected at least 1"),
    ],
)
def test_error_names_key_value_and_expectation(demo, path, value, message):
    with pytest.raises(ValueError, match=message) as error:
        check_config(spoil(demo, path, value), SCHEMA)
    assert "\n" not in str(error.value)


def test_default_number_of_validation_clips_counts(demo):
    config = spoil(spoil(demo, "train.validation_clips", None), "dataset.clips", 20)
    with pytest.raises(ValueError, match=r"config key dataset.clips: found 20, expected more than"):
        check_config(config, SCHEMA)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"processes": 3}, "nodes 1 x train.processes 3 x train.micro_batch 2"),
        ({"processes": 2, "nodes": 3}, "nodes 3 x train.processes 2 x train.micro_batch 1"),
        ({"processes": 16}, "nodes 1 x train.processes 16 x train.micro_batch 1"),
        ({"micro_batch": 3}, "nodes 1 x train.processes 1 x train.micro_batch 3"),
    ],
)
def test_batch_that_processes_cannot_share(demo, keys, message):
    demo["train"] |= keys
    with pytest.raises(ValueError, match=r"config key train\.total_batch: found 8, .*" + message):
        check_config(demo, SCHEMA)


@pytest.mark.parametrize("key", ["path", "file", "rank", "iteration"])
def test_released_lora_is_described(released, key):
    with pytest.raises(ValueError, match=f"config key lora.{key} is missing"):
        check_config(spoil(released, f"lora.{key}", None), SCHEMA)


def test_released_lora_of_another_kind(released):
    with pytest.raises(ValueError, match=r"config key lora\.file: found 'a\.bin', expected a name"):
        check_config(spoil(released, "lora.file", "a.bin"), SCHEMA)


def test_full_training_needs_no_ranks(demo):
    config = spoil(spoil(demo, "train.ranks", None), "train.method", "full")
    check_config(config, SCHEMA)
    assert config["train"]["ranks"] == []


# Prompts of each kind


def test_prompts_of_the_paper():
    config = load("config.yaml")
    check_config(config, SCHEMA)
    counts = prompt_counts(config)
    assert counts["all"] == counts["effects"] == VBENCH_COUNTS
    assert sum(counts["all"].values()) == 1118
    assert counts["subset"] == {"subject": 50, "background": 50, "camera": 50}


def test_tiny_suite_renders_what_subset_and_effects_ask_for(demo):
    demo["suite"]["subset"] = {"subject": 9, "background": 3, "camera": 3}
    check_config(demo, SCHEMA)
    counts = prompt_counts(demo)
    assert counts["all"] == {"subject": 9, "background": 4, "camera": 4}
    assert counts["subset"] == {"subject": 9, "background": 3, "camera": 3}
    assert counts["effects"] == {"subject": 8, "background": 4, "camera": 4}


def test_without_subset_and_effects_all_prompts_count(demo, suite):
    demo["suite"] = {"source": "folder", "path": str(suite)}
    del demo["effects"]
    check_config(demo, SCHEMA)
    found = {"subject": 2, "background": 2, "camera": 9}
    assert prompt_counts(demo) == {"all": found, "subset": found, "effects": found}


@pytest.mark.parametrize("key", ["suite.subset", "effects.prompts"])
def test_more_prompts_than_the_suite_has(demo, suite, key):
    demo = spoil(spoil(demo, "suite.source", "folder"), "suite.path", str(suite))
    few = {"subject": 2, "background": 2, "camera": 9}
    demo = spoil(spoil(demo, "suite.subset", few), "effects.prompts", few)
    check_config(demo, SCHEMA)
    prompt_counts(demo)
    message = f"config key {key}.camera: found 10, expected at most 9, the suite's camera prompts"
    with pytest.raises(ValueError, match=message):
        prompt_counts(spoil(demo, key, {**few, "camera": 10}))


def test_folder_without_a_suite(demo, tmp_path):
    demo["suite"] |= {"source": "folder", "path": str(tmp_path)}
    check_config(demo, SCHEMA)
    with pytest.raises(FileNotFoundError, match=f"{INFO_FILE} does not exist"):
        prompt_counts(demo)


@pytest.mark.parametrize("side", ["height", "width"])
def test_vbench_scores_no_small_clips(side):
    config = load("config.yaml")
    config["clip"][side] = 112
    with pytest.raises(ValueError, match=f"clip.{side}: found 112, expected at least 128"):
        check_config(config, SCHEMA)
    check_config(config | {"score": {"scorer": "weight_free"}}, SCHEMA)
