import copy

import pytest
import yaml
from snakemake.utils import update_config

from pusa.config import (
    Config,
    GenerateSettings,
    SuiteSettings,
    TrainSettings,
    describe_keys,
    prompt_counts,
    read_config,
)
from pusa.data.cache import RELEASED_CONFIGS
from pusa.data.suite import INFO_FILE, VBENCH_COUNTS
from pusa.layout import read_layout
from tests.mini import ROOT

FILES = (ROOT / "config").glob("*.yaml")
OVERLAYS = {"480p.yaml", "core.yaml"}  # change another, and are none by themselves
CONFIGS = sorted({file.name for file in FILES} - {"claims.yaml", *OVERLAYS})


def load(name):
    return yaml.safe_load((ROOT / "config" / name).read_text())


@pytest.fixture
def demo():
    return load("demo.yaml")


def flatten(config, prefix=""):
    """Values by path: ``{"clip.frames": 81, ...}``."""
    flat = {}
    for key, value in config.items():
        inner = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat


def differences(name):
    """Keys that differ between config.yaml and another file, and keys that only one has."""
    ours, other = flatten(load("config.yaml")), flatten(load(name))
    different = {key for key in ours.keys() & other.keys() if ours[key] != other[key]}
    return different, ours.keys() - other.keys(), other.keys() - ours.keys()


def spoil(config, path, value):
    """A copy of ``config`` with ``path`` (``train.seed``) set, or removed if value is None."""
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


@pytest.mark.parametrize("name", CONFIGS)
def test_our_configs_are_valid_and_their_sheets_fit(name):
    read_layout(read_config(load(name)))


@pytest.fixture
def laid_over():
    """A function that lays an overlay over a configuration, as Snakemake does."""

    def lay(name, overlay="480p.yaml"):
        config = load(name)
        update_config(config, load(overlay))
        return config

    return lay


@pytest.mark.parametrize("name", ["config.yaml", "released.yaml"])
def test_the_paper_at_480p(laid_over, name):
    """Size, the baseline of that size and the results' folder; no other key."""
    config = laid_over(name)
    read_layout(read_config(config))
    before, after = flatten(load(name)), flatten(config)
    assert before.keys() == after.keys()
    assert {key for key in before if before[key] != after[key]} == {
        "results",
        "clip.height",
        "clip.width",
        "baseline.repo",
        "baseline.path",
    }
    assert (config["clip"]["height"], config["clip"]["width"]) == (480, 832)
    assert config["baseline"]["repo"].endswith("480P-Diffusers")


@pytest.mark.parametrize("name", ["config.yaml", "released.yaml"])
def test_the_core_of_the_suite(laid_over, name):
    """The main row and the base, of the same sampling as before, on most prompts that weigh."""
    config = laid_over(name, "core.yaml")
    layout, whole = (read_layout(read_config(values)) for values in (config, load(name)))
    before, after = flatten(load(name)), flatten(config)
    assert {key for key in before if before[key] != after[key]} == {
        "experiments",
        *(f"suite.subset.{kind}" for kind in ("subject", "background")),
        "sample.samples",
    }
    assert layout.main == whole.main
    assert [s.model for s in layout.settings["tables"].values()] == ["base", "pusa", "still"]
    assert layout.settings["tables"].keys() < whole.settings["tables"].keys()
    assert {kind: VBENCH_COUNTS[kind] for kind in ("subject", "background")}.items() <= (
        layout.sampled("tables", layout.main.name).items()
    )


def test_sizes_of_the_released_encodings_have_configurations(laid_over):
    clips = {
        "config/config.yaml": load("config.yaml"),
        "config/480p.yaml": laid_over("config.yaml"),
    }
    for size, name in RELEASED_CONFIGS.items():
        assert size == (clips[name]["clip"]["height"], clips[name]["clip"]["width"])


def test_the_authors_guidance_and_negative_prompt():
    """Those of their scripts in the paper's month; the embedded model has 3 and no prompt."""
    for name in CONFIGS:
        layout = read_layout(read_config(load(name)))
        of_the_paper = name not in ("demo.yaml", "miniature.yaml")
        assert layout.config.sample.guidance_scale == (5.0 if of_the_paper else 3.0)
        assert layout.negative_prompt.startswith("Bright tones, overexposed, ") == of_the_paper
        assert layout.negative_prompt.endswith(", walking backwards") == of_the_paper
        if layout.config.is_trained:
            assert layout.config.train.objective == ("authors" if of_the_paper else "paper")


LORA = {f"lora.{k}" for k in ("source", "repo", "revision", "path", "file", "rank", "iteration")}
BASELINE = {f"baseline.{k}" for k in ("source", "repo", "revision", "path")}


