"""The model that is shipped: complete, small, loaded by diffusers' own calls, and good."""

from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline

from pusa.models.folder import check_model_folder
from pusa.models.lora import read_merged
from pusa.tiny.check import reconstruction_psnr

MODEL = Path(__file__).parents[2] / "pusa/tiny/model"


def test_complete_and_small():
    check_model_folder(MODEL)
    assert sum(f.stat().st_size for f in MODEL.rglob("*") if f.is_file()) <= 12e6


def test_a_plain_base():
    assert read_merged(MODEL / "transformer") == {}


def test_autoencoder_is_sharp_on_unseen_clips():
    mean, worst = reconstruction_psnr(MODEL, clips=8)
    assert mean > 30 and worst > 25


def test_diffusers_own_pipeline_makes_a_video():
    pipeline = WanPipeline.from_pretrained(MODEL)
    pipeline.set_progress_bar_config(disable=True)
    video = pipeline(
        "a red circle moves slowly left over stripes, camera static",
        height=64,
        width=64,
        num_frames=33,
        num_inference_steps=8,
        guidance_scale=3.0,
        max_sequence_length=20,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames[0]
    assert video.shape == (33, 64, 64, 3)
    # somewhere in every frame there is a red that no texture has
    red = video[..., 0] - video[..., 1:].max(-1)
    assert red.reshape(33, -1).max(1) == pytest.approx(0.8, abs=0.35)
