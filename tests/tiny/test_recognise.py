from dataclasses import fields, replace

import cv2
import numpy as np
import pytest

from pusa.tiny import world
from pusa.tiny.recognise import Found, recognise

RESPECTS = [field.name for field in fields(Found)]


def wrong(scenes, spoil=lambda clip: clip):
    """How often each respect of a clip's scene is not recognised."""
    found = [recognise(spoil(world.render(scene))) for scene in scenes]
    return {
        name: sum(getattr(f, name) != getattr(s, name) for f, s in zip(found, scenes, strict=True))
        for name in RESPECTS
    }


def scenes(count, first=0):
    return [world.sample_scene(np.random.default_rng([77, first + i])) for i in range(count)]


def test_rendered_clips_are_recognised():
    assert wrong(scenes(12)) == dict.fromkeys(RESPECTS, 0)


@pytest.mark.slow
def test_98_percent_of_many_rendered_clips_are_recognised():
    assert max(wrong(scenes(200, first=1000)).values()) <= 4


def test_soft_and_noisy_clips_are_recognised():
    """As a model's clips are, whose edges are soft."""
    noise = np.random.default_rng(0).normal(0, 6, (world.FRAMES, 64, 64, 3))

    def spoil(clip):
        soft = np.stack([cv2.GaussianBlur(frame, (0, 0), 1.0) for frame in clip])
        return np.clip(soft + noise, 0, 255).astype(np.uint8)

    assert wrong(scenes(8), spoil) == dict.fromkeys(RESPECTS, 0)


@pytest.mark.parametrize(
    ("spoil", "respect"),
    [
        (lambda clip: clip[:1].repeat(len(clip), 0), "motion"),  # frozen
        (lambda clip: clip[::-1], "motion"),  # backwards
        (lambda clip: clip[..., ::-1], "colour"),  # red for blue
        (lambda clip: clip[:, ::-1], "shape"),  # upside down: a triangle no more
    ],
)
def test_what_is_wrong_is_seen(spoil, respect):
    scene = replace(
        scenes(40)[3],
        shape="triangle",
        colour="red",
        motion=("slowly", "up"),
        camera="camera static",
    )
    assert getattr(recognise(world.render(scene)), respect) == getattr(scene, respect)
    assert getattr(recognise(spoil(world.render(scene))), respect) != getattr(scene, respect)


def test_a_wall_has_no_shape():
    scene = world.sample_scene(np.random.default_rng(5), with_shape=False)
    found = recognise(world.render(scene))
    assert (found.shape, found.colour, found.motion) == (None, None, None)