def test_the_small_model_differs_from_the_paper_in_the_model_alone():
    different, left_out, added = differences("wan1.3b.yaml")
    model = {"model.repo", "model.path", "clip.height", "clip.width"}  # one of 480p
    jobs = {"train.processes"}
    assert different == {"results", "experiments"} | model | jobs
    # Of the 14B model, and for its size.
    assert left_out == LORA | BASELINE | {"train.offload"}
    assert not added


def test_the_small_models_sheet_is_the_papers_without_wan_i2v():
    """There is none of its size."""
    full, small = (
        (ROOT / f"config/{name}.tsv").read_text().splitlines()
        for name in ("experiments", "wan1.3b_experiments")
    )
    assert [line for line in full if "wan_i2v" not in line] == small


def test_the_released_lora_differs_from_the_paper_in_the_training_alone():
    different, left_out, added = differences("released.yaml")
    assert different == {"results", "experiments", "lora.source"}
    assert left_out == {
        key for key in flatten(load("config.yaml")) if key.startswith(("train.", "dataset."))
    }
    assert not added


def test_the_papers_config_with_the_released_lora():
    """As its comment says: two keys, and nothing is trained."""
    config = spoil(load("config.yaml"), "lora.source", "released")
    config["experiments"] = "config/released_experiments.tsv"
    layout = read_layout(read_config(config))
    assert not layout.runs
    assert layout.settings == read_layout(read_config(load("released.yaml"))).settings


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("clip.heigth", 64, "clip.heigth is unknown; expected one of frames, height, text_tok"),
        ("extra", 1, "extra is unknown; expected one of baseline, cache, clip"),
        ("train.models.pusa", {"p_async": 1.0, "a": 1}, "models.pusa.a is unknown; expected one"),
        ("device", None, "device is missing"),
        ("device", "gpu", "device: found 'gpu', expected 'cuda' or 'cpu'"),
        ("dataset", None, "dataset: found nothing, expected the clips that are trained on"),
        ("clip.height", "64", "clip.height: found '64', expected a whole number"),
        ("clip.height", 65, "clip.height: found 65, expected a multiple of 16"),
        ("clip.height", 0, "clip.height: found 0, expected at least 16"),
        ("clip.frames", 32, "clip.frames: .* 4k\\+1, found 32; 29 and 33 are"),
        ("dataset.clips", None, "dataset.clips: found nothing, expected one with source tiny"),
        ("dataset.clips", 32, "dataset.clips: found 32, expected more than .*, 32"),
        ("model.source", "hub", "model.repo: found nothing, expected one with source hub"),
        (
            "train.offload",
            True,
            "train.offload: found True, expected 'none', 'activations', 'optimizer' or",
        ),
        ("train.offload", "both", "train.offload: found both, expected none or optimizer without"),
        ("suite.subset", None, "suite.subset: found nothing, expected one with source tiny"),
        ("suite.source", "folder", "suite.prompts: found .*, expected none with source folder"),
        ("suite.subset.camera", 1, "suite.subset.camera: found 1, expected at least 2"),
        ("suite.subset.camera", None, "suite.subset.camera is missing"),
        ("lora.source", "released", "lora.path: found nothing, expected one with source releas"),
        ("baseline.steps", None, "baseline.steps: found nothing, expected one with source tiny"),
        ("cache.skip_unusable", 1, "cache.skip_unusable: found 1, expected true or false"),
        ("train.ranks", [16], "train.ranks is no more: it is the column rank of the experiments"),
        ("train.learning_rate", "1e-5", r"found the text '1e-5', .* YAML wants: 1\.0e-05"),
        ("train.learning_rate", "0.1", "found the text '0.1', expected a number, without quotes"),
        ("train", 5, "train: found 5, expected a section with keys"),
        ("train.models", {}, "train.models: found {}, expected at least 1 of them"),
        (
            "effects.seeds",
            [],
            r"effects.seeds: found \[\], expected at least 1 of them",
        ),
        ("suite.subset", {"subjects": 3}, "suite.subset.subjects is unknown"),
        ("train.learning_rate", float("nan"), "learning_rate: found nan, expected a finite number"),
        ("train.models.base", {"p_async": 1}, "train.models: found 'base', expected small lett"),
        ("train.models.pusa", {}, "train.models.pusa.p_async is missing"),
        ("train.processes", 3, "total_batch: found 8, .* train.processes 3 x train.micro_batch 2"),
        ("train.micro_batch", 3, "total_batch: found 8, .* train.micro_batch 3"),
        ("effects.seeds", [1, 1], r"effects.seeds: found \[1, 1\], expected no value twice"),
        ("sample.attention_backend", "x", "attention_backend: found .x., expected one of _f"),
        ("results", "", "results: found '', expected text of at least 1 character"),
        ("score.scorer", "vbench", "clip.height: found 64, expected at least 128"),
    ],
)
def test_error_names_key_value_and_expectation(demo, path, value, message):
    with pytest.raises(ValueError, match=f"config key .*{message}") as error:
        read_config(spoil(demo, path, value))
    assert "\n" not in str(error.value)


