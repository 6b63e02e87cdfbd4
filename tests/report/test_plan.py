import re
from pathlib import Path

import pytest
import yaml

from pusa.config import Model, read_config
from pusa.experiments import COLUMNS, read_experiments, unique_settings
from pusa.layout import read_layout
from pusa.report.plan import describe_memory, describe_plan
from pusa.speed import GPUS, KNOWN_SHAPES, find_shape

ROOT = Path(__file__).parents[2]
WAN = "Wan-AI/Wan2.1-T2V-14B-Diffusers"
SMALL = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


# The plan in words


def load(name):
    config = yaml.safe_load((ROOT / "config" / name).read_text())
    config["model"]["path"] = str(ROOT / config["model"]["path"])
    return config


def plan(config):
    return describe_plan(read_layout(read_config(config)))


def test_plan_of_the_paper():
    text = plan(load("config.yaml"))
    videos = 2 * 1118 * 5 + 31 * 150 * 5
    jobs = len(read_layout(read_config(load("config.yaml"))).manifests("tables"))
    for words in (
        "33 settings, 27 of them sampled for Table 2, each made once:",
        "2 on all 1,118 prompts (246 subject + 109 background + 763 camera) x 5 samples = 5,590",
        "31 on a subset of 150 prompts (50 subject + 50 background + 50 camera) x 5 samples = 750",
        f"3 training runs, {videos:,} videos in {jobs:,} sampling jobs",
        "18 videos of tasks, attention of 3 models",
        f"sampling jobs, {9 * (2 * 6 + 31)} scoring jobs",  # a dimension of up to 1,000 videos
    ):
        assert words in text


def test_plan_of_the_released_lora():
    text = plan(load("released.yaml"))
    assert "12 settings, 7 of them sampled for Table 2" in text
    assert "0 training runs, 18,680 videos in " in text
    assert "training" not in amounts(text)
    assert "cached latents" not in text
    assert "  0 videos of tasks, attention of 3 models" in text


def test_plan_of_the_demo():
    text = plan(load("demo.yaml"))
    assert "21 settings, 12 of them sampled for Table 2" in text
    assert "21 on a subset of 12 prompts (6 subject + 3 background + 3 camera) x 1 samples" in text
    assert "3 training runs, 252 videos in 21 sampling jobs, 21 scoring" in text
    assert "24 videos of tasks, attention of 3 models" in text
    assert f"a tiny Wan-I2V, trained for {load('demo.yaml')['baseline']['steps']} steps" in text
    assert "no GPU-hours: everything runs on the CPU (device)" in text


def test_plan_says_what_guidance_is_used():
    assert (
        "  guidance scale 5, Wan-I2V's 5, against 'Bright tones, overexposed, static, blurred …' "
        "(config/negative_prompt.txt)\n"
    ) in plan(load("released.yaml"))
    assert "  guidance scale 3, Wan-I2V's 3, against the empty prompt\n" in plan(load("demo.yaml"))
    assert "  guidance scale 5, against 'Bright" in plan(load("wan1.3b.yaml"))  # no Wan-I2V


def test_plan_says_what_changes_scores():
    config = load("config.yaml")
    config["sample"] |= {"compile": True, "attention_backend": "flash"}
    assert "changes scores" not in plan(config)
    config["sample"] |= {"vae_tiling": True, "attention_backend": "sage"}
    assert "  with sample.vae_tiling, sample.attention_backend, which changes scores\n" in plan(
        config
    )


def amounts(text):
    """GPU-hours by stage, of ``all`` too, and the price."""
    line, following = re.search(r"about (.*GPU-hours.*):\n(.*)", text).groups()
    stages = re.findall(r"([a-z ]+) ([\d,]*\d(?:\.\d)?)", following)
    found = {name.strip(): float(hours.replace(",", "")) for name, hours in stages}
    total, _, price = line.replace(",", "").partition(" GPU-hours")
    dollars = re.match(r" \$(\d+)", price)
    return found | {"all": float(total), "price": float(dollars[1]) if dollars else None}


