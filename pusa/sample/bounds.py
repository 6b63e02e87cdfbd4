"""Videos that no model makes: what they score bounds what a score can mean.

A picture that stands still keeps to its image better than any video, and the true continuation is
what a perfect model would make.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from pusa.config import Outputs, Size
from pusa.data.suite import SuitePrompt, read_suite
from pusa.digests import digest_folder
from pusa.sample.conditioning import Placement, place, read_conditions
from pusa.sample.loop import MakeBatch, Request, list_videos, make_videos, plan_videos


def sample_bound(
    bound: str,
    suite: str | Path,
    prompts: Sequence[SuitePrompt],
    size: Size,
    *,
    samples: int,
    model: str | Path,
    out: str | Path,
    device: str,
) -> pd.DataFrame:
    """Write ``out/<index>-<sample>.mp4`` for every prompt and sample; the samples are alike.

    Args:
        bound: of `pusa.experiments.BOUNDS`: ``still``, the prompt's image in every frame;
            ``truth``, the true continuation that the suite has; ``truth_vae``, the same after
            encoding and decoding; ``shuffled``, that of the next prompt with another image.
        prompts: those of the suite that are wanted.
        model: whose VAE is used.

    Returns:
        A row for each video, as `pusa.data.manifest.read_manifests` reads them.

    Raises:
        FileNotFoundError: if the suite has no true continuations, and they are needed.
        ValueError: if all prompts have one image, and another's continuation is wanted.
    """
    everything = read_suite(suite, height=size.height, width=size.width)
    shown = {
        prompt.index: _source(bound, Path(suite), prompt, everything, size) for prompt in prompts
    }
    wanted = [(prompt, sample) for prompt in prompts for sample in range(samples)]
    requests = [
        Request(
            name=Path(prompt.video_name(sample)).stem,
            prompt=prompt.prompt,
            sample=sample,
            placements=shown[prompt.index],
        )
        for prompt, sample in wanted
    ]
    origin = {"bound": bound}
    if bound == "truth_vae":
        origin["vae"] = digest_folder(Path(model) / "vae")
    planned = plan_videos(requests, size, out, origin=origin, outputs=Outputs(overwrite=True))
    make_videos(planned, partial(_load, bound, size, model, device), device=device)
    return list_videos(requests, [prompt.index for prompt, _ in wanted], out, device)


def _source(
    bound: str, suite: Path, prompt: SuitePrompt, everything: list[SuitePrompt], size: Size
) -> tuple[Placement, ...]:
    """The frames that are shown for a prompt."""
    if bound == "still":
        return place(prompt.image, [(1, 1, 0.0)])
    if bound == "shuffled":
        later = everything[prompt.index + 1 :] + everything[: prompt.index]
        others = [other for other in later if other.image != prompt.image]
        if not others:
            raise ValueError(f"{suite}: all prompts have one image, expected another to take")
        prompt = others[0]
    return place(suite / "reference" / prompt.reference_name, [(1, size.frames, 0.0)])


def _load(bound: str, size: Size, model: str | Path, device: str) -> MakeBatch:
    through_vae = _load_vae(model, device) if bound == "truth_vae" else np.array

    def make(batch: Sequence[Request]) -> list[np.ndarray]:
        clips = [read_conditions(request.placements, size)[0].pixels for request in batch]
        if bound == "still":
            return [np.repeat(clip, size.frames, axis=0) for clip in clips]
        return list(through_vae(clips))

    return make


def _load_vae(model: str | Path, device: str) -> Callable[[list[np.ndarray]], np.ndarray]:
    """What encodes clips and decodes them again."""
    # Seconds, for one bound alone.
    from pusa.models.load import (
        decode_latents,
        encode_pixels,
        frames_to_pixels,
        load_vae,
        pixels_to_frames,
    )

    vae = load_vae(model).to(device)

    def through_vae(clips: list[np.ndarray]) -> np.ndarray:
        latents = encode_pixels(vae, frames_to_pixels(np.stack(clips)).to(device))
        return pixels_to_frames(decode_latents(vae, latents))

    return through_vae
