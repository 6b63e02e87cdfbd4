"""The paper's tasks: which frames of a video are given, and how clean.

Frames are pixel frames, counted from 1. Every task takes its given frames from one file, the
prompt's image or a clip, at their own places, and makes the others anew.
"""

from collections.abc import Callable
from dataclasses import dataclass

#: First and last frame of what is given, and its noise multiplier.
Given = tuple[int, int, float]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one figure shows."""

    figure: int  # its number in the paper
    title: str
    shortest: int  # frames of the shortest clip that leaves a latent frame to be made
    given: Callable[[int], tuple[Given, ...]]  # by the number of frames of the clip
    on_clips: bool = True  # on clips of a dataset, or on the prompt suite


def first_half(frames: int) -> int:
    """The number of the form 4k+1 that is nearest to half of ``frames``: 41 of 81."""
    return (frames - 1) // 8 * 4 + 1


#: By name. A last frame that is given alone is encoded alone, as an image is; the last four are
#: encoded in one run with the first, into one latent frame.
TASKS = {
    "t2v": Task(
        figure=13,
        title="Text-to-video results",
        shortest=1,
        given=lambda frames: (),
        on_clips=False,
    ),
    "i2v": Task(
        figure=6,
        title="More image-to-video results",
        shortest=5,
        given=lambda frames: ((1, 1, 0.0),),
        on_clips=False,
    ),
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
    """The tasks on clips that one of ``frames`` frames is long enough for, Figures 7 to 12."""
    return {n: task for n, task in TASKS.items() if task.on_clips and frames >= task.shortest}
