"""How good a tiny model is: at text-to-video, by what its clips show, and its autoencoder."""

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from skimage.metrics import peak_signal_noise_ratio
from tqdm import tqdm

from pusa.config import VideoSettings, Weights
from pusa.models.load import (
    decode_latents,
    encode_pixels,
    frames_to_pixels,
    load_vae,
    pixels_to_frames,
)
from pusa.sample.frames import prompt_encoder, sample_frames
from pusa.sample.pipeline import load_pipeline
from pusa.tiny import world
from pusa.tiny.recognise import Found, recognise

STREAM = 998  # of the captions, no other's
BATCH = 8
EDGES = 0.98  # quantile of the brightness' gradient, where edges are


def check_model(
    model: str | Path, *, clips: int, steps: int, guidance_scale: float, device: str
) -> pd.DataFrame:
    """Make clips of captions that training never saw, and look at what they show.

    Beside them stands what is seen on rendered clips of the same captions: it is what the measure
    itself gets right.

    Returns:
        ``respect, of the model, of rendered clips``: in per cent, the share of clips whose texture,
        camera, shape, colour and motion are those of the caption, and the sharpness of the first
        and of the last frame as a share of the rendered clips'.
    """
    scenes = [
        world.held_out_scene(np.random.default_rng([STREAM, i]), held_out=True)
        for i in range(clips)
    ]
    rendered = [world.render(scene) for scene in scenes]
    made = _make_clips(model, [s.caption for s in scenes], steps, guidance_scale, device)
    shares = [_shares_right(scenes, these) for these in (made, rendered)]
    sharp = [_sharpness(these) for these in (made, rendered)]
    for share, values in zip(shares, sharp, strict=True):
        share |= {
            f"sharpness, {place} frame": 100 * value / truth
            for place, value, truth in zip(("first", "last"), values, sharp[1], strict=True)
        }
    columns = dict(zip(("of the model", "of rendered clips"), shares, strict=True))
    return pd.DataFrame(columns).rename_axis("respect").reset_index()


def _make_clips(
    model: str | Path, captions: list[str], steps: int, guidance_scale: float, device: str
) -> list[np.ndarray]:
    pipeline = load_pipeline(model, Weights(), device)
    pipeline.set_progress_bar_config(disable=True)
    settings = VideoSettings(
        frames=world.FRAMES,
        height=world.SIZE,
        width=world.SIZE,
        steps=steps,
        guidance_scale=guidance_scale,
    )
    embed = prompt_encoder(pipeline)
    batches = [captions[i : i + BATCH] for i in range(0, len(captions), BATCH)]
    batches = tqdm(batches, desc="Making clips", unit="batch")
    return [clip for b in batches for clip in sample_frames(pipeline, b, settings, embed=embed)]


def _shares_right(scenes: list[world.Scene], clips: Iterable[np.ndarray]) -> dict[str, float]:
    """Per cent of the clips that show what their scenes say, by respect."""
    found = [recognise(clip) for clip in tqdm(clips, desc="Looking at clips", unit="clip")]
    shares = {}
    for name in (field.name for field in fields(Found)):
        # What a wall without a shape cannot have is nothing that could be wrong.
        of_all = name in ("texture", "camera")
        right = [
            getattr(f, name) == getattr(scene, name)
            for f, scene in zip(found, scenes, strict=True)
            if of_all or scene.shape
        ]
        shares[name] = 100 * np.mean(right)
    return shares


def _sharpness(clips: list[np.ndarray]) -> tuple[float, float]:
    """Mean strength of the edges in the clips' first and last frames."""
    grey = np.stack([clip[[0, -1]] for clip in clips]).mean(-1)
    strength = np.hypot(*np.gradient(grey, axis=(2, 3)))
    return tuple(np.quantile(strength, EDGES, axis=(2, 3)).mean(0))


@torch.no_grad()
def reconstruction_psnr(model: str | Path, *, clips: int) -> tuple[float, float]:
    """Mean and worst PSNR, in dB, of clips of 33 frames through the autoencoder and back."""
    vae = load_vae(model)
    psnr = []
    for i in range(clips):
        scene = world.sample_scene(np.random.default_rng([999, 0, i]))
        clip = world.render(scene)
        latents = encode_pixels(vae, frames_to_pixels(clip[None]))
        psnr.append(
            peak_signal_noise_ratio(clip, pixels_to_frames(decode_latents(vae, latents))[0])
        )
    return float(np.mean(psnr)), float(np.min(psnr))
