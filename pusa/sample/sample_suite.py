"""Batch generation: the videos of a prompt suite under one setting, resumable."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline
from tqdm import tqdm

from pusa.clip import ClipSize
from pusa.data.cache import PromptCache
from pusa.data.image import load_image
from pusa.data.suite import SuitePrompt
from pusa.data.video import read_settings, write_video
from pusa.flow import sigma_grid
from pusa.models.folder import check_baseline_folder, digest_files
from pusa.models.load import (
    decode_latents,
    latent_shape,
    load_transformer,
    load_vae,
    pixels_to_frames,
)
from pusa.models.lora import fingerprint, read_merged
from pusa.records import describe_device
from pusa.sample.baseline import continue_image, load_baseline
from pusa.sample.conditioning import Condition, encode_conditions
from pusa.sampler import Velocity, model_velocity, noise_for, sample_latents

Task = Literal["i2v", "t2v"]
#: What is given of a video by task: first and last pixel frame from 1, and their noise multiplier.
GIVEN = {"i2v": [[1, 1, 0.0]], "t2v": []}
#: Prompts with the number of the sample.
Batch = list[tuple[SuitePrompt, int]]


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """What decides a video, apart from the model and the prompt."""

    size: ClipSize
    steps: int
    shift: float | None  # of the sigma grid; None for a baseline, which has its own scheduler
    guidance_scale: float
    seed: int
    task: Task = "i2v"


def generate_suite(
    prompts: list[SuitePrompt],
    samples: int,
    settings: SampleSettings,
    *,
    model: str | Path,
    transformer: str | Path | None,
    prompt_cache: str | Path,
    out: str | Path,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> pd.DataFrame:
    """Write ``out/<index>-<sample>.mp4`` for every prompt and sample.

    A video that an earlier, interrupted run finished with the same settings is kept.

    Args:
        model: a text-to-video model, whose VAE is used; without a ``transformer`` an
            image-to-video baseline, sampled as a whole by diffusers' own pipeline.
        transformer: transformer folder, the base's own or a merged one; None for a baseline.

    Returns:
        One row per video: ``file, index, prompt, sample``, and the ``device`` of this call.

    Raises:
        FileNotFoundError: if a folder or cache is missing or incomplete.
        ValueError: if a prompt is not cached, or without a ``transformer`` the model is not an
            image-to-video one or the task is another.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    embeds = PromptCache(prompt_cache)
    if transformer is None:
        check_baseline_folder(model)
        if settings.task != "i2v":
            raise ValueError(f"{model} makes video from an image, but task is {settings.task}")
        settings = replace(settings, shift=None)
        origin = {
            "baseline": fingerprint(Path(model) / "transformer"),
            "scheduler": digest_files(Path(model) / "scheduler"),
        }
    else:
        origin = {"transformer": fingerprint(transformer), "lora": read_merged(transformer)}
    origin |= {
        "vae": digest_files(Path(model) / "vae"),
        "dtype": str(dtype),
        "negative_prompt": embeds.negative_prompt,
        "given": GIVEN[settings.task],
        **asdict(settings),
    }
    rows, todo = [], []
    for prompt in prompts:
        image = sha256(prompt.image.read_bytes()).hexdigest()[:16]
        for sample in range(samples):
            name = prompt.video_name(sample)
            rows.append(
                {"file": name, "index": prompt.index, "prompt": prompt.prompt, "sample": sample}
            )
            record = {"prompt": prompt.prompt, "image": image, "sample": sample, **origin}
            if read_settings(out / name) != record:
                todo.append((prompt, sample, record))

    if todo and transformer is None:
        pipeline = load_baseline(model, dtype, device)
        make_videos = partial(_sample_baseline, pipeline, embeds, settings)
    elif todo:
        vae = load_vae(model).to(device)  # float32, as the training latents were encoded
        velocity = model_velocity(load_transformer(transformer, dtype).to(device))
        make_videos = partial(_sample_frames, vae, velocity, embeds, settings)
    with tqdm(
        total=len(rows), initial=len(rows) - len(todo), unit="video", mininterval=2
    ) as progress:
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            frames = make_videos([(prompt, sample) for prompt, sample, _ in batch])
            for (prompt, sample, record), video in zip(batch, frames, strict=True):
                write_video(out / prompt.video_name(sample), video, record)
            progress.update(len(batch))
    table = pd.DataFrame(rows, columns=["file", "index", "prompt", "sample"])
    return table.assign(device=describe_device(device))


def _sample_frames(
    vae: AutoencoderKLWan,
    velocity: Velocity,
    embeds: PromptCache,
    settings: SampleSettings,
    batch: Batch,
) -> np.ndarray:
    shape = latent_shape(vae, settings.size)
    encoded = [encode_conditions(vae, _conditions(p, settings), shape) for p, _ in batch]
    condition, multipliers = torch.cat([latents for latents, _ in encoded]), encoded[0][1]
    noise = torch.stack([noise_for(settings.seed, p.prompt, s, shape) for p, s in batch])
    negative = embeds[embeds.negative_prompt]
    latents = sample_latents(
        velocity,
        noise.to(vae.device),
        sigma_grid(settings.steps, settings.shift),
        multipliers=multipliers,
        condition=condition.to(vae.device),
        prompt_embeds=torch.stack([embeds[p.prompt] for p, _ in batch]).to(vae.device),
        negative_embeds=negative.expand(len(batch), -1, -1).to(vae.device),
        guidance_scale=settings.guidance_scale,
    )
    return pixels_to_frames(decode_latents(vae, latents))


def _sample_baseline(
    pipeline: WanImageToVideoPipeline, embeds: PromptCache, settings: SampleSettings, batch: Batch
) -> np.ndarray:
    shape = latent_shape(pipeline.vae, settings.size)
    return np.stack(
        [
            continue_image(
                pipeline,
                _read_image(prompt, settings.size),
                noise_for(settings.seed, prompt.prompt, sample, shape),
                size=settings.size,
                prompt_embeds=embeds[prompt.prompt],
                negative_embeds=embeds[embeds.negative_prompt],
                steps=settings.steps,
                guidance_scale=settings.guidance_scale,
            )
            for prompt, sample in batch
        ]
    )


def _conditions(prompt: SuitePrompt, settings: SampleSettings) -> list[Condition]:
    if settings.task == "t2v":
        return []
    image = _read_image(prompt, settings.size)
    return [Condition(image[None], latent_frames=(0,), multipliers=(0.0,))]


def _read_image(prompt: SuitePrompt, size: ClipSize) -> np.ndarray:
    return load_image(prompt.image, height=size.height, width=size.width)
