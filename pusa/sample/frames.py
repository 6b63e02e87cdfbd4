"""From prompts and conditions to frames, as every video is made but the baseline's."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from pusa.config import VideoSettings
from pusa.flow import sigma_grid
from pusa.models.load import decode_latents, latent_shape, pixels_to_frames
from pusa.sample.conditioning import Condition, encode_conditions
from pusa.sampler import LowNoiseExpert, Velocity, noise_for, sample_latents


class Wanted(NamedTuple):
    """A video of a batch."""

    prompt: str  # decides the noise, together with seed and sample
    sample: int
    conditions: Sequence[Condition]
    embeds: torch.Tensor  # of the prompt, (text_tokens, dim)


def sample_frames(
    vae: AutoencoderKLWan,
    velocity: Velocity,
    settings: VideoSettings,
    batch: Sequence[Wanted],
    *,
    negative_embeds: torch.Tensor | None,
    device: torch.device | str,
    low_noise: LowNoiseExpert | None = None,
    on_step: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Make the videos of a batch (Algorithm 1), which are given the same latent frames.

    Args:
        negative_embeds: of the negative prompt, ``(text_tokens, dim)``; unused without guidance.
        device: where all parts compute, which an offloaded one does not lie on.

    Returns:
        ``uint8`` ``(batch, frames, height, width, 3)``.

    Raises:
        FloatingPointError: if the model's output is not finite.
    """
    shape = latent_shape(vae, settings)
    encoded = [encode_conditions(vae, v.conditions, shape, device=device) for v in batch]
    noise = torch.stack([noise_for(settings.seed, v.prompt, v.sample, shape) for v in batch])
    if negative_embeds is not None:
        negative_embeds = negative_embeds.to(device).expand(len(batch), -1, -1)
    latents = sample_latents(
        velocity,
        noise.to(device),
        sigma_grid(settings.steps, settings.shift),
        multipliers=encoded[0][1],
        condition=torch.cat([latents for latents, _ in encoded]).to(device),
        prompt_embeds=torch.stack([v.embeds for v in batch]).to(device),
        negative_embeds=negative_embeds,
        guidance_scale=settings.guidance_scale,
        low_noise=low_noise,
        on_step=on_step,
    )
    if not latents.isfinite().all():
        raise FloatingPointError(
            "the model's output is not finite; try float32, or a smaller lora_scale"
        )
    return pixels_to_frames(decode_latents(vae, latents))
