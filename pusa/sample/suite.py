"""The videos of a prompt suite under one setting: in batches, from embeddings in a cache."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pusa.config import (
    Outputs,
    SampleSwitches,
    SuiteSettings,
    Switches,
    VideoSettings,
    Weights,
)
from pusa.data.cache import PromptCache
from pusa.data.suite import SuitePrompt
from pusa.models.load import latent_shape, load_merged, load_transformer, load_vae
from pusa.models.lora import open_merge
from pusa.sample.conditioning import place, read_conditions
from pusa.sample.loop import MakeBatch, Request, list_videos, make_videos, plan_videos
from pusa.sample.origin import describe_baseline, describe_model
from pusa.sample.switches import check_switches, use_switches
from pusa.sample.tasks import TASKS
from pusa.sampler import noise_for


def sample_suite(
    prompts: list[SuitePrompt],
    settings: SuiteSettings,
    *,
    model: str | Path,
    transformer: str | Path | None,
    lora: tuple[str | Path, float] | None = None,
    prompt_cache: str | Path,
    out: str | Path,
    switches: SampleSwitches,
    device: str,
) -> pd.DataFrame:
    """Write ``out/<index>-<sample>.mp4`` for every prompt and sample.

    A video that an earlier, interrupted run finished with the same settings is kept, and one with
    other settings is made anew.

    Args:
        model: a text-to-video model, whose VAE is used; without a ``transformer`` an
            image-to-video baseline, sampled as a whole by diffusers' own pipeline.
        transformer: transformer folder, the base's own or another; None for a baseline.
        lora: file and lora_scale of what is merged into it as it is loaded.

    Returns:
        A row for each video, as `pusa.data.manifest.read_manifests` reads them.

    Raises:
        FileNotFoundError: if a folder or cache is missing or incomplete.
        ValueError: if a prompt is not cached, a switch cannot be used, or without a ``transformer``
            the model is not an image-to-video one or the task is another.
    """
    switches = switches.part(Switches)
    check_switches(switches, device)
    embeds = PromptCache(prompt_cache)
    video = settings.part(VideoSettings, negative_prompt=embeds.negative_prompt)
    weights = Weights(transformer=transformer and str(transformer), dtype=settings.dtype)
    if transformer:
        origin, load = describe_model(model, weights), partial(_load_model, lora)
        if lora:
            merge = open_merge(transformer, lora[0], lora_scale=lora[1])
            origin["transformer"]["merged"] = merge.record
    else:
        origin, load = describe_baseline(model, settings.dtype), _load_baseline
        if lora:
            raise ValueError(
                f"{lora[0]} is given without a transformer, expected one to merge into"
            )
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
    planned = plan_videos(
        requests, video, out, origin=origin, outputs=Outputs(overwrite=True), switches=switches
    )
    make_videos(
        planned,
        partial(load, model, weights, video, embeds, switches, device),
        device=device,
        batch_size=settings.batch_size,
        switches=switches,
    )
    return list_videos(requests, [prompt.index for prompt, _ in wanted], out, device)


def _load_model(
    lora: tuple[str | Path, float] | None,
    model: str | Path,
    weights: Weights,
    video: VideoSettings,
    embeds: PromptCache,
    switches: Switches,
    device: str,
) -> MakeBatch:
    # A pipeline of diffusers takes seconds to import, even where all videos are there.
    from pusa.sample.frames import sample_frames
    from pusa.sample.pipeline import PusaPipeline
    from pusa.sample.scheduler import paper_scheduler

    folder, dtype = weights.transformer, getattr(torch, weights.dtype)
    if lora:
        transformer = load_merged(folder, lora[0], lora_scale=lora[1], dtype=dtype)
    else:
        transformer = load_transformer(folder, dtype)
    pipeline = PusaPipeline(
        tokenizer=None,
        text_encoder=None,  # prompts come embedded
        vae=load_vae(model),  # float32, as the training latents were encoded
        transformer=transformer,
        scheduler=paper_scheduler(video.shift),
    ).to(device)
    use_switches(pipeline, switches, device)
    pipeline.set_progress_bar_config(disable=True)

    def make(batch: Sequence[Request]) -> np.ndarray:
        given = [c for r in batch for c in read_conditions(r.placements, video)]
        return sample_frames(
            pipeline,
            [r.prompt for r in batch],
            video,
            embed=embeds.__getitem__,
            samples=[r.sample for r in batch],
            image=[c.pixels[0] for c in given] or None,
        )

    return make


def _load_baseline(
    model: str | Path,
    weights: Weights,
    video: VideoSettings,
    embeds: PromptCache,
    switches: Switches,
    device: str,
) -> MakeBatch:
    from pusa.sample.baseline import continue_image, load_baseline

    pipeline = load_baseline(model, weights.dtype, device)
    use_switches(pipeline, switches, device)
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
