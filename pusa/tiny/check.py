"""How good the tiny model's autoencoder is, on clips that it was not trained on."""

from pathlib import Path

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio

from pusa.models.load import (
    decode_latents,
    encode_pixels,
    frames_to_pixels,
    load_vae,
    pixels_to_frames,
)
from pusa.tiny import world


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
