"""Videos of one of the paper's zero-shot tasks, on clips of a dataset, resumable."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pusa.data.cache import LatentCache
from pusa.data.dataset import Clip
from pusa.records import describe_device
from pusa.sample.conditioning import Placement
from pusa.sample.generate import GenerateSettings, Request, generate_videos
from pusa.sample.pipeline import PusaPipeline
from pusa.sample.tasks import TASKS


def held_out_clips(dataset: str | Path, cache: str | Path, count: int) -> list[Clip]:
    """The last ``count`` clips of a dataset's cache, which training left out.

    The cache tells them, and not the dataset, as it lacks the clips that cannot be used.

    Raises:
        FileNotFoundError: if the cache is missing.
        ValueError: if it cannot be read, or has fewer clips.
    """
    clips = LatentCache(cache).clips
    if count > len(clips):
        raise ValueError(f"cache {cache} has {len(clips)} clips, expected the {count} held out")
    return [Clip(Path(dataset) / c["file"], c["caption"]) for c in clips[len(clips) - count :]]


def choose_clips(clips: Sequence[Clip], count: int) -> list[Clip]:
    """``count`` clips to take given frames and captions from, spread evenly.

    Raises:
        ValueError: if there are too few.
    """
    if count > len(clips):
        raise ValueError(f"{len(clips)} clips to choose from, expected at least {count}")
    return [clips[n * len(clips) // count] for n in range(count)]


def task_requests(task: str, clips: list[Clip], frames: int) -> list[Request]:
    """A video for each clip: its caption, and the task's share of its first ``frames`` frames.

    Raises:
        ValueError: if so few frames leave nothing to be made.
    """
    shortest = TASKS[task].shortest
    if frames < shortest:
        raise ValueError(f"task {task} takes clips of at least {shortest} frames, found {frames}")
    return [
        Request(
            name=f"{number:04d}",
            prompt=clip.caption,
            placements=tuple(
                Placement(file=clip.path, source=first, first=first, last=last, multipliers=(m,))
                for first, last, m in TASKS[task].given(frames)
            ),
        )
        for number, clip in enumerate(clips, start=1)
    ]


def sample_task(
    pipeline: PusaPipeline, requests: list[Request], settings: GenerateSettings, out: str | Path
) -> pd.DataFrame:
    """Write the videos that `task_requests` asks for.

    A video that an earlier, interrupted run finished with the same settings is kept, and one
    with other settings is made anew.

    Returns:
        A row for each video, as `pusa.data.suite.read_manifests` reads them.

    Raises:
        FileNotFoundError, ValueError: as `pusa.sample.generate.generate_videos`.
    """
    videos = generate_videos(pipeline, requests, settings, out, overwrite=True)
    rows = [
        {"file": video.name, "index": number, "prompt": request.prompt, "sample": 0}
        for number, (video, request) in enumerate(zip(videos, requests, strict=True), start=1)
    ]
    return pd.DataFrame(rows).assign(device=describe_device(pipeline.device.type))
