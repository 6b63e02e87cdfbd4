import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode

from pusa.clip import count_latent_frames
from pusa.config import Model, read_config
from pusa.experiments import COLUMNS, read_experiments, unique_settings
from pusa.layout import read_layout
from pusa.report.plan import (
    KNOWN_SHAPES,
    Shape,
    describe_memory,
    describe_plan,
    find_shape,
)
from pusa.train.loop import TARGETS

ROOT = Path(__file__).parents[2]
WAN = "Wan-AI/Wan2.1-T2V-14B-Diffusers"
SMALL = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


def build(shape, **config):
    """A Wan transformer of this shape, without memory for its weights."""
    with torch.device("meta"):
        return WanTransformer3DModel(
            num_attention_heads=shape.dim // 128,
            attention_head_dim=128,
            ffn_dim=shape.ffn_dim,
            num_layers=shape.layers,
            **config,
        )


# The transformer's sizes, against the model itself


@pytest.mark.parametrize(("repo", "billions"), [(WAN, 14.3), (SMALL, 1.4)])
def test_parameters_are_those_of_the_model(repo, billions):
    """The blocks', without modulation, embeddings and head: less than 2 % of the whole."""
    shape = KNOWN_SHAPES[repo]
    parameters = sum(p.numel() for p in build(shape).parameters())
    assert parameters / 1e9 == pytest.approx(billions, rel=0.02)
    assert 0.98 * parameters < shape.parameters < parameters


