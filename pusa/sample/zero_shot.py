"""Videos of the paper's zero-shot tasks, on clips of a dataset."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pusa.config import (
    GenerateSettings,
    Outputs,
    SampleSwitches,
    Switches,
    VideoSettings,
    Weights,
)
from pusa.data.cache import LatentCache
from pusa.data.dataset import Clip
from pusa.sample.conditioning import place
from pusa.sample.generate import generate
from pusa.sample.loop import Request, list_videos
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


def sample_task(
    task: str,
    clips: list[Clip],
    settings: VideoSettings,
    *,
    model: str | Path,
    weights: Weights,
    out: str | Path,
    switches: SampleSwitches,
    device: str,
) -> pd.DataFrame:
    """Write a video for each clip: of its caption, from the task's share of its first frames.

    A video that an earlier, interrupted run finished with the same settings is kept, and one with
    other settings is made anew.

    Returns:
        A row for each video, as `pusa.data.manifest.read_manifests` reads them.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if so few frames leave nothing to be made, or a file, a clip or a caption cannot
            be used; before weights are loaded.
    """
    shortest = TASKS[task].shortest
    if settings.frames < shortest:
        raise ValueError(
            f"task {task} takes clips of at least {shortest} frames, found {settings.frames}"
        )
    given = TASKS[task].given(settings.frames)
    requests = [
        Request(name=f"{number:04d}", prompt=clip.caption, placements=place(clip.path, given))
        for number, clip in enumerate(clips, start=1)
    ]
    generate(
        requests,
        settings.part(GenerateSettings),
        model=model,
        weights=weights,
        out=out,
        outputs=Outputs(overwrite=True),
        switches=switches.part(Switches),
        device=device,
    )
    return list_videos(requests, range(1, len(requests) + 1), out, device)
