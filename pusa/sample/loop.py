"""The one loop that writes videos: what is there is kept, so that an interrupted run goes on.

A video holds a record of all that decides its frames, files by their content, and is there if its
file has just the record that it is to have; the device, our version and what else only rounds
otherwise, ``made_with``, may be others.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from pusa import __version__
from pusa.config import Outputs, SampleSwitches, VideoSettings
from pusa.data.manifest import COLUMNS
from pusa.data.video import read_settings, read_video, write_gif, write_png_frames, write_video
from pusa.digests import digest_file
from pusa.records import describe_device
from pusa.sample.conditioning import Placement, given_frames, read_conditions

#: Another release of these may draw other noise or round otherwise.
PACKAGES = ("diffusers", "torch")
ALL_OFF = SampleSwitches()


@dataclass(frozen=True, kw_only=True)
class Request:
    """A video that is wanted."""

    name: str  # of its file, without the suffix
    prompt: str
    sample: int = 0  # decides the noise, together with prompt and seed
    placements: tuple[Placement, ...] = ()
    embeds: str | None = None  # digest of its prompt's embedding, if it comes from a cache

    @property
    def file(self) -> str:
        """Its name with the suffix."""
        return f"{self.name}.mp4"


@dataclass(frozen=True, kw_only=True)
class PlannedVideo:
    """A request, and whether it is fulfilled."""

    request: Request
    path: Path
    record: dict[str, Any]  # of how it is to be made
    finished: bool
    gif: Path | None  # to be written beside it
    png: Path | None  # folder of frames

    @property
    def complete(self) -> bool:
        """Whether the video is there, and what is to be beside it."""
        frames = self.record.get("length") or self.record["frames"]
        has_gif = self.gif is None or self.gif.exists()
        has_png = self.png is None or len([*self.png.glob("*.png")]) == frames
        return self.finished and has_gif and has_png


#: Makes the frames of a batch of requests, each ``uint8`` ``(frames, height, width, 3)``.
MakeBatch = Callable[[Sequence[Request]], Iterable[np.ndarray]]


def plan_videos(
    requests: Iterable[Request],
    settings: VideoSettings,
    out: str | Path,
    *,
    origin: Mapping[str, Any],
    outputs: Outputs,
    switches: SampleSwitches = ALL_OFF,
) -> list[PlannedVideo]:
    """What is to be made, and what is there already; each placement is read once.

    Args:
        out: folder for ``<name>.mp4``, ``<name>.gif`` and the folder of frames ``<name>``.
        origin: what `pusa.sample.origin` says of the model.
        switches: those that change what a video shows are part of its record.

    Raises:
        FileExistsError: if a file is there that was made otherwise, unless it may be overwritten.
        PermissionError: if the folder cannot be written to.
        FileNotFoundError, ValueError: if two requests have one name, or a placement cannot be
            used.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file, expected a folder for the videos")
    described: dict[tuple[Placement, ...], dict] = {}
    videos: dict[Path, PlannedVideo] = {}
    for request in requests:
        if request.placements not in described:
            read_conditions(request.placements, settings)
            described[request.placements] = _describe_placements(request.placements)
        path = out / request.file
        if path in videos:
            raise ValueError(f"two requests are to be written to {path}, expected two names")
        record = {
            "prompt": request.prompt,
            "sample": request.sample,
            **described[request.placements],
            **({"embeds": request.embeds} if request.embeds else {}),
            **settings.model_dump(),
            **origin,
            **({"switches": switches.altering} if switches.altering else {}),
            # Without the kind of build, such as +cpu: the device may be another.
            "packages": {name: version(name).partition("+")[0] for name in PACKAGES},
        }
        record = json.loads(json.dumps(record))  # as a file gives it back
        known = type(settings).defaults()
        finished = _is_finished(path, record, known, overwrite=outputs.overwrite)
        if outputs.overwrite and not finished:
            _check_given_are_kept(request.placements, [path, *_copies_beside(path)])
        gif = path.with_suffix(".gif") if outputs.gif else None
        png = path.with_suffix("") if outputs.png else None
        for copy in (gif, png):
            if copy and copy.exists() and not (finished or outputs.overwrite):
                raise FileExistsError(f"{copy} exists already, expected --overwrite")
        videos[path] = PlannedVideo(
            request=request, path=path, record=record, finished=finished, gif=gif, png=png
        )
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise PermissionError(f"{out} cannot be written to, expected a folder for the videos")
    return [*videos.values()]


def make_videos(
    videos: Sequence[PlannedVideo],
    load: Callable[[], MakeBatch],
    *,
    device: str,
    batch_size: int = 1,
    switches: SampleSwitches = ALL_OFF,
    writes: bool = True,
) -> None:
    """Make and write what is not there yet; GIFs and frames of a replaced video are removed.

    Args:
        load: loads the model; not called if there is nothing to make.
        device: ``cuda`` or ``cpu``, for the record.
        switches: those that only round otherwise, for the record too.
        writes: whether this process writes; the others take part in the making.
    """
    todo = [video for video in videos if not video.finished]
    for video in videos:
        if writes and video.finished and not video.complete:
            _write_copies(video, read_video(video.path))
    make = load() if todo else None
    made_with = {"pusa": __version__, "device": describe_device(device), **switches.rounding}
    with tqdm(
        total=len(videos),
        initial=len(videos) - len(todo),
        unit="video",
        mininterval=2,
        disable=not writes,
    ) as progress:
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            made = make([video.request for video in batch])
            for video, frames in zip(batch, made, strict=True) if writes else ():
                for copy in _copies_beside(video.path):  # of the video that is replaced
                    copy.unlink()
                write_video(video.path, frames, video.record | {"made_with": made_with})
                _write_copies(video, frames)
            progress.update(len(batch))


def list_videos(
    requests: Sequence[Request], indices: Sequence[int], folder: str | Path, device: str
) -> pd.DataFrame:
    """A row for each video in a folder, as `pusa.data.manifest.read_manifests` reads them.

    Args:
        indices: place of each prompt in its suite or dataset.
        device: ``cuda`` or ``cpu``, what this process computes on.
    """
    rows = [
        (r.file, i, r.prompt, r.sample, digest_file(Path(folder) / r.file))
        for r, i in zip(requests, indices, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS).assign(device=describe_device(device))


def _describe_placements(placements: tuple[Placement, ...]) -> dict[str, Any]:
    conditions = []
    for placement in placements:
        told = {"file": placement.file.name, "sha256": digest_file(placement.file)}
        conditions.append(asdict(placement) | told)
    return {"given": given_frames(placements), "conditions": conditions}


def _is_finished(
    path: Path, record: dict[str, Any], known: dict[str, Any], *, overwrite: bool
) -> bool:
    """Whether a file has the record; a setting that is newer than it was as ``known``."""
    if not path.exists():
        return False
    found = known | read_settings(path)
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
