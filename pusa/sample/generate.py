"""Videos from prompts and conditions, written with their settings, resumable.

A video longer than the model's clips is extended from its own end: each further window is given
the last frames of what is there, as the paper extends a clip (Figures 11 and 12).
"""

import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pusa import __version__
from pusa.clip import ClipSize, count_latent_frames
from pusa.data.video import read_settings, read_video, write_gif, write_png_frames, write_video
from pusa.models.text import check_prompts, count_text_tokens
from pusa.records import describe_device
from pusa.sample.conditioning import Condition, Placement, given_frames, read_conditions
from pusa.sample.pipeline import PusaPipeline


@dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    """What decides a video, apart from the model and the request.

    Raises:
        ValueError: that names the setting.
    """

    size: ClipSize  # of what the model makes at once
    steps: int = 10
    shift: float = 5.0
    guidance_scale: float = 3.0
    guidance_scale_2: float | None = None  # of the low-noise expert; as guidance_scale if None
    negative_prompt: str = ""
    seed: int = 0
    length: int | None = None  # pixel frames of the video; size.frames if None
    overlap: int = 13  # frames that a further window is given

    def __post_init__(self):
        count_latent_frames(self.size.frames)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, found {self.steps}")
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift must be a number above 0, found {self.shift}")
        for name in ("guidance_scale", "guidance_scale_2"):
            scale = getattr(self, name)
            if scale is not None and not 1 <= scale < math.inf:
                raise ValueError(f"{name} must be a number from 1, found {scale}")
        try:
            count_latent_frames(self.overlap)
        except ValueError as error:
            raise ValueError(f"overlap: {error}") from None
        if self.length is None:
            return
        if self.length < self.size.frames:
            raise ValueError(
                f"length is {self.length} frames, expected at least those of one window, "
                f"{self.size.frames}"
            )
        if self.overlap >= self.size.frames:
            raise ValueError(
                f"overlap is {self.overlap} frames, expected fewer than a window's "
                f"{self.size.frames}"
            )


