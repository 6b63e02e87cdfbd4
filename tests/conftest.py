"""A tiny random model, rendered clips and a prompt suite, made once for all tests."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests state tolerances for the CPU
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)

from pusa.config import Size
from pusa.data.cache import cache_latents, cache_prompts
from pusa.data.suite import read_suite
from pusa.models.text import load_text_encoder
from pusa.tiny.dataset import write_dataset, write_suite
from pusa.tiny.text import TEXT_DIM, TEXT_TOKENS, write_text_encoder

torch.set_num_threads(1)

#: Three latent frames of 8x8 in 16 channels.
SIZE = Size(frames=9, height=64, width=64)
CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Fill every parameter with noise large enough that each of them shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise + (not name.endswith("bias")))


def build_transformer(seed: int = 0) -> WanTransformer3DModel:
    transformer = WanTransformer3DModel(**CONFIG)
    randomise(transformer, seed)
    return transformer


def build_vae() -> AutoencoderKLWan:
    """As `pusa.tiny.vae.build_vae`, narrower; its latents have a mean and a scale to remove."""
    vae = AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=16,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=8,
        latents_mean=torch.linspace(-0.5, 0.5, 16).tolist(),
        latents_std=torch.linspace(0.5, 2.0, 16).tolist(),
    )
    randomise(vae, 1)
    return vae


@pytest.fixture(scope="session")
def size():
    return SIZE


@pytest.fixture(scope="session")
def new_transformer():
    """A function that builds the base transformer, with other weights for another seed."""
    return build_transformer


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A whole text-to-video model folder, random, in diffusers' format."""
    folder = tmp_path_factory.mktemp("model")
    write_text_encoder(folder)
    tokenizer, encoder = load_text_encoder(folder)
    WanPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=build_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer=build_transformer(),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def baseline(tmp_path_factory, model):
    """A whole image-to-video model folder without an image encoder, random, as Wan2.2-I2V's."""
    folder = tmp_path_factory.mktemp("baseline")
    tokenizer, encoder = load_text_encoder(model)
    transformer = WanTransformer3DModel(**CONFIG | {"in_channels": 36})
    randomise(transformer, 2)
    WanImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=build_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Six captioned clips."""
    folder = tmp_path_factory.mktemp("dataset")
    write_dataset(folder, stream="lora", clips=6)
    return folder


@pytest.fixture(scope="session")
def suite(tmp_path_factory):
    """A suite of two subject, two background and nine camera prompts, with references."""
    folder = tmp_path_factory.mktemp("suite")
    write_suite(folder, subject=2, background=2, camera=9)
    return folder


@pytest.fixture(scope="session")
def prompts(suite):
    return read_suite(suite, height=SIZE.height, width=SIZE.width)


@pytest.fixture(scope="session")
def latent_cache(tmp_path_factory, dataset, model):
    out = tmp_path_factory.mktemp("cache")
    cache_latents(dataset, model, out, size=SIZE, text_tokens=TEXT_TOKENS)
    return out


@pytest.fixture(scope="session")
def prompt_cache(tmp_path_factory, prompts, model):
    out = tmp_path_factory.mktemp("prompts") / "prompts.safetensors"
    cache_prompts({p.prompt for p in prompts}, model, out, text_tokens=TEXT_TOKENS)
    return out


def pytest_collection_modifyitems(items):
    """Put first what waits for Slurm most of its time, so that the rest runs beside it.

    Then the file that takes longest, which would otherwise be left to one worker at the end.
    """

    def place(item):
        return item.get_closest_marker("slurm") is None, item.path.name != "test_workflow.py"

    items.sort(key=place)