def test_hours_and_price():
    forward = KNOWN_SHAPES[WAN].forward_flops(21 * 45 * 80, 512)  # 1280x720, 81 frames
    config = load("config.yaml")
    config["cost"] = {"gpu": "A100", "usd_per_gpu_hour": 3}
    text = plan(config)
    found, speed = amounts(text), GPUS["A100"].bfloat16
    assert f"by {speed:g} TFLOP/s in bfloat16" in text and "assumed of A100 (cost.gpu)" in text
    # Runs as long as the sheet asks, 8 clips an iteration; a step is four forward passes' worth.
    iterations = 1200 + 750 + 900  # of rank 512, of rank 256, of the control
    expected = iterations * 8 * 4 * forward / (speed * 1e12) / 3600
    assert expected < found["training"] < 1.06 * expected  # with the LoRA's arithmetic
    # Guidance takes two passes. The main setting's ten steps are taken on all prompts.
    sheet = read_experiments(ROOT / config["experiments"], seed=0)
    steps = 750 * sum(s.steps or 0 for s in unique_settings(sheet).values()) + (5590 - 750) * 10
    expected = 2 * steps * forward / (speed * 1e12) / 3600
    assert expected < found["sampling"] < 1.15 * expected  # with the VAE, and weights are read
    stages = {"training", "sampling", "tasks and attention", "encoding", "scoring"}
    assert found.keys() == stages | {"all", "price"}
    assert found["all"] == pytest.approx(sum(found[stage] for stage in stages), abs=3)
    assert found["price"] == pytest.approx(3 * found["all"], abs=2)


@pytest.mark.slow
def test_price_of_a_first_look():
    """Four videos each of the base, of Wan-I2V with 50 steps, and of the adapted model."""
    text, forward = plan(load("released.yaml")), KNOWN_SHAPES[WAN].forward_flops(21 * 45 * 80, 512)
    pixels = 720 * 1280
    vae = (8.5e6 * 81 * pixels + 5.05e6 * pixels) / 45e12
    hours = (4 * (10 + 50 + 10) * 2 * forward / 300e12 + 12 * vae) / 3600
    assert text.endswith(
        f"first_look, not in this: 12 videos by 3 models, about {hours:.2g} GPU-hours, "
        f"${2.5 * hours:.2f}"
    )
    assert plan(load("config.yaml")).endswith(f"${2.5 * hours:.2f}, after the main training")
    assert "first_look, not in this: 8 videos by 2 models, about" in plan(load("wan1.3b.yaml"))
    assert plan(load("demo.yaml")).endswith("12 videos by 3 models, after the main training")


def test_nothing_is_scored_by_gpus_without_vbench():
    config = load("config.yaml")
    config["score"] = {"scorer": "weight_free"}
    assert "scoring" not in amounts(plan(config))


def test_wan_i2v_has_guidance_of_its_own():
    """Its 750 videos of 50 steps take two passes, or one."""
    config = load("config.yaml")
    guided = amounts(plan(config))["sampling"]
    config["baseline"]["guidance_scale"] = 1
    forward = KNOWN_SHAPES[WAN].forward_flops(21 * 45 * 80, 512)
    saved = 750 * 50 * forward / (GPUS["H100"].bfloat16 * 1e12 * 3600)
    assert guided - amounts(plan(config))["sampling"] == pytest.approx(saved, abs=1)


def test_without_a_price_or_a_kind_of_gpu():
    config = load("config.yaml")
    assert "$" in plan(config)
    del config["cost"]["usd_per_gpu_hour"]
    assert "GPU-hours, by 300 TFLOP/s" in plan(config)
    del config["cost"]["gpu"]
    assert "GPU-hours: not estimated without cost.gpu" in plan(config)


def test_hours_of_finished_jobs_take_the_place_of_assumed_ones(tmp_path):
    """A run that took twice as long as assumed, on eight GPUs."""
    config = load("config.yaml") | {"results": str(tmp_path)}
    before = amounts(plan(config))
    layout = read_layout(read_config(config))
    run = layout.runs["pusa-rank256-seed0"]
    assumed = layout.estimate.training(run)
    for file, text in {
        layout.benchmark("train", run.name): f"s\n{2 * assumed / 8 - 100}\n",
        layout.trained(run.name, "training.csv"): f"elapsed_seconds\n{2 * assumed / 8}\n",
        layout.trained(run.name, "run.json"): "{}",
    }.items():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(text)
    text = plan(config)
    assert amounts(text)["training"] == pytest.approx(2 * before["training"], abs=1)
    assert "(measured, 2.00 of what is assumed: 1 jobs), sampling" in text
    assert amounts(text)["sampling"] == before["sampling"]


