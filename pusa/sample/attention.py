"""Attention between frames while a video is made (Figure 4), of ours or of the baseline."""

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pusa.config import AttentionSettings, Weights
from pusa.flow import sigma_grid
from pusa.models.attention import (
    attention_of_means,
    first_frame_mass,
    frame_attention,
    maps_at_steps,
)
from pusa.models.load import latent_shape
from pusa.models.text import (
    check_prompts,
    count_text_tokens,
    encode_prompts,
    load_text_encoder,
    load_tokenizer,
)
from pusa.sample.baseline import continue_image, load_baseline
from pusa.sample.conditioning import given_frames, place, read_conditions
from pusa.sample.frames import prompt_encoder, sample_frames
from pusa.sample.origin import describe_baseline, describe_model
from pusa.sample.pipeline import load_pipeline
from pusa.sample.tasks import TASKS
from pusa.sampler import noise_for


def measure_attention(
    prompt: str,
    image: str | Path,
    settings: AttentionSettings,
    *,
    model: str | Path,
    weights: Weights,
    baseline: str | Path | None,
    device: str,
) -> tuple[dict[int, torch.Tensor], pd.DataFrame, dict[str, Any]]:
    """How much latent frames attend to each other at some steps of a video from an image.

    Args:
        model: text-to-video folder, whose text encoder serves a baseline too.
        baseline: image-to-video folder, sampled instead by diffusers' own pipeline and scheduler.

    Returns:
        Maps ``(frames, frames)`` by step, the table of `pusa.models.attention.first_frame_mass`,
        and how they were made.

    Raises:
        FileNotFoundError, ValueError: if a file or the prompt cannot be used.
    """
    if baseline and weights != Weights(dtype=weights.dtype):
        raise ValueError("--baseline is a model of its own, found it with --lora or --transformer")
    placements = place(Path(image), TASKS["i2v"].given(settings.frames))
    conditions = read_conditions(placements, settings)
    tokenizer = load_tokenizer(model)
    length = count_text_tokens(tokenizer)
    check_prompts(tokenizer, [prompt], length, negative_prompt=settings.negative_prompt)
    if baseline:
        origin = describe_baseline(baseline, weights.dtype)
        pipeline = load_baseline(baseline, weights.dtype, device)
        _, encoder = load_text_encoder(model, getattr(torch, weights.dtype))
        texts = [prompt, settings.negative_prompt]
        positive, negative = encode_prompts(tokenizer, encoder.to(device), texts, length)
        del encoder
        sample = partial(
            continue_image,
            pipeline,
            conditions[0].pixels[0],
            noise_for(settings.seed, prompt, 0, latent_shape(pipeline.vae, settings)),
            settings,
            prompt_embeds=positive,
            negative_embeds=negative,
        )
    else:
        origin = describe_model(model, weights)
        pipeline = load_pipeline(model, weights, device)
        sample = partial(
            sample_frames,
            pipeline,
            [prompt],
            settings,
            embed=prompt_encoder(pipeline),
            conditions=conditions,
        )
    maps = maps_at_steps(
        sample,
        pipeline.transformer,
        settings.looked_at,
        guidance=settings.guidance_scale > 1,
        block=settings.block,
        measure=attention_of_means if settings.as_authors else frame_attention,
    )
    # The baseline's scheduler knows its levels when it has run.
    sigmas = pipeline.scheduler.sigmas if baseline else sigma_grid(settings.steps, settings.shift)
    record = {
        "prompt": prompt,
        "steps_total": settings.steps,
        "seed": settings.seed,
        "given": given_frames(placements),
        "as_authors": settings.as_authors,
        "block": settings.block % len(pipeline.transformer.blocks),
        "guidance_scale": settings.guidance_scale,
        "frames": settings.frames,
        "height": settings.height,
        "width": settings.width,
        "origin": origin,
    }
    return maps, first_frame_mass(maps, sigmas), record
