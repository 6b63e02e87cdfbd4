"""Videos of one of the paper's zero-shot tasks, on clips of a dataset, resumable."""

from pathlib import Path

import pandas as pd

from pusa.conditioning import Placement
from pusa.dataset import Clip, read_metadata
from pusa.device import describe_device
from pusa.generate import GenerateSettings, Request, generate_videos
from pusa.pipeline import PusaPipeline
from pusa.tasks import TASKS


def choose_clips(dataset: str | Path, count: int, *, held_out: int | None = None) -> list[Clip]:
    """Clips to take given frames and captions from, spread evenly over a dataset.

    Args:
        held_out: choose among the last so many, which training left out; among all if None.

    Raises:
        FileNotFoundError: as `pusa.dataset.read_metadata`.
        ValueError: as `pusa.dataset.read_metadata`, or if there are too few clips.
    """
    clips = read_metadata(dataset)
    available = len(clips) if held_out is None else held_out
    if available > len(clips):
        raise ValueError(f"{dataset} has {len(clips)} clips, expected the {available} held out")
    if count > available:
        raise ValueError(f"{dataset} has {available} clips to choose from, expected {count}")
    clips = clips[len(clips) - available :]
    return [clips[n * available // count] for n in range(count)]


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
        A row for each video, as `pusa.suite.read_manifests` reads them.

    Raises:
        FileNotFoundError, ValueError: as `pusa.generate.generate_videos`.
    """
    videos = generate_videos(pipeline, requests, settings, out, overwrite=True)
    rows = [
        {"file": video.name, "index": number, "prompt": request.prompt, "sample": 0}
        for number, (video, request) in enumerate(zip(videos, requests, strict=True), start=1)
    ]
    return pd.DataFrame(rows).assign(device=describe_device(pipeline.device.type))
