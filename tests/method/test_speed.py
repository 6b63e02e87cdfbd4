"""Operations, against the models themselves on the meta device."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode
from transformers import UMT5Config, UMT5EncoderModel

from pusa.clip import count_latent_frames
from pusa.config import GpuKind, Model, read_config
from pusa.experiments import Run, Setting
from pusa.memory import flash_attention
from pusa.models.load import decode_latents, encode_pixels
from pusa.speed import (
    DECODING,
    ENCODING,
    GPUS,
    KNOWN_SHAPES,
    MERGING,
    READING,
    SCORED,
    TEXT_BYTES,
    TEXT_LAYERS,
    TEXT_PARAMETERS,
    TEXT_WIDTH,
    Estimate,
    Shape,
    find_estimate,
    find_shape,
)
from pusa.tiny.dataset import BACKGROUND_DIMENSIONS, SUBJECT_DIMENSIONS
from pusa.train.engine import TARGETS

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


@pytest.mark.parametrize("rank", [16, 64])
def test_operations_of_a_lora_are_those_of_peft(rank):
    shape = Shape(dim=256, ffn_dim=640, layers=2)
    inputs = ((1, 16, 3, 16, 16), (1,), (1, 512, 4096))
    counts = []
    for adapted in (False, True):
        model = build(shape)
        if adapted:
            with torch.device("meta"):
                model.add_adapter(LoraConfig(r=rank, target_modules=list(TARGETS)))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(*(torch.empty(s, device="meta") for s in inputs))
        counts.append(counter.get_total_flops())
    assert shape.lora_flops(3 * 8 * 8, 512, rank) == counts[1] - counts[0]


@pytest.mark.parametrize("size", [(81, 480, 832), (17, 96, 128)])
def test_operations_of_the_vae(size):
    """All but attention within a frame, which grows faster than the frame: a hundredth at 720p."""
    frames, height, width = size
    with torch.device("meta"):
        vae = AutoencoderKLWan().eval()
        pixels = torch.empty(1, 3, *size)
        latents = torch.empty(1, 16, count_latent_frames(frames), height // 8, width // 8)
    for function, given, known in (
        (decode_latents, latents, DECODING),
        (encode_pixels, pixels, ENCODING),
    ):
        with FlopCounterMode(display=False) as counter, flash_attention(), torch.no_grad():
            function(vae, given)
        assert known * pixels.numel() / 3 == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_operations_of_the_text_encoder():
    """One of UMT5-XXL's layers, of which there are 24."""
    config = UMT5Config(
        vocab_size=8,
        d_model=TEXT_WIDTH,
        d_kv=64,
        d_ff=10240,
        num_layers=1,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        encoder = UMT5EncoderModel(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(1, 512, dtype=torch.long, device="meta"))
    configured = load_estimate()
    seconds = configured.embedding(1) - TEXT_BYTES / READING
    counted = TEXT_LAYERS * counter.get_total_flops() / (1e12 * configured.gpu.float32)
    assert seconds == pytest.approx(counted)
    embeddings = 256_384 * TEXT_WIDTH  # of its vocabulary
    assert pytest.approx(4 * (TEXT_PARAMETERS + embeddings), rel=0.002) == TEXT_BYTES


def load_estimate(**sections) -> Estimate:
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    for section, keys in sections.items():
        config[section] |= keys
    return find_estimate(read_config(config))


def test_every_kind_of_gpu_has_a_speed():
    assert {*GPUS} == {*get_args(GpuKind)}


def test_without_a_kind_of_gpu_nothing_is_estimated():
    assert load_estimate(cost={"gpu": None}) is None
    assert load_estimate(model={"repo": "a/b", "path": "none"}) is None


def test_a_video_is_its_passes_and_its_pixels():
    """Passes in bfloat16, VAE in float32; without guidance half of the passes."""
    estimate = load_estimate()
    ten, twenty = (estimate.video(Setting(model="base", task="i2v", steps=n)) for n in (10, 20))
    passes = 20 * KNOWN_SHAPES[WAN].forward_flops(21 * 45 * 80, 512) / 300e12
    assert twenty - ten == pytest.approx(passes)
    pixels = (DECODING * 81 + ENCODING) * 720 * 1280 / 45e12
    assert ten - passes == pytest.approx(pixels)
    unguided = load_estimate(sample={"guidance_scale": 1.0})
    assert unguided.video(Setting(model="base", task="i2v", steps=20)) == pytest.approx(ten)
    assert estimate.video(Setting(model="still", task="i2v")) == 0
    slower = load_estimate(cost={"gpu": "A100"})
    assert slower.video(Setting(model="base", task="i2v", steps=10)) > 2 * ten


def test_a_job_reads_the_base_and_merges_the_lora():
    estimate, parameters = load_estimate(), KNOWN_SHAPES[WAN].parameters
    base = Setting(model="base", task="i2v", steps=10)
    lora = replace(base, model="pusa", rank=512, iteration=900, alpha=1.4, seed=0)
    reading = 4 * parameters / READING
    assert estimate.sampling_job(base) == reading
    assert estimate.sampling_job(lora) == reading + 2 * 512 * parameters / MERGING


def test_a_training_reads_the_base_on_each_gpu():
    estimate = load_estimate()
    runs = [Run(name="a", model="pusa", rank=512, seed=0, iterations=(n,)) for n in (100, 200)]
    short, long = map(estimate.training, runs)
    assert 2 * short - long == pytest.approx(8 * 4 * KNOWN_SHAPES[WAN].parameters / READING)


def test_dimensions_that_a_prompt_counts_for():
    scored = [
        len({*found} - {"temporal_flickering"})
        for found in (SUBJECT_DIMENSIONS, BACKGROUND_DIMENSIONS)
    ]
    assert scored == [SCORED["subject"], SCORED["background"]]
    assert SCORED["camera"] == 1
    samples = load_estimate().config.sample.samples
    seconds = load_estimate().scoring({"subject": 2, "background": 1, "camera": 3})
    assert seconds == pytest.approx(samples * (12 + 4 + 3) * 5, rel=0.01)  # five a dimension