def test_released_lora_has_a_known_kind_of_file():
    with pytest.raises(ValueError, match=r"config key lora\.file: found a\.bin, expected"):
        read_config(spoil(load("released.yaml"), "lora.file", "a.bin"))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (TrainSettings, {"iterations": [1]}, "rank: found None with method lora, expected a rank"),
        (TrainSettings, {"rank": 1, "method": "full", "iterations": [1]}, "rank: found 1 with met"),
        (TrainSettings, {"rank": 1, "iterations": [2, 1]}, r"iterations: found \[2, 1\], expected"),
        (GenerateSettings, {"frames": 32}, "frames: .*4k\\+1, found 32"),
        (GenerateSettings, {"overlap": 12}, "overlap: .*4k\\+1, found 12"),
        (GenerateSettings, {"length": 33}, "length: found 33 frames, expected .* one window, 81"),
        (GenerateSettings, {"length": 99, "overlap": 81}, "overlap: found 81 frames, expected few"),
    ],
)
def test_settings_of_commands_are_checked_too(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind.read(values)


def test_a_part_shares_what_both_kinds_have(demo):
    sample = read_config(spoil(demo, "sample.shift", 3.0)).sample
    made = sample.part(SuiteSettings, frames=9, height=64, width=64, steps=2)
    assert (made.shift, made.batch_size, made.steps) == (3.0, 8, 2)
    assert not hasattr(made, "videos_per_job")


def test_table_of_keys_is_current():
    """`python -m pusa.config` writes it."""
    assert describe_keys() in (ROOT / "config/README.md").read_text()
    assert all(f.description or f.annotation.__doc__ for f in Config.model_fields.values())


# Prompts of each kind


def test_prompts_of_the_paper():
    counts = prompt_counts(read_config(load("config.yaml")))
    assert counts["all"] == counts["effects"] == VBENCH_COUNTS
    assert sum(counts["all"].values()) == 1118
    assert counts["subset"] == {"subject": 50, "background": 50, "camera": 50}


def test_tiny_suite_does_not_depend_on_what_is_taken_of_it(demo):
    rendered = prompt_counts(read_config(demo))["all"]
    demo["suite"]["subset"] = {"subject": 20, "background": 3, "camera": 3}
    demo["effects"]["prompts"] = {"subject": 30, "background": 16, "camera": 4}
    assert prompt_counts(read_config(demo))["all"] == rendered == demo["suite"]["prompts"]
    demo["effects"]["prompts"]["camera"] = 17
    with pytest.raises(ValueError, match=r"effects\.prompts\.camera: found 17, .* most 16"):
        prompt_counts(read_config(demo))


def test_tiny_suite_renders_what_subset_and_effects_ask_for(demo):
    del demo["suite"]["prompts"]
    demo["suite"]["subset"] = {"subject": 9, "background": 3, "camera": 3}
    counts = prompt_counts(read_config(demo))
    assert counts["all"] == {"subject": 9, "background": 4, "camera": 4}
    assert counts["subset"] == {"subject": 9, "background": 3, "camera": 3}
    assert counts["effects"] == {"subject": 8, "background": 4, "camera": 4}


@pytest.mark.parametrize("key", ["suite.subset", "effects.prompts"])
def test_more_prompts_than_the_suite_has(demo, suite, key):
    few = {"subject": 2, "background": 2, "camera": 9}
    demo["suite"] = {"source": "folder", "path": str(suite)}
    del demo["effects"]
    assert prompt_counts(read_config(demo)) == {"all": few, "subset": few, "effects": few}
    message = f"config key {key}.camera: found 10, expected at most 9, the suite's camera prompts"
    with pytest.raises(ValueError, match=message):
        prompt_counts(read_config(spoil(demo, key, {**few, "camera": 10})))


def test_folder_without_a_suite(demo, tmp_path):
    demo["suite"] = {"source": "folder", "path": str(tmp_path)}
    with pytest.raises(FileNotFoundError, match=f"{INFO_FILE} does not exist"):
        prompt_counts(read_config(demo))
