"""Videos of any prompts and given frames, of any length, by the whole pipeline.

A video longer than the model's clips is extended from its own end: each further window is given
the last frames of what is there, as the paper extends a clip (Figures 11 and 12).
"""

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pusa.clip import count_latent_frames
from pusa.config import GenerateSettings, Outputs, Switches, VideoSettings, Weights
from pusa.models.folder import digest_text_encoder, read_part
from pusa.models.text import check_prompts, count_text_tokens, load_tokenizer
from pusa.sample.conditioning import Condition, Placement, read_conditions
from pusa.sample.frames import Embed, prompt_encoder, sample_frames
from pusa.sample.loop import MakeBatch, Request, make_videos, plan_videos
from pusa.sample.origin import check_size, describe_model
from pusa.sample.pipeline import PusaPipeline, load_pipeline
from pusa.sample.switches import check_switches, use_switches

#: Files that are not what is written; a mistake, if one of them is to be a folder's name.
OTHER_FORMATS = (".avi", ".gif", ".mkv", ".mov", ".webm")


def generate(
    requests: Sequence[Request],
    settings: GenerateSettings,
    *,
    model: str | Path,
    weights: Weights,
    out: str | Path,
    outputs: Outputs,
    switches: Switches,
    device: str,
) -> list[Path]:
    """Write ``out/<name>.mp4`` for each request; a single one may be written to ``FILE.mp4``.

    A video that is there with the very same settings is kept, so that an interrupted run goes on.
    In a context-parallel run all processes take part, and the first one writes.

    Args:
        model: text-to-video folder in diffusers' format.
        device: ``cuda`` or ``cpu``.

    Returns:
        The videos, in the order of the requests, and the contact sheet; in a process that does not
        write, nothing.

    Raises:
        FileExistsError: if a file is there that was made otherwise, unless it may be overwritten.
        FileNotFoundError, ValueError: if a file, prompt, placement or switch cannot be used.
            Everything that can be wrong is found before weights are loaded, which takes minutes.
    """
    check_switches(switches, device)
    out = Path(out)
    folder, requests = _place_output(out, list(requests))
    origin = describe_model(model, weights)
    if settings.guidance_scale_2 is not None and "transformer_2" not in origin:
        raise ValueError(
            f"guidance_scale_2 is {settings.guidance_scale_2:g}, but {model} has no transformer_2, "
            "the low-noise expert that it is for"
        )
    origin["text_encoder"] = digest_text_encoder(model)
    check_size(
        settings,
        vae=read_part(Path(model) / "vae", "vae"),
        transformer=read_part(weights.transformer or Path(model) / "transformer", "transformer"),
    )
    tokenizer = load_tokenizer(model)
    check_prompts(
        tokenizer,
        [request.prompt for request in requests],
        count_text_tokens(tokenizer),
        negative_prompt=settings.negative_prompt,
    )
    videos = plan_videos(
        requests, settings, folder, origin=origin, outputs=outputs, switches=switches
    )
    sheet = folder / ("contact_sheet.png" if folder == out else f"{out.stem}_contact_sheet.png")
    finished = all(video.complete for video in videos)
    if outputs.contact_sheet and sheet.exists() and not (finished or outputs.overwrite):
        raise FileExistsError(f"{sheet} exists already, expected --overwrite")
    _warn_of_unconditional_loras(origin, requests)

    writes = not switches.context_parallel or os.environ["RANK"] == "0"

    def load() -> MakeBatch:
        gpu = _join_processes(device) if switches.context_parallel else device
        pipeline = load_pipeline(model, weights, gpu if switches.offload == "none" else "cpu")
        use_switches(pipeline, switches, gpu)
        pipeline.set_progress_bar_config(
            desc="steps", unit="step", position=1, leave=False, disable=None if writes else True
        )
        embed = prompt_encoder(pipeline)
        return lambda batch: [make_video(pipeline, r, settings, embed=embed) for r in batch]

    make_videos(videos, load, device=device, switches=switches, writes=writes)
    if switches.context_parallel and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # PyTorch wants to be told
    if not writes:
        return []
    made = [video.path for video in videos]
    if outputs.contact_sheet:
        from pusa.figures.strips import plot_strips  # and with it matplotlib

        note = f"{origin['model']}, {settings.steps} steps, seed {settings.seed}"
        plot_strips(made, sheet, title="Contact sheet", note=note)
        made.append(sheet)
    return made