@dataclass(frozen=True, kw_only=True)
class Request:
    """A video that is wanted."""

    name: str  # of its file, without the suffix
    prompt: str
    placements: tuple[Placement, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PlannedVideo:
    """One sample of a request, and whether it is there already."""

    path: Path
    request: Request
    sample: int
    record: dict[str, Any]  # the settings that its file holds
    finished: bool
    gif: Path | None  # to be written beside it
    png: Path | None  # folder of frames

    @property
    def complete(self) -> bool:
        """Whether the video is there, and what is to be beside it."""
        frames = self.record["length"] or self.record["size"]["frames"]
        has_gif = self.gif is None or self.gif.exists()
        has_png = self.png is None or len([*self.png.glob("*.png")]) == frames
        return self.finished and has_gif and has_png


def generate_videos(
    pipeline: PusaPipeline,
    requests: Iterable[Request],
    settings: GenerateSettings,
    out: str | Path,
    *,
    samples: int = 1,
    overwrite: bool = False,
    gif: bool = False,
    png: bool = False,
) -> list[Path]:
    """Write ``out/<name>.mp4`` for each request; ``<name>-<sample>.mp4`` if there are several.

    A video that is there with the very same settings is kept, so that an interrupted run goes on.
    In a context-parallel run all processes take part, and the first one writes.

    Args:
        overwrite: replace videos that were made otherwise; their GIFs and frames are removed.
        gif: write ``<name>.gif`` beside it.
        png: write its frames into the folder ``<name>``.

    Returns:
        The videos, in the order of the requests.

    Raises:
        FileExistsError: if a file is there that was made otherwise, unless ``overwrite``.
        FileNotFoundError, ValueError: if a prompt or a placement cannot be used, before the first
            video is made.
    """
    requests = list(requests)
    check_prompts(
        pipeline.tokenizer,
        [request.prompt for request in requests],
        count_text_tokens(pipeline.tokenizer),
        negative_prompt=settings.negative_prompt,
    )
    videos = plan_videos(
        requests,
        settings,
        out,
        origin=pipeline.origin,
        samples=samples,
        overwrite=overwrite,
        gif=gif,
        png=png,
    )
    _warn_of_unconditional_loras(pipeline.origin, requests)
    writes = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    device = pipeline._execution_device.type  # of an offloaded model too
    made_with = {"pusa": __version__, "device": describe_device(device)}
    pipeline.set_progress_bar_config(
        desc="steps", unit="step", position=1, leave=False, disable=None if writes else True
    )
    finished = sum(video.finished for video in videos)
    with tqdm(
        total=len(videos), initial=finished, unit="video", mininterval=2, disable=not writes
    ) as progress:
        for video in videos:
            if video.finished:
                if writes and not video.complete:
                    _write_copies(video, read_video(video.path))
                continue
            frames = make_video(pipeline, video.request, settings, video.sample)
            if writes:
                # They are copies of the video that is replaced.
                for copy in _copies_beside(video.path):
                    copy.unlink()
                write_video(video.path, frames, video.record | {"made_with": made_with})
                _write_copies(video, frames)
            progress.update()
    return [video.path for video in videos]


def make_video(
    pipeline: PusaPipeline, request: Request, settings: GenerateSettings, sample: int = 0
) -> np.ndarray:
    """One video of a request, ``uint8`` ``(frames, height, width, 3)``."""

    def make_window(conditions: list[Condition], window: int) -> np.ndarray:
        return pipeline(
            request.prompt,
            size=settings.size,
            conditions=conditions,
            steps=settings.steps,
            shift=settings.shift,
            guidance_scale=settings.guidance_scale,
            guidance_scale_2=settings.guidance_scale_2,
            negative_prompt=settings.negative_prompt,
            # The same noise again would repeat what happens.
            seed=settings.seed + window,
            sample=sample,
        )[0]

    frames = make_window(read_conditions(request.placements, settings.size), 0)
    length, overlap = settings.length or settings.size.frames, settings.overlap
    latents = tuple(range(count_latent_frames(overlap)))
    window = 0
    while len(frames) < length:
        window += 1
        end = Condition(frames[-overlap:], latents, multipliers=(0.0,) * len(latents))
        frames = np.concatenate([frames, make_window([end], window)[overlap:]])
    return frames[:length]


def plan_videos(
    requests: Iterable[Request],
    settings: GenerateSettings,
    out: str | Path,
    *,
    origin: Mapping[str, Any],
    samples: int = 1,
    overwrite: bool = False,
    gif: bool = False,
    png: bool = False,
) -> list[PlannedVideo]:
    """What `generate_videos` will make; every placement is read once, and no model is needed.

    Args:
        origin: see `pusa.sample.pipeline.describe_model`.

    Raises:
        FileExistsError: if a file is there that was made otherwise, unless ``overwrite``.
        FileNotFoundError, ValueError: if two requests have one name, or a placement cannot be
            used.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, found {samples}")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file, expected a folder for the videos")
    described: dict[tuple[Placement, ...], dict] = {}
    videos: dict[Path, PlannedVideo] = {}
    for request in requests:
        if request.placements not in described:
            read_conditions(request.placements, settings.size)
            described[request.placements] = _describe_placements(request.placements)
        for sample in range(samples):
            name = request.name if samples == 1 else f"{request.name}-{sample}"
            path = out / f"{name}.mp4"
            if path in videos:
                raise ValueError(f"two requests are to be written to {path}, expected two names")
            record = {
                "prompt": request.prompt,
                "sample": sample,
                **described[request.placements],
                **asdict(settings),
                **origin,
            }
            record = json.loads(json.dumps(record))  # as a file gives it back
            copies = {
                "gif": path.with_suffix(".gif") if gif else None,
                "png": path.with_suffix("") if png else None,
            }
            finished = _is_finished(path, record, overwrite=overwrite)
            if overwrite and not finished:
                _check_given_are_kept(request.placements, [path, *_copies_beside(path)])
            for copy in copies.values():
                if copy and copy.exists() and not (finished or overwrite):
                    raise FileExistsError(f"{copy} exists already, expected --overwrite")
            videos[path] = PlannedVideo(
                path=path,
                request=request,
                sample=sample,
                record=record,
                finished=finished,
                **copies,
            )
    out.mkdir(parents=True, exist_ok=True)
    return [*videos.values()]


def name_prompts(prompts: Iterable[str]) -> dict[str, str]:
    """A file name for each different prompt: its first words, and a number if they are taken."""
    names: dict[str, str] = {}
    for prompt in prompts:
        words = re.sub(r"\W+", "-", prompt.lower()).strip("-")[:40].rstrip("-") or "video"
        taken = set(names.values())
        numbered = (words if n == 1 else f"{words}-{n}" for n in range(1, len(taken) + 2))
        names.setdefault(prompt, next(name for name in numbered if name not in taken))
    return names


def _describe_placements(placements: tuple[Placement, ...]) -> dict[str, Any]:
    conditions = []
    for placement in placements:
        with placement.file.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        conditions.append(asdict(placement) | {"file": placement.file.name, "sha256": digest})
    return {"given": given_frames(placements), "conditions": conditions}


def _is_finished(path: Path, record: dict[str, Any], *, overwrite: bool) -> bool:
    """Whether a video is there with just these settings; its device and version may be others."""
    if not path.exists():
        return False
    found = read_settings(path)
    found.pop("made_with", None)
    if found == record or overwrite:
        return found == record
    if "prompt" not in found:
        raise FileExistsError(f"{path} exists already and is not ours, expected --overwrite")
    differing = sorted(k for k in record.keys() | found.keys() if record.get(k) != found.get(k))
    raise FileExistsError(
        f"{path} exists already, made with other settings ({', '.join(differing)}); expected "
        "another name or folder, or --overwrite"
    )


def _copies_beside(path: Path) -> list[Path]:
    """The GIF and the frames that are there of a video."""
    gif = path.with_suffix(".gif")
    return [*([gif] if gif.is_file() else []), *path.with_suffix("").glob("frame_*.png")]


def _check_given_are_kept(placements: tuple[Placement, ...], replaced: list[Path]) -> None:
    given = {placement.file.resolve() for placement in placements}
    for file in replaced:
        if file.resolve() in given:
            raise ValueError(f"{file} is given and would be replaced, expected another --out")


def _write_copies(video: PlannedVideo, frames: np.ndarray) -> None:
    if video.gif:
        write_gif(video.gif, frames)
    if video.png:
        write_png_frames(video.png, frames)


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