def test_unknown_model_is_not_estimated():
    config = load("config.yaml")
    config["model"] |= {"repo": "a/b", "path": "nowhere"}
    text = plan(config)
    assert "34,430 videos" in text
    assert "not estimated, as the model is not known before it is" in text


def disk(text):
    """Sizes in GB by what takes them."""
    line = next(line for line in text.splitlines() if "of disk for good: " in line).split(": ")[1]
    units = {"kB": 1e-6, "MB": 1e-3, "GB": 1, "TB": 1e3}
    parts = (part.rsplit(" ", 2) for part in line.split(", "))
    return {what: float(number) * units[unit] for what, number, unit in parts}


def test_disk_of_the_paper():
    found = disk(plan(load("config.yaml")))
    shape = KNOWN_SHAPES[WAN]
    # Five files of rank 512, one of 256, and the control's of rank 512; bfloat16.
    loras = 2 * (6 * shape.lora_parameters(512) + shape.lora_parameters(256))
    latents = 3860 * 4 * 16 * 21 * 90 * 160
    expected = {"LoRAs": loras}
    expected |= {"the model's transformer": 4 * shape.parameters, "cached latents": latents}
    expected |= {"the baseline's transformer": 4 * shape.parameters}
    for what, size in expected.items():
        assert found[what] == pytest.approx(size / 1e9, abs=0.5)


def test_full_training_saves_transformers(tmp_path):
    rows = ["\t".join(COLUMNS), "1\tbaseline\t\tsubset\tbase\ti2v\t\t\t\t10"]
    rows.append("1\tours\tOurs\tsubset\tpusa\ti2v\t\t144\t\t10")
    (tmp_path / "sheet.tsv").write_text("\n".join(rows) + "\n")
    config = load("demo.yaml")
    config["experiments"] = str(tmp_path / "sheet.tsv")
    config["train"]["method"] = "full"
    text = plan(config)
    assert "1 training runs, 24 videos in 2 sampling jobs" in text
    shape = find_shape(Model(**config["model"]))
    sizes = disk(text)
    assert sizes["trained transformers"] * 1e9 == pytest.approx(4 * shape.parameters, rel=0.05)
    assert "LoRAs" not in sizes


# What a GPU must hold


def test_memory_is_of_the_highest_rank():
    config = load("config.yaml")
    config["train"] |= {"nodes": 2, "processes": 4}
    config["resources"] = {"gpu_memory": 48}
    settings = read_layout(read_config(config)).memory_settings
    assert (settings.rank, settings.processes, settings.gpu_memory) == (512, 8, 48)
    clip = config["clip"]
    assert all(getattr(settings, key) == clip[key] for key in clip)
    train = read_config(config).train
    for key in (
        "method",
        "dtype",
        "lora_dtype",
        "gradient_checkpointing",
        "offload",
        "micro_batch",
    ):
        assert getattr(settings, key) == getattr(train, key)


def test_nothing_is_trained_with_a_released_lora():
    settings = read_layout(read_config(load("released.yaml"))).memory_settings
    assert (settings.method, settings.rank) == ("lora", None)


@pytest.mark.slow
def test_a_training_that_cannot_fit_is_refused():
    config = load("demo.yaml")
    config["resources"] = {"gpu_memory": 2.5}
    with pytest.raises(
        ValueError, match=r"^training of rank 64 at 64x64x33 on 1 GPU takes .* CUDA"
    ):
        describe_memory(read_layout(read_config(config)))


def test_memory_of_an_unknown_model_is_not_counted():
    config = load("config.yaml")
    config["model"] |= {"repo": "a/b", "path": "nowhere"}
    assert describe_memory(read_layout(read_config(config))) == ""
