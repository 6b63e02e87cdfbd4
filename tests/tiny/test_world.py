from dataclasses import replace

import numpy as np
import pytest

from pusa.tiny import world
from pusa.tiny.world import render, sample_scene, sample_still_scene

SEEDS = range(12)


def scene_of(seed, **choices):
    return sample_scene(np.random.default_rng(seed), **choices)


def shape_mask(scene, frames=world.FRAMES):
    """Where the shape is: what changes when it is taken away. (frames, height, width)."""
    return (render(scene, frames) != render(replace(scene, shape=None), frames)).any(-1)


def centre(mask):
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean(), rows.mean()])


def test_rendering_is_deterministic():
    assert scene_of(5) == scene_of(5)
    assert np.array_equal(render(scene_of(5)), render(scene_of(5)))
    assert not np.array_equal(render(scene_of(5)), render(scene_of(6)))


def test_frames_are_videos():
    clip = render(scene_of(0))
    assert clip.shape == (33, 64, 64, 3)
    assert clip.dtype == np.uint8


def test_fewer_frames_are_the_first_ones():
    assert np.array_equal(render(scene_of(1), frames=5), render(scene_of(1))[:5])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_whole_shape_stays_in_view(seed):
    """A caption is true for the whole clip: nothing of the shape touches or leaves the border."""
    scene = scene_of(seed, with_shape=True)
    area = shape_mask(scene).sum((1, 2))
    zoom = np.exp(2 * world.CAMERAS[scene.camera][2] * np.arange(world.FRAMES))
    # The area on screen changes with the zoom alone; 12 % for its pixelated outline.
    assert (np.abs(area / (area[0] * zoom) - 1) < 0.12).all()


@pytest.mark.parametrize("camera", list(world.CAMERAS))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_still_shape_stays_in_view_under_every_camera(camera, seed):
    scene = replace(sample_still_scene(np.random.default_rng(seed)), camera=camera)
    assert scene.motion is None
    area = shape_mask(scene).sum((1, 2))
    zoom = np.exp(2 * world.CAMERAS[camera][2] * np.arange(world.FRAMES))
    assert (area > 0.5 * area[0] * zoom).all()  # at least half of it


@pytest.mark.parametrize("direction", list(world.DIRECTIONS))
@pytest.mark.parametrize("speed", list(world.SPEEDS))
def test_the_shape_moves_as_its_caption_says(speed, direction):
    still = sample_still_scene(np.random.default_rng(0))
    scene = replace(still, motion=(speed, direction), start=(0.0, 0.0))
    mask = shape_mask(scene, 11)
    moved = centre(mask[10]) - centre(mask[0])
    expected = 10 * world.SPEEDS[speed] * np.array(world.DIRECTIONS[direction])
    assert moved == pytest.approx(expected, abs=0.3)
    assert f"moves {speed} {direction}" in scene.caption


def test_the_shape_has_its_colour():
    for name, colour in world.COLOURS.items():
        scene = replace(sample_still_scene(np.random.default_rng(0)), colour=name, start=(0.0, 0.0))
        assert render(scene, 1)[0, 32, 32] == pytest.approx(255 * np.array(colour), abs=0.51)
        assert f"a {name} " in scene.caption


def test_captions():
    scene = sample_still_scene(np.random.default_rng(0))
    scene = replace(scene, shape="circle", colour="red", texture="dots")
    assert scene.caption == "a red circle stays still over dots, camera static"
    assert replace(scene, shape=None).caption == "a wall with dots, camera static"
    moving = replace(scene, motion=("slowly", "left"), camera="camera zooms in")
    assert moving.caption == "a red circle moves slowly left over dots, camera zooms in"


def test_captions_use_the_vocabulary():
    for seed in range(60):
        words = scene_of(seed).caption.replace(",", " ,").split()
        assert set(words) <= set(world.VOCABULARY)


def test_choices_are_kept():
    for seed in SEEDS:
        assert scene_of(seed, camera="camera tilts up").camera == "camera tilts up"
        assert scene_of(seed, with_shape=False).shape is None
        assert scene_of(seed, with_shape=True, moving=True).motion is not None
        assert scene_of(seed, with_shape=True, moving=False).motion is None


def test_every_choice_occurs():
    scenes = [scene_of(seed) for seed in range(300)]
    assert {s.camera for s in scenes} == set(world.CAMERAS)
    assert {s.texture for s in scenes} == set(world.TEXTURES)
    assert {s.shape for s in scenes} == {*world.SHAPES, None}
    assert {s.colour for s in scenes} == {*world.COLOURS, None}
    assert sum(s.shape is None for s in scenes) / 300 == pytest.approx(0.1, abs=0.06)
