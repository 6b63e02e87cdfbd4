import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pusa.config import VideoSettings
from pusa.data.video import write_video
from pusa.models.load import decode_latents
from pusa.models.lora import LoraInfo, save_lora
from pusa.sample import pipeline


@pytest.fixture(scope="session")
def settings(size):
    """Of a video of the tests' size in two steps."""
    return VideoSettings(**size.model_dump(), steps=2)


@pytest.fixture(scope="session")
def changed(settings):
    """A function that gives these settings with some changes."""
    return lambda **changes: settings.part(VideoSettings, **changes)


@pytest.fixture
def decoded(monkeypatch):
    """The latents of every batch that is decoded."""
    seen = []

    def recording(vae, latents):
        seen.append(latents)
        return decode_latents(vae, latents)

    monkeypatch.setattr(pipeline, "decode_latents", recording)
    return seen


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """Two images and a clip of eleven frames, of sizes other than the video's."""
    folder = tmp_path_factory.mktemp("media")
    pixels = np.random.default_rng(0).integers(0, 256, (11, 6, 8, 3)).astype(np.uint8)
    textures = pixels.repeat(16, axis=1).repeat(16, axis=2)
    files = {name: folder / f"{name}.png" for name in ("image", "other")}
    for frame, file in zip(textures, files.values(), strict=False):
        Image.fromarray(frame).save(file)
    write_video(folder / "clip.mp4", textures)
    return {**files, "clip": folder / "clip.mp4"}


@pytest.fixture(scope="session")
def write_lora(model):
    """A function that writes a random LoRA on q and the first feed-forward linear of each block."""

    def write(file, *, seed=0, rank=3, alpha=6, vectorized=True, spoil=None):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        weights = load_file(model / "transformer/diffusion_pytorch_model.safetensors")
        for name, weight in weights.items():
            if name.endswith(("attn1.to_q.weight", "ffn.net.0.proj.weight")):
                rows, columns = weight.shape
                layer = name.removesuffix(".weight")
                down = torch.randn(rank, columns, generator=generator) / columns**0.5
                tensors[f"{layer}.lora_A.weight"] = down
                tensors[f"{layer}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
        if spoil:
            spoil(tensors)
        info = LoraInfo(
            rank=rank,
            lora_alpha=alpha,
            targets=("attn1.to_q", "ffn.net.0.proj"),
            base=None,
            iteration=None,
            p_async=None,
            vectorized=vectorized,
        )
        save_lora(file, tensors, info)
        return str(file)

    return write


@pytest.fixture(scope="session")
def lora(write_lora, tmp_path_factory):
    return write_lora(tmp_path_factory.mktemp("lora") / "a.safetensors")


@pytest.fixture(scope="session")
def pair(model, new_transformer, tmp_path_factory):
    """A model folder in Wan2.2's manner: two experts, and a boundary between them."""
    folder = tmp_path_factory.mktemp("pair") / "model"
    shutil.copytree(model, folder)
    new_transformer(7).save_pretrained(folder / "transformer_2")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.9}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
