"""Trains the tiny model's video autoencoder, an `AutoencoderKLWan` of 1.4 M parameters.

Like Wan2.1's it has 16 latent channels, compresses space by 8 and time by 4, and is causal
in time: the first frame becomes a latent frame of its own.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import nn

from pusa.models.load import frames_to_pixels
from pusa.tiny.fit import fit

KL_WEIGHT = 1e-4
STATISTICS_CLIPS = 512  # for the latents' mean and standard deviation
#: (share of the steps, frames per clip, clips per batch): space first, then motion.
CURRICULUM = ((0.20, 1, 32), (0.35, 5, 8), (0.25, 9, 5), (0.20, 17, 3))


def build_vae() -> AutoencoderKLWan:
    """A small `AutoencoderKLWan`, initialised so that signals keep their scale."""
    vae = AutoencoderKLWan(
        base_dim=16,
        decoder_base_dim=24,
        z_dim=16,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=8,
    )
    for module in vae.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
    # Start nearly deterministic: the second half of the moments is the log variance.
    nn.init.constant_(vae.quant_conv.bias[16:], -5.0)
    return vae


def train_vae(clips: np.ndarray, out: Path, *, steps: int, checkpoint: Path, device: str) -> None:
    """Train on ``clips`` (``uint8``, (clips, frames, height, width, 3)) and save to ``out``.

    An interrupted training goes on from the file ``checkpoint``, as `pusa.tiny.fit.fit` says, which
    is removed at the end.

    The latents' mean and standard deviation per channel go into the saved config, where
    diffusers' pipelines and our cache look for them.
    """
    torch.manual_seed(0)
    vae = build_vae().to(device)

    def loss_of_step(step: int) -> torch.Tensor:
        rng = np.random.default_rng([0, step])
        frames, batch = _stage(step / steps)
        start = rng.integers(0, clips.shape[1] - frames + 1, batch)
        chosen = rng.integers(0, len(clips), batch)
        pixels = frames_to_pixels(
            np.stack([clips[i, s : s + frames] for i, s in zip(chosen, start, strict=True)])
        ).to(device)
        posterior = vae.encode(pixels).latent_dist
        error = _decode_unclamped(vae, posterior.sample(torch.default_generator)).float() - pixels
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return error.abs().mean() + error.square().mean() + KL_WEIGHT * kl

    fit(
        vae,
        loss_of_step,
        steps=steps,
        muon_lr=0.02,
        adamw_lr=2e-3,
        description="VAE",
        checkpoint=checkpoint,
    )

    with torch.no_grad():
        latents = torch.cat(
            [
                vae.encode(frames_to_pixels(clips[i : i + 16]).to(device)).latent_dist.mean
                for i in range(0, STATISTICS_CLIPS, 16)
            ]
        )
    vae.register_to_config(
        latents_mean=latents.mean((0, 2, 3, 4)).tolist(),
        latents_std=latents.std((0, 2, 3, 4)).tolist(),
    )
    vae.to("cpu", torch.float16).save_pretrained(out)
    checkpoint.unlink()


def _stage(progress: float) -> tuple[int, int]:
    """Frames and clips of the batch at some progress, in [0, 1)."""
    ends = np.cumsum([share for share, _, _ in CURRICULUM])
    stage = min(int(np.searchsorted(ends, progress, side="right")), len(CURRICULUM) - 1)
    return CURRICULUM[stage][1:]


def _decode_unclamped(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """`AutoencoderKLWan.decode` without its final clamp, which would stop gradients."""
    vae.clear_cache()
    hidden = vae.post_quant_conv(latents)
    chunks = []
    for i in range(hidden.shape[2]):
        vae._conv_idx = [0]
        chunks.append(
            vae.decoder(
                hidden[:, :, i : i + 1],
                feat_cache=vae._feat_map,
                feat_idx=vae._conv_idx,
                first_chunk=i == 0,
            )
        )
    vae.clear_cache()
    return unpatchify(torch.cat(chunks, 2), vae.config.patch_size)