def make_video(
    pipeline: PusaPipeline, request: Request, settings: GenerateSettings, *, embed: Embed
) -> np.ndarray:
    """The video of a request, ``uint8`` ``(frames, height, width, 3)``."""

    def make_window(conditions: list[Condition], window: int) -> np.ndarray:
        return sample_frames(
            pipeline,
            [request.prompt],
            # The same noise again would repeat what happens.
            settings.part(VideoSettings, seed=settings.seed + window),
            embed=embed,
            samples=[request.sample],
            guidance_scale_2=settings.guidance_scale_2,
            conditions=conditions,
        )[0]

    frames = make_window(read_conditions(request.placements, settings), 0)
    length, overlap = settings.length or settings.frames, settings.overlap
    latents = tuple(range(count_latent_frames(overlap)))
    window = 0
    while len(frames) < length:
        window += 1
        end = Condition(frames[-overlap:], latents, multipliers=(0.0,) * len(latents))
        frames = np.concatenate([frames, make_window([end], window)[overlap:]])
    return frames[:length]


def read_prompts(given: list[str] | None, file: Path | None) -> list[str]:
    """The prompts of the command line, or of a file's lines that are not empty.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there are prompts of both kinds or of none, or the file is not UTF-8.
    """
    if bool(given) == (file is not None):
        raise ValueError(
            "expected prompts either on the command line or by --prompts, found "
            + ("both" if given else "neither")
        )
    if file is None:
        return given
    if file.is_dir():
        raise ValueError(f"--prompts {file} is a folder, expected a text file")
    if not file.exists():
        raise FileNotFoundError(f"--prompts {file} does not exist")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(
            f"--prompts {file} is not UTF-8 text, expected one prompt per line"
        ) from None
    # str.splitlines would also part a prompt at rarer characters.
    lines = [line.strip() for line in text.split("\n")]
    if not any(lines):
        raise ValueError(f"--prompts {file} is empty, expected one prompt per line")
    return [line for line in lines if line]


def request_videos(
    prompts: Sequence[str], placements: tuple[Placement, ...], samples: int
) -> list[Request]:
    """Samples of each different prompt, all from the same given frames.

    A file is named by a prompt's first words, with a number if they are taken, and one behind it if
    there are several samples.
    """
    names: dict[str, str] = {}
    for prompt in prompts:
        words = re.sub(r"\W+", "-", prompt.lower()).strip("-")[:40].rstrip("-") or "video"
        taken = set(names.values())
        numbered = (words if n == 1 else f"{words}-{n}" for n in range(1, len(taken) + 2))
        names.setdefault(prompt, next(name for name in numbered if name not in taken))
    return [
        Request(
            name=name if samples == 1 else f"{name}-{sample}",
            prompt=prompt,
            sample=sample,
            placements=placements,
        )
        for prompt, name in names.items()
        for sample in range(samples)
    ]


def _place_output(out: Path, requests: list[Request]) -> tuple[Path, list[Request]]:
    """The folder of the videos, and the requests, one of which may be named by ``FILE.mp4``."""
    if out.suffix.lower() in OTHER_FORMATS:
        raise ValueError(f"--out {out}: videos are written as MP4, expected a folder or FILE.mp4")
    if out.suffix.lower() != ".mp4":
        return out, requests
    if len(requests) > 1:
        raise ValueError(f"--out {out} is one file, expected a folder for several videos")
    return out.parent, [replace(request, name=out.stem) for request in requests]


def _join_processes(device: str) -> str:
    """Join the processes that torchrun started; returns this one's device."""
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    if device == "cpu":
        return device
    device = f"cuda:{os.environ['LOCAL_RANK']}"
    torch.cuda.set_device(device)
    return device


def _warn_of_unconditional_loras(origin: Mapping[str, Any], requests: list[Request]) -> None:
    """Say so if frames are given to a model that was not trained to be given any."""
    if not any(request.placements for request in requests):
        return
    for part in ("transformer", "transformer_2"):
        for lora in origin.get(part, {}).get("loras", []):
            if lora["vectorized"] is False:
                warnings.warn(
                    f"{lora['file']} was trained with one timestep per clip, so that given frames "
                    "may be ignored; expected a LoRA trained with a timestep per frame",
                    stacklevel=3,
                )
