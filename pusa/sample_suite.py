"""Batch generation: the videos of a prompt suite under one setting, resumable."""

from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from tqdm import tqdm

from pusa.cache import PromptCache
from pusa.clip import ClipSize, count_latent_frames
from pusa.device import describe_device
from pusa.flow import sigma_grid
from pusa.lora import fingerprint, read_merged
from pusa.model_folder import digest_files
from pusa.models import (
    decode_latents,
    encode_pixels,
    frames_to_pixels,
    load_transformer,
    load_vae,
    pixels_to_frames,
)
from pusa.sampler import model_velocity, noise_for, sample_latents
from pusa.suite import SuitePrompt, load_image
from pusa.video import read_settings, write_video

Task = Literal["i2v", "t2v"]


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """What decides a video, apart from the model and the prompt."""

    size: ClipSize
    steps: int
    shift: float  # of the sigma grid
    guidance_scale: float
    seed: int
    task: Task = "i2v"


def generate_suite(
    prompts: list[SuitePrompt],
    samples: int,
    settings: SampleSettings,
    *,
    model: str | Path,
    transformer: str | Path,
    prompt_cache: str | Path,
    out: str | Path,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> pd.DataFrame:
    """Write ``out/<index>-<sample>.mp4`` for every prompt and sample.

    A video that an earlier, interrupted run finished with the same settings is kept.

    Args:
        transformer: transformer folder, the base's own or a merged one; VAE comes from
            ``model``.

    Returns:
        One row per video: ``file, index, prompt, sample``, and the ``device`` of this call.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    embeds = PromptCache(prompt_cache)
    origin = {
        "transformer": fingerprint(transformer),
        "lora": read_merged(transformer),
        "vae": digest_files(Path(model) / "vae"),
        "dtype": str(dtype),
        "negative_prompt": embeds.negative_prompt,
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

    if todo:
        vae = load_vae(model).to(device)  # float32, as the training latents were encoded
        velocity = model_velocity(load_transformer(transformer, dtype).to(device))
    with tqdm(
        total=len(rows), initial=len(rows) - len(todo), unit="video", mininterval=2
    ) as progress:
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            latents = _sample_batch(batch, settings, vae, velocity, embeds, device)
            frames = pixels_to_frames(decode_latents(vae, latents))
            for (prompt, sample, record), video in zip(batch, frames, strict=True):
                write_video(out / prompt.video_name(sample), video, record)
            progress.update(len(batch))
    table = pd.DataFrame(rows, columns=["file", "index", "prompt", "sample"])
    return table.assign(device=describe_device(device))


def _sample_batch(batch, settings: SampleSettings, vae, velocity, embeds, device) -> torch.Tensor:
    size = settings.size
    frames = count_latent_frames(size.frames)
    images = torch.cat(
        [
            frames_to_pixels(load_image(p.image, height=size.height, width=size.width)[None, None])
            for p, _, _ in batch
        ]
    ).to(device, vae.dtype)
    first = encode_pixels(vae, images)  # (batch, channels, 1, rows, columns)
    shape = (first.shape[1], frames, *first.shape[3:])
    noise = torch.stack([noise_for(settings.seed, p.prompt, s, shape) for p, s, _ in batch])
    condition = torch.zeros_like(noise)
    multipliers = torch.ones(frames)
    if settings.task == "i2v":
        condition[:, :, :1] = first.cpu()
        multipliers[0] = 0
    negative = embeds[embeds.negative_prompt]
    return sample_latents(
        velocity,
        noise.to(device),
        sigma_grid(settings.steps, settings.shift),
        multipliers=multipliers,
        condition=condition.to(device),
        prompt_embeds=torch.stack([embeds[p.prompt] for p, _, _ in batch]).to(device),
        negative_embeds=negative.expand(len(batch), -1, -1).to(device),
        guidance_scale=settings.guidance_scale,
    )
