"""Videos as the project makes them: with noise that is a function of seed, prompt and sample."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from diffusers import WanPipeline

from pusa.config import VideoSettings
from pusa.models.load import latent_shape
from pusa.models.text import count_text_tokens, encode_prompts
from pusa.sample.pipeline import PusaPipeline
from pusa.sample.scheduler import paper_scheduler
from pusa.sampler import noise_for

#: Embedding of a prompt, ``(text_tokens, dim)``.
Embed = Callable[[str], torch.Tensor]


def prompt_encoder(pipeline: WanPipeline) -> Embed:
    """Embeddings by a pipeline's own encoder; those of late are not made again."""
    length = count_text_tokens(pipeline.tokenizer)

    @lru_cache(maxsize=16)
    def embed(prompt: str) -> torch.Tensor:
        # One by one, as the last bits depend on what a prompt is encoded with.
        return encode_prompts(pipeline.tokenizer, pipeline.text_encoder, [prompt], length)[0].cpu()

    return embed


@torch.no_grad()
def sample_frames(
    pipeline: PusaPipeline,
    prompts: Sequence[str],
    settings: VideoSettings,
    *,
    embed: Embed,
    samples: Sequence[int] | None = None,
    guidance_scale_2: float | None = None,
    **given: Any,
) -> np.ndarray:
    """Make the videos of a batch, by the paper's scheduler.

    Args:
        samples: decide the noise, together with prompts and seed; 0 each if absent.
        guidance_scale_2: of the low-noise expert; as the other's if None.
        given: ``image`` or ``conditions`` of the pipeline.

    Returns:
        ``uint8`` ``(prompts, frames, height, width, 3)``.

    Raises:
        FloatingPointError: if the model's output is not finite.
    """
    shape = latent_shape(pipeline.vae, settings)
    samples = samples or [0] * len(prompts)
    noise = [noise_for(settings.seed, p, s, shape) for p, s in zip(prompts, samples, strict=True)]
    guided = max(settings.guidance_scale, guidance_scale_2 or 1) > 1
    pipeline.scheduler = paper_scheduler(settings.shift)
    videos = pipeline(
        height=settings.height,
        width=settings.width,
        num_frames=settings.frames,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        guidance_scale_2=guidance_scale_2,
        latents=torch.stack(noise),
        prompt_embeds=torch.stack([embed(prompt) for prompt in prompts]),
        negative_prompt_embeds=embed(settings.negative_prompt)[None] if guided else None,
        **given,
    ).frames
    if not np.isfinite(videos).all():
        raise FloatingPointError("the VAE's output is not finite; try float32")
    return (255 * videos).round().astype(np.uint8)