@pytest.mark.parametrize(
    ("repo", "clip"),
    [(WAN, (81, 480, 832)), (SMALL, (81, 480, 832)), (WAN, (81, 720, 1280)), (SMALL, (33, 64, 64))],
)
def test_operations_are_those_of_the_model(repo, clip):
    """Counted by torch as the model runs; left out are the layers outside the blocks.

    These are a ten-thousandth of a long clip's operations, and a few hundredths of the
    shortest's, where the projection of a text longer than the video weighs most.
    """
    shape, (frames, height, width) = KNOWN_SHAPES[repo], clip
    model, latent_frames = build(shape), count_latent_frames(frames)
    tokens = latent_frames * height // 16 * width // 16
    inputs = ((1, 16, latent_frames, height // 8, width // 8), (1,), (1, 512, 4096))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*(torch.empty(s, device="meta") for s in inputs))
    tolerance = 1e-3 if tokens > 10_000 else 0.05
    assert shape.forward_flops(tokens, 512) == pytest.approx(counter.get_total_flops(), tolerance)


@pytest.mark.parametrize(("rank", "layers"), [(1, 1), (4, 3)])
def test_lora_parameters_are_those_of_peft(rank, layers):
    shape = Shape(dim=256, ffn_dim=640, layers=layers)
    model = build(shape)
    model.add_adapter(LoraConfig(r=rank, target_modules=list(TARGETS)))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape.lora_parameters(rank) == trained


def test_shape_by_name_then_from_the_folder(tmp_path):
    model = Model(source="hub", path=str(tmp_path), repo=SMALL)
    assert find_shape(model) == Shape(1536, 8960, 30)
    folder = tmp_path / "transformer"
    folder.mkdir()
    whole = json.loads((ROOT / "pusa/tiny/model/transformer/config.json").read_text())
    config = {"num_attention_heads": 3, "attention_head_dim": 8, "ffn_dim": 50, "num_layers": 2}
    (folder / "config.json").write_text(json.dumps(whole | config))
    assert find_shape(model) == Shape(24, 50, 2)


def test_unknown_shape(tmp_path):
    assert find_shape(Model(source="folder", path=str(tmp_path))) is None
    assert find_shape(Model(source="hub", path=str(tmp_path), repo="a/b")) is None


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
    jobs = 2 * 280 + 31 * 38  # of 20 videos
    for words in (
        "33 settings, 27 of them sampled for Table 2, each made once:",
        "2 on all 1,118 prompts (246 subject + 109 background + 763 camera) x 5 samples = 5,590",
        "31 on a subset of 150 prompts (50 subject + 50 background + 50 camera) x 5 samples = 750",
        f"3 training runs, 29 merged checkpoints, {videos:,} videos in {jobs:,} sampling jobs",
        "18 videos of tasks, attention of 3 models",
        f"sampling jobs, {9 * (2 * 6 + 31)} scoring jobs",  # a dimension of up to 1,000 videos
    ):
        assert words in text


def test_plan_of_the_released_lora():
    text = plan(load("released.yaml"))
    assert "12 settings, 7 of them sampled for Table 2" in text
    assert "0 training runs, 8 merged checkpoints, 18,680 videos in 940 sampling jobs" in text
    assert "training 0, sampling" in text
    assert "cached latents" not in text
    assert "  0 videos of tasks, attention of 3 models" in text


def test_plan_of_the_demo():
    text = plan(load("demo.yaml"))
    assert "21 settings, 12 of them sampled for Table 2" in text
    assert "21 on a subset of 12 prompts (6 subject + 3 background + 3 camera) x 1 samples" in text
    assert (
        "3 training runs, 14 merged checkpoints, 252 videos in 21 sampling jobs, 21 scoring" in text
    )
    assert "24 videos of tasks, attention of 3 models" in text
    assert f"a tiny Wan-I2V, trained for {load('demo.yaml')['baseline']['steps']} steps" in text
    assert "floating-point operations" in text  # no speed to divide them by
    assert "GPU-hours" not in text


def test_plan_says_what_guidance_is_used():
    assert (
        "  guidance scale 5, Wan-I2V's 5, against 'Bright tones, overexposed, static, blurred …' "
        "(config/negative_prompt.txt)\n"
    ) in plan(load("released.yaml"))
    assert "  guidance scale 3, Wan-I2V's 3, against the empty prompt\n" in plan(load("demo.yaml"))
    assert "  guidance scale 5, against 'Bright" in plan(load("wan1.3b.yaml"))  # no Wan-I2V


def amounts(text):
    """The numbers of the line with GPU-hours."""
    line = next(line for line in text.splitlines() if "GPU-hours" in line)
    return [float(number) for number in re.findall(r"\d+", line.replace(",", ""))]


def test_hours_and_price():
    forward = KNOWN_SHAPES[WAN].forward_flops(21 * 45 * 80, 512)  # 1280x720, 81 frames
    config = load("config.yaml")
    config["cost"] = {"tflops": 100, "usd_per_gpu_hour": 3}
    hours, price, speed, training, sampling = amounts(plan(config))
    # Runs as long as the sheet asks, 8 clips an iteration; a step is four forward passes' worth.
    iterations = 1200 + 750 + 900  # of rank 512, of rank 256, of the control
    assert training == pytest.approx(iterations * 8 * 4 * forward / 1e14 / 3600, abs=0.5)
    # Guidance takes two passes. The main setting's ten steps are taken on all prompts.
    sheet = read_experiments(ROOT / config["experiments"], seed=0)
    steps = 750 * sum(s.steps or 0 for s in unique_settings(sheet).values()) + (5590 - 750) * 10
    assert sampling == pytest.approx(2 * steps * forward / 1e14 / 3600, abs=0.5)
    assert hours == pytest.approx(training + sampling, abs=1)
    assert price == pytest.approx(3 * hours, abs=2)
    assert speed == 100


def test_without_guidance_sampling_takes_half():
    config = load("config.yaml")
    guided = amounts(plan(config))[-1]
    config["sample"]["guidance_scale"] = 1
    config["baseline"]["guidance_scale"] = 1
    assert amounts(plan(config))[-1] == pytest.approx(guided / 2, abs=1)


def test_wan_i2v_has_guidance_of_its_own():
    """Its 750 videos of 50 steps take two passes, or one."""
    config = load("config.yaml")
    guided = amounts(plan(config))[-1]
    config["baseline"]["guidance_scale"] = 1
    forward = KNOWN_SHAPES[WAN].forward_flops(21 * 45 * 80, 512)
    saved = 750 * 50 * forward / (config["cost"]["tflops"] * 1e12 * 3600)
    assert guided - amounts(plan(config))[-1] == pytest.approx(saved, abs=1)


def test_without_a_price():
    config = load("config.yaml")
    assert "$" in plan(config)
    del config["cost"]["usd_per_gpu_hour"]
    assert "GPU-hours at 300 TFLOP/s" in plan(config)


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
    one = round(4 * shape.parameters / 1e9)
    assert f"{one} GB for each merged checkpoint that waits for its samples" in plan(
        load("config.yaml")
    )
    assert "up to 1.6 TB" in plan(load("config.yaml"))  # 29 of them


def test_full_training_saves_transformers_and_merges_none(tmp_path):
    rows = ["\t".join(COLUMNS), "1\tbaseline\t\tsubset\tbase\ti2v\t\t\t\t10"]
    rows.append("1\tours\tOurs\tsubset\tpusa\ti2v\t\t144\t\t10")
    (tmp_path / "sheet.tsv").write_text("\n".join(rows) + "\n")
    config = load("demo.yaml")
    config["experiments"] = str(tmp_path / "sheet.tsv")
    config["train"]["method"] = "full"
    text = plan(config)
    assert "1 training runs, 0 merged checkpoints, 24 videos in 2 sampling jobs" in text
    shape = find_shape(Model(**config["model"]))
    sizes = disk(text)
    assert sizes["trained transformers"] * 1e9 == pytest.approx(4 * shape.parameters, rel=0.05)
    assert "merged checkpoint that waits" not in text
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
