import shutil

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from pusa.data.cache import PromptCache
from pusa.models.load import latent_shape
from pusa.sample.baseline import continue_image, load_baseline


@pytest.fixture
def image():
    pixels = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3)
    return pixels.astype(np.uint8)


@pytest.fixture
def make(settings, prompts, prompt_cache, image):
    """A function that makes a video of the first prompt of the suite."""
    embeds = PromptCache(prompt_cache)

    def call(pipeline, image=image, guidance_scale=5.0):
        chosen = settings.model_copy(update={"guidance_scale": guidance_scale})
        shape = latent_shape(pipeline.vae, settings)
        noise = torch.randn(shape, generator=torch.manual_seed(0))
        return continue_image(
            pipeline,
            image,
            noise,
            chosen,
            prompt_embeds=embeds[prompts[0].prompt],
            negative_embeds=embeds[""],
        )

    return call


def test_text_encoder_is_not_needed(baseline, size, tmp_path):
    """As it is not downloaded."""
    encoder = shutil.ignore_patterns("text_encoder", "tokenizer")
    folder = shutil.copytree(baseline, tmp_path / "baseline", ignore=encoder)
    pipeline = load_baseline(folder, "bfloat16", "cpu")
    assert latent_shape(pipeline.vae, size) == (16, 3, 8, 8)
    assert pipeline.text_encoder is None
    assert pipeline.tokenizer is None
    assert pipeline.transformer.dtype == torch.bfloat16
    assert pipeline.vae.dtype == torch.float32


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_video_is_the_pipelines(baseline, make, prompts, image, guidance_scale):
    """The complete pipeline, given the words, embeds them by itself."""
    found = make(load_baseline(baseline, "float32", "cpu"), guidance_scale=guidance_scale)
    assert (found.shape, found.dtype) == ((9, 64, 64, 3), np.uint8)
    complete = WanImageToVideoPipeline.from_pretrained(baseline)
    complete.set_progress_bar_config(disable=True)
    (expected,) = complete(
        Image.fromarray(image),
        prompt=prompts[0].prompt,
        negative_prompt="",
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=2,
        guidance_scale=guidance_scale,
        latents=torch.randn((1, 16, 3, 8, 8), generator=torch.manual_seed(0)),
        max_sequence_length=20,
        output_type="np",
    ).frames
    assert np.abs(found - 255 * expected).max() <= 1  # of 255
    assert found.std() > 5


def test_video_depends_on_the_image(baseline, make, image):
    pipeline = load_baseline(baseline, "float32", "cpu")
    other = make(pipeline, image=255 - image)
    assert np.abs(make(pipeline).astype(int) - other).mean() > 1


# Wan2.1-I2V has an image encoder


@pytest.fixture(scope="module")
def with_image_encoder(tmp_path_factory, baseline):
    """A function that writes the baseline with an image encoder of random weights."""

    def write(seed):
        pipeline = WanImageToVideoPipeline.from_pretrained(baseline)
        torch.manual_seed(0)
        config = {**pipeline.transformer.config, "image_dim": 32, "added_kv_proj_dim": 24}
        transformer = WanTransformer3DModel.from_config(config)
        transformer.load_state_dict(pipeline.transformer.state_dict(), strict=False)
        torch.manual_seed(seed)
        vision = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
            initializer_range=1.0,
        )
        pipeline.register_modules(
            transformer=transformer,
            image_encoder=CLIPVisionModel(vision),
            image_processor=CLIPImageProcessor(
                size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
            ),
        )
        folder = tmp_path_factory.mktemp("image_encoder")
        pipeline.save_pretrained(folder)
        return folder

    return write


def test_image_encoder_is_used(with_image_encoder, make):
    one, other = (
        make(load_baseline(with_image_encoder(seed), "float32", "cpu")) for seed in (1, 2)
    )
    assert np.abs(one.astype(int) - other).max() > 1


def test_image_encoder_stays_in_float32(with_image_encoder):
    pipeline = load_baseline(with_image_encoder(1), "bfloat16", "cpu")
    assert pipeline.image_encoder.dtype == torch.float32
    assert pipeline.transformer.dtype == torch.bfloat16
