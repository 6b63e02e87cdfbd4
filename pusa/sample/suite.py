"""The videos of a prompt suite under one setting: in batches, from embeddings in a cache."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pusa.config import Outputs, SuiteSettings, VideoSettings, Weights
from pusa.data.cache import PromptCache
from pusa.data.suite import SuitePrompt
from pusa.models.load import latent_shape, load_transformer, load_vae
from pusa.sample.conditioning import place, read_conditions
from pusa.sample.frames import Wanted, sample_frames
from pusa.sample.loop import MakeBatch, Request, list_videos, make_videos, plan_videos
from pusa.sample.origin import describe_baseline, describe_model
from pusa.sample.tasks import TASKS
from pusa.sampler import model_velocity, noise_for


def sample_suite(
    prompts: list[SuitePrompt],
    settings: SuiteSettings,
    *,
    model: str | Path,
    transformer: str | Path | None,
    prompt_cache: str | Path,
    out: str | Path,
    device: str,
) -> pd.DataFrame:
    """Write ``out/<index>-<sample>.mp4`` for every prompt and sample.

    A video that an earlier, interrupted run finished with the same settings is kept, and one with
    other settings is made anew.

    Args:
        model: a text-to-video model, whose VAE is used; without a ``transformer`` an
            image-to-video baseline, sampled as a whole by diffusers' own pipeline.
        transformer: transformer folder, the base's own or a merged one; None for a baseline.

    Returns:
        A row for each video, as `pusa.data.manifest.read_manifests` reads them.

    Raises:
        FileNotFoundError: if a folder or cache is missing or incomplete.
        ValueError: if a prompt is not cached, or without a ``transformer`` the model is not an
            image-to-video one or the task is another.
    """
    embeds = PromptCache(prompt_cache)
    video = settings.part(VideoSettings, negative_prompt=embeds.negative_prompt)
    weights = Weights(transformer=transformer and str(transformer), dtype=settings.dtype)
    if transformer:
        origin, load = describe_model(model, weights), _load_model
    else:
        origin, load = describe_baseline(model, settings.dtype), _load_baseline
        if settings.task != "i2v":
            raise ValueError(f"{model} makes video from an image, but task is {settings.task}")
    origin["negative_embeds"] = embeds.digest(embeds.negative_prompt)
    given = TASKS[settings.task].given(settings.frames)
    wanted = [(prompt, sample) for prompt in prompts for sample in range(settings.samples)]
    requests = [
        Request(
            name=Path(prompt.video_name(sample)).stem,
            prompt=prompt.prompt,
            sample=sample,
            placements=place(prompt.image, given),
            embeds=embeds.digest(prompt.prompt),
        )
        for prompt, sample in wanted
    ]
    planned = plan_videos(requests, video, out, origin=origin, outputs=Outputs(overwrite=True))
    make_videos(
        planned,
        partial(load, model, weights, video, embeds, device),
        device=device,
        batch_size=settings.batch_size,
    )
    return list_videos(requests, [prompt.index for prompt, _ in wanted], out, device)


def _load_model(
    model: str | Path, weights: Weights, video: VideoSettings, embeds: PromptCache, device: str
) -> MakeBatch:
    vae = load_vae(model).to(device)  # float32, as the training latents were encoded
    transformer = load_transformer(weights.transformer, getattr(torch, weights.dtype)).to(device)

    def make(batch: Sequence[Request]) -> np.ndarray:
        items = [
            Wanted(r.prompt, r.sample, read_conditions(r.placements, video), embeds[r.prompt])
            for r in batch
        ]
        return sample_frames(
            vae,
            model_velocity(transformer),
            video,
            items,
            negative_embeds=embeds[video.negative_prompt],
            device=device,
        )

    return make


def _load_baseline(
    model: str | Path, weights: Weights, video: VideoSettings, embeds: PromptCache, device: str
) -> MakeBatch:
    # Nothing else here needs a pipeline of diffusers, whose import takes seconds.
    from pusa.sample.baseline import continue_image, load_baseline

    pipeline = load_baseline(model, weights.dtype, device)
    shape = latent_shape(pipeline.vae, video)

    def make(batch: Sequence[Request]) -> list[np.ndarray]:
        return [
            continue_image(
                pipeline,
                read_conditions(r.placements, video)[0].pixels[0],
                noise_for(video.seed, r.prompt, r.sample, shape),
                video,
                prompt_embeds=embeds[r.prompt],
                negative_embeds=embeds[video.negative_prompt],
            )
            for r in batch
        ]

    return make
