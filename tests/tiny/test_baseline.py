import shutil

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline

from pusa.data.dataset import read_metadata
from pusa.data.video import read_video
from pusa.models.load import encode_pixels, frames_to_pixels, load_vae
from pusa.tiny.baseline import encode_conditions, train_baseline, widen_input
from pusa.tiny.text import TEXT_TOKENS


def conditions_of(model, files, size):
    pipeline = WanImageToVideoPipeline.from_pretrained(
        model, text_encoder=None, tokenizer=None, transformer=None
    )
    return encode_conditions(pipeline, files, size)


@pytest.fixture(scope="module")
def files(dataset):
    return [clip.path for clip in read_metadata(dataset)[:2]]


@pytest.fixture(scope="module")
def conditions(model, files, size):
    return conditions_of(model, files, size)


def test_conditions_are_mask_image_and_grey(conditions, model, files):
    assert conditions.shape == (2, 4 + 16, 3, 8, 8)
    assert (conditions[:, :4, 0] == 1).all()
    assert (conditions[:, :4, 1:] == 0).all()
    vae = load_vae(model)
    for file, condition in zip(files, conditions, strict=True):
        clip = frames_to_pixels(read_video(file)[None, :9])
        clip[:, :, 1:] = 0  # grey
        torch.testing.assert_close(condition[4:], encode_pixels(vae, clip)[0])


@pytest.fixture
def inputs(size):
    torch.manual_seed(0)
    return {
        "timestep": torch.tensor([700.0, 50.0]),
        "encoder_hidden_states": torch.randn(2, TEXT_TOKENS, 64),
        "return_dict": False,
    }


def test_grey_frames_and_mask_change_nothing_at_first(new_transformer, inputs):
    base, grey = new_transformer(), torch.linspace(-1, 1, 16)
    wide = widen_input(base, grey)
    assert wide.config.in_channels == 36
    noisy = torch.randn(2, 16, 3, 8, 8)
    mask = torch.randint(2, (2, 4, 3, 8, 8)).float()
    condition = grey[:, None, None, None].expand(2, -1, 3, 8, 8)
    with torch.no_grad():
        expected = base(noisy, **inputs)[0]
        found = wide(torch.cat([noisy, mask, condition], dim=1), **inputs)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_image_is_seen_from_the_first_step(new_transformer, inputs):
    """Of noisy latents and image, less the grey, the base sees the sum."""
    base, grey = new_transformer(), torch.linspace(-1, 1, 16)
    noisy, image = torch.randn(2, 2, 16, 3, 8, 8)
    with torch.no_grad():
        expected = base(noisy + image - grey[:, None, None, None], **inputs)[0]
        mask = torch.zeros(2, 4, 3, 8, 8)
        found = widen_input(base, grey)(torch.cat([noisy, mask, image], dim=1), **inputs)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def options(latent_cache, model, size):
    return {"cache": latent_cache, "model": model, "size": size, "steps": 2, "seed": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, dataset, options):
    """A baseline trained on all but the last two clips, which are not even there."""
    folder = tmp_path_factory.mktemp("tiny_baseline")
    shutil.copytree(dataset, folder / "dataset")
    for clip in read_metadata(folder / "dataset")[-2:]:
        clip.path.unlink()
    checkpoint = folder / "checkpoint.safetensors"
    train_baseline(
        folder / "dataset",
        out=folder / "out",
        validation_clips=2,
        checkpoint=checkpoint,
        **options,
    )
    assert not checkpoint.exists()
    return folder / "out"


def test_folder_is_complete_and_all_weights_are_trained(trained, new_transformer):
    pipeline = WanImageToVideoPipeline.from_pretrained(trained)
    assert pipeline.tokenizer("a red circle")["input_ids"]
    weights = pipeline.transformer.state_dict()
    assert weights["patch_embedding.weight"].shape[1] == 36
    base = new_transformer().half().float().state_dict()
    kept = [
        name
        for name, before in base.items()
        if name != "patch_embedding.weight" and torch.equal(weights[name].float(), before)
    ]
    assert not kept


def test_trained_baseline_makes_a_video(trained):
    pipeline = WanImageToVideoPipeline.from_pretrained(trained)
    pipeline.set_progress_bar_config(disable=True)
    (video,) = pipeline(
        torch.zeros(1, 3, 64, 64),
        prompt="a red circle",
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=1,
        max_sequence_length=TEXT_TOKENS,
    ).frames
    assert video.shape == (9, 64, 64, 3)
    assert np.isfinite(video).all()


def test_no_clip_left(tmp_path, dataset, options):
    message = (
        "holds 6 clips, expected more than the 6 of train.validation_clips, with other captions"
    )
    with pytest.raises(ValueError, match=message):
        train_baseline(
            dataset,
            out=tmp_path / "out",
            validation_clips=6,
            checkpoint=tmp_path / "checkpoint.safetensors",
            **options,
        )
