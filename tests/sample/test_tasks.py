import subprocess
import sys
from typing import get_args

import pytest

from pusa.config import SuiteSettings
from pusa.sample.tasks import TASKS, first_half, tasks_for

#: What the paper's figures give of 81 frames: first and last frame, noise multiplier.
PAPER = {
    6: [(1, 1, 0.0)],
    7: [(1, 1, 0.0), (81, 81, 0.0)],
    8: [(1, 1, 0.3), (81, 81, 0.7)],
    9: [(1, 1, 0.0), (78, 81, 0.0)],
    10: [(1, 9, 0.0), (70, 81, 0.0)],
    11: [(1, 13, 0.0)],
    12: [(1, 41, 0.0)],
    13: [],
}


def given_latents(task: str, frames: int) -> list[int]:
    """Latent frames that a task gives; frame 1 is alone in its own, the others go four by four."""
    return [
        latent
        for first, last, _ in TASKS[task].given(frames)
        for latent in range((first + 2) // 4, (last + 2) // 4 + 1)
    ]


def test_tasks_give_what_the_paper_gives():
    assert {task.figure: list(task.given(81)) for task in TASKS.values()} == PAPER
    of_suite = {name for name, task in TASKS.items() if not task.on_clips}
    assert of_suite == set(get_args(SuiteSettings.model_fields["task"].annotation))


@pytest.mark.parametrize("task", TASKS)
def test_the_shortest_clip_leaves_something_to_be_made(task):
    shortest = TASKS[task].shortest
    for frames in (shortest, shortest + 4, 81):
        latents, last = given_latents(task, frames), (frames - 1) // 4
        assert len(set(latents)) == len(latents)  # no two pieces overlap
        assert set(latents) < set(range(last + 1))
    # four frames less, and everything is given, or more than there is, or one image alone
    latents, last = given_latents(task, shortest - 4), (shortest - 5) // 4
    fits = len(set(latents)) == len(latents) and set(latents) < set(range(last + 1))
    assert not fits or latents == [0]


@pytest.mark.parametrize("frames", [9, 13, 17, 81, 121])
def test_first_half_is_the_nearest_that_fills_whole_latent_frames(frames):
    allowed = range(1, frames + 1, 4)
    assert first_half(frames) == min(allowed, key=lambda n: abs(n - frames / 2))


def test_a_short_clip_is_long_enough_for_some_tasks():
    assert [task.figure for task in tasks_for(81).values()] == [7, 8, 9, 10, 11, 12]
    assert {task.figure for task in tasks_for(9).values()} == {7, 8, 9, 12}
    assert tasks_for(5) == {}


def test_rules_read_the_table_without_torch():
    code = "import sys, pusa.sample.tasks, pusa.data.manifest; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
