import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pusa.models.load import (
    decode_latents,
    denormalise_latents,
    encode_pixels,
    frames_to_pixels,
    load_transformer,
    load_vae,
    normalise_latents,
    pixels_to_frames,
)
from pusa.models.text import load_text_encoder, load_tokenizer
from pusa.transformer import VTAWanTransformer3DModel

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def vae(model):
    return load_vae(model)


@pytest.fixture
def pixels(size):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, size.frames, size.height, size.width, generator=generator) * 2 - 1


# Loading


def test_parts_load_ready_for_inference(model):
    transformer = load_transformer(model / "transformer")
    assert isinstance(transformer, VTAWanTransformer3DModel)
    parts = (transformer, load_vae(model))
    assert not any(part.training for part in parts)
    assert all(part.dtype == torch.float32 for part in parts)


def test_dtype_is_taken(model):
    assert load_transformer(model / "transformer", torch.bfloat16).dtype == torch.bfloat16
    assert load_vae(model, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("load", [load_transformer, load_vae])
def test_missing_folder_is_named(tmp_path, load):
    with pytest.raises(FileNotFoundError, match=r"model folder .*nowhere does not exist"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("load", "missing"),
    [
        (load_transformer, r"config\.json"),
        (load_vae, r"vae/config\.json"),
    ],
)
def test_missing_files_are_listed(tmp_path, load, missing):
    with pytest.raises(FileNotFoundError, match=f"lacks {missing}; expected a text-to-video"):
        load(tmp_path)


def test_missing_weights_are_named(tmp_path, model):
    shutil.copy(model / "transformer" / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=f"lacks {WEIGHTS}"):
        load_transformer(tmp_path)


# Latents


def test_normalise_and_back(vae):
    latents = torch.randn(2, 16, 3, 4, 4)
    normal = normalise_latents(vae, latents)
    torch.testing.assert_close(denormalise_latents(vae, normal), latents)
    for channel, (mean, std) in enumerate(
        zip(vae.config.latents_mean, vae.config.latents_std, strict=True)
    ):
        expected = (latents[:, channel] - mean) / std
        torch.testing.assert_close(normal[:, channel], expected)


def test_pixels_and_back():
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3), dtype=np.uint8)
    frames[0, 0, 0, 0] = (0, 128, 255)
    pixels = frames_to_pixels(frames)
    assert pixels.shape == (2, 3, 3, 4, 5)
    assert pixels[0, :, 0, 0, 0].tolist() == pytest.approx([-1, 128 / 127.5 - 1, 1], abs=1e-6)
    assert np.array_equal(pixels_to_frames(pixels), frames)


def test_pixels_out_of_range_are_clamped():
    pixels = torch.tensor([-3.0, 3.0]).view(1, 1, 1, 1, 2).expand(1, 3, 1, 1, 2)
    assert pixels_to_frames(pixels)[0, 0, 0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_latent_shape(vae, pixels):
    assert encode_pixels(vae, pixels).shape == (1, 16, 3, 8, 8)


def test_encoding_is_the_normalised_mode(vae, pixels):
    with torch.no_grad():
        mean = vae.encode(pixels).latent_dist.mean
    first = encode_pixels(vae, pixels)
    torch.testing.assert_close(first, normalise_latents(vae, mean))
    assert torch.equal(encode_pixels(vae, pixels), first)


def test_image_alone_is_the_first_latent_frame(vae, pixels):
    """The VAE is causal: what the sampler pins is what training saw as frame 0."""
    clip, image = encode_pixels(vae, pixels), encode_pixels(vae, pixels[:, :, :1])
    torch.testing.assert_close(image, clip[:, :, :1], rtol=1e-5, atol=1e-5)
    assert (clip[:, :, 1] - clip[:, :, 0]).abs().max() > 0.01


def test_decoding_is_that_of_the_pipeline(vae, pixels):
    latents = encode_pixels(vae, pixels)
    decoded = decode_latents(vae, latents)
    assert decoded.shape == pixels.shape
    # As WanPipeline.__call__ writes it: latents / (1 / std) + mean, then vae.decode.
    mean = torch.tensor(vae.config.latents_mean).view(1, 16, 1, 1, 1)
    std = 1.0 / torch.tensor(vae.config.latents_std).view(1, 16, 1, 1, 1)
    with torch.no_grad():
        expected = vae.decode(latents / std + mean).sample
    torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-4)


def test_a_vae_without_a_tensor_is_refused(model, tmp_path):
    shutil.copytree(model / "vae", tmp_path / "vae")
    tensors = load_file(tmp_path / "vae" / WEIGHTS)
    del tensors["quant_conv.weight"]
    save_file(tensors, tmp_path / "vae" / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=r"vae: its weights lack 1 tensors .*quant_conv\.weight"):
        load_vae(tmp_path)


@pytest.mark.parametrize("key", ["latents_mean", "latents_std"])
def test_statistics_that_are_not_of_every_channel(model, tmp_path, key):
    shutil.copytree(model / "vae", tmp_path / "vae")
    config = tmp_path / "vae/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: [0.5]}))
    with pytest.raises(ValueError, match=f"{key} has 1 numbers, expected one for each of z_dim 16"):
        load_vae(tmp_path)


def test_pixels_that_are_no_number_are_refused():
    with pytest.raises(FloatingPointError, match="VAE's output is not finite"):
        pixels_to_frames(torch.full((1, 3, 1, 2, 2), torch.nan))


@pytest.mark.parametrize(
    ("part", "weights", "load"),
    [
        ("vae", "diffusion_pytorch_model.safetensors", load_vae),
        ("text_encoder", "model.safetensors", load_text_encoder),
        ("transformer", "diffusion_pytorch_model.safetensors", load_transformer),
    ],
)
@pytest.mark.parametrize("kept", [0, 5000])
def test_weights_that_are_cut_off(tmp_path, model, part, weights, load, kept):
    folder = shutil.copytree(model, tmp_path / "model")
    content = (folder / part / weights).read_bytes()
    (folder / part / weights).write_bytes(content[:kept])
    with pytest.raises((ValueError, OSError), match=f"model/{part}"):
        load(folder / part if load is load_transformer else folder)


def test_transformer_of_another_config(tmp_path, model):
    folder = shutil.copytree(model / "transformer", tmp_path / "transformer")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_layers": 9}))
    with pytest.raises(ValueError, match=r"transformer cannot be loaded: its weights lack \d+ ten"):
        load_transformer(folder)


def test_tokenizer_that_is_cut_off(tmp_path, model):
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "tokenizer/tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="model/tokenizer cannot be loaded"):
        load_tokenizer(folder)
