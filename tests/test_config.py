import copy
from pathlib import Path

import pytest
import yaml

from pusa.config import check_config

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"


@pytest.fixture
def demo():
    return yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())


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


@pytest.mark.parametrize("name", ["config.yaml", "demo.yaml"])
def test_our_configs_are_valid(name):
    check_config(yaml.safe_load((ROOT / "config" / name).read_text()), SCHEMA)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("clip.heigth", 64, "config key clip.heigth is unknown; expected one of frames, height"),
        ("extra", 1, "config key extra is unknown; expected one of cache, clip"),
        ("train", None, "config key train is missing"),
        ("train.learning_rate", None, "config key train.learning_rate is missing"),
        ("clip.height", "64", "config key clip.height: found '64', expected a value of type integ"),
        ("clip.height", 65, "config key clip.height: found 65, expected a multiple of 16"),
        ("clip.height", 0, "config key clip.height: found 0, expected at least 16"),
        ("clip.frames", 32, "config key clip.frames: .* 4k\\+1, found 32; 29 and 33 are"),
        ("dataset.source", "web", "config key dataset.source: found 'web', expected one of folder"),
        ("dataset.clips", None, "config key dataset.clips is missing"),
        ("dataset.clips", 32, "config key dataset.clips: found 32, expected more than .*, 32"),
        ("model.source", "hub", "config key model.repo is missing"),
        ("suite.prompts", None, "config key suite.prompts is missing"),
        (
            "suite.prompts.camera",
            1,
            "config key suite.prompts.camera: found 1, expected at least 2",
        ),
        ("train.ranks", [], r"config key train.ranks: found \[\], expected at least 1 items"),
        (
            "train.ranks",
            [16, 16],
            r"config key train.ranks: found \[16, 16\], expected no value tw",
        ),
        ("train.ranks", [0], "config key train.ranks.0: found 0, expected at least 1"),
        ("train.iterations", [300, 50], r"train.iterations: found \[300, 50\], expected rising"),
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


def test_batch_that_processes_cannot_share(demo):
    config = spoil(spoil(demo, "train.total_batch", 8), "train.processes", 3)
    with pytest.raises(ValueError, match="total_batch"):
        check_config(config, SCHEMA)
