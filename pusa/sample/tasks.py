"""The paper's zero-shot tasks, Figures 7 to 12: which frames of a clip are given, and how clean.

Frames are pixel frames, counted from 1. Every task takes its given frames from one clip, at their
own places, and makes the others anew.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: First and last frame of what is given, and its noise multiplier.
Given = tuple[int, int, float]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one figure shows."""

    figure: int  # its number in the paper
    title: str
    shortest: int  # frames of the shortest clip that leaves a latent frame to be made
    given: Callable[[int], tuple[Given, ...]]  # by the number of frames of the clip


def first_half(frames: int) -> int:
    """The number of the form 4k+1 that is nearest to half of ``frames``: 41 of 81."""
    return (frames - 1) // 8 * 4 + 1


#: By name. A last frame that is given alone is encoded alone, as an image is; the last four are
#: encoded in one run with the first, into one latent frame.
TASKS = {
    "start_end": Task(
        figure=7,
        title="Start and end frames to video",
        shortest=9,
        given=lambda frames: ((1, 1, 0.0), (frames, frames, 0.0)),
    ),
    "start_end_noise": Task(
        figure=8,
        title="Start and end frames to video, with noise on both",
        shortest=9,
        given=lambda frames: ((1, 1, 0.3), (frames, frames, 0.7)),
    ),
    "start_last_four": Task(
        figure=9,
        title="Start frame and last four frames to video",
        shortest=9,
        given=lambda frames: ((1, 1, 0.0), (frames - 3, frames, 0.0)),
    ),
    "completion": Task(
        figure=10,
        title="Video completion from the first 9 and the last 12 frames",
        shortest=25,
        given=lambda frames: ((1, 9, 0.0), (frames - 11, frames, 0.0)),
    ),
    "extension_short": Task(
        figure=11,
        title="Video extension from the first 13 frames",
        shortest=17,
        given=lambda frames: ((1, 13, 0.0),),
    ),
    "extension_long": Task(
        figure=12,
        title="Video extension from the first half",
        shortest=9,
        given=lambda frames: ((1, first_half(frames), 0.0),),
    ),
}


def tasks_for(frames: int) -> dict[str, Task]:
    """The tasks that a clip of ``frames`` frames is long enough for."""
    return {name: task for name, task in TASKS.items() if frames >= task.shortest}


def clips_folder(config: dict) -> Path | None:
    """The folder of the clips that tasks take given frames from; None if there is none."""
    if "dataset" in config["tasks"]:
        return Path(config["tasks"]["dataset"])
    if config["lora"]["source"] != "trained" or config["cache"]["source"] == "released":
        return None  # there are no clips to decode
    return Path(config["dataset"]["path"]) if config["train"]["validation_clips"] else None


def count_clips(config: dict) -> int:
    """Clips, and so videos, of each task; 0 if there are none to take given frames from."""
    if clips_folder(config) is None:
        return 0
    wanted = config["tasks"]["clips"]
    if "dataset" in config["tasks"]:
        return wanted
    return min(wanted, config["train"]["validation_clips"])


def check_clips(config: dict) -> None:
    """Check the folder of clips that a configuration's section ``tasks`` names, if it does.

    Raises:
        FileNotFoundError: if it is not in a dataset's layout.
        ValueError: if it is the dataset that is trained on.
    """
    if "dataset" not in config["tasks"]:
        return
    folder = Path(config["tasks"]["dataset"])
    if not (folder / "metadata.csv").is_file():
        raise FileNotFoundError(
            f"config key tasks.dataset: found no metadata.csv in {folder}, expected a "
            "folder of clips with one"
        )
    trained = config["lora"]["source"] == "trained"
    if trained and folder.resolve() == Path(config["dataset"]["path"]).resolve():
        raise ValueError(
            f"config key tasks.dataset: found {folder}, which is trained on, expected other clips, "
            "or no such key for those that training holds out"
        )
