"""Clips whose answer is known: the world is rendered, so what moves and how is no guess."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pusa.scores import (
    MEASURES,
    ClipFeatures,
    camera_of_prompt,
    classify_camera,
    motion_match,
    optical_flow,
    score_videos,
)
from pusa.suite import SuitePrompt
from pusa.tiny import world
from pusa.video import read_video, write_video

FRAMES = 9
STATIC = "camera static"


@pytest.fixture(scope="module")
def scene():
    """A textured wall with a resting shape in the middle."""
    return world.sample_still_scene(np.random.default_rng(3))


def clip_of(scene, camera=STATIC, motion=None):
    return world.render(replace(scene, camera=camera, motion=motion), frames=FRAMES)


def measure(name, clip, image=None):
    return MEASURES[name](ClipFeatures(clip, clip[0] if image is None else image))


@pytest.fixture(scope="module")
def pan(scene):
    return clip_of(scene, "camera pans left")


@pytest.fixture(scope="module")
def cut(scene, pan):
    """A clip that becomes another in its middle."""
    other = world.sample_still_scene(np.random.default_rng(8))
    return np.concatenate([pan[:5], clip_of(other, "camera pans left")[5:]])


@pytest.fixture(scope="module")
def noisy(pan):
    """A function that adds noise whose strength grows from frame to frame."""

    def add(strength):
        noise = np.random.default_rng(0).normal(size=pan.shape)
        growth = np.linspace(0, strength, FRAMES)[:, None, None, None]
        return (pan + growth * noise).clip(0, 255).round().astype(np.uint8)

    return add


# Camera motion


@pytest.mark.parametrize("camera", list(world.CAMERAS))
@pytest.mark.parametrize("seed", [0, 1])
def test_camera_is_named(camera, seed):
    scene = world.sample_still_scene(np.random.default_rng(seed))
    found = classify_camera(optical_flow(clip_of(scene, camera)))
    assert found == camera.removeprefix("camera ")


def test_a_moving_subject_is_not_a_moving_camera(scene):
    clip = clip_of(scene, motion=("quickly", "left"))
    assert classify_camera(optical_flow(clip)) == "static"


@pytest.mark.parametrize(
    ("prompt", "camera"),
    [
        ("a wall with dots, camera pans left", "pans left"),
        ("a close up, of a cup, on a table, camera zooms out", "zooms out"),
        ("a red circle stays still over clouds, camera static", "static"),
    ],
)
def test_camera_of_prompt(prompt, camera):
    assert camera_of_prompt(prompt) == camera


# Consistency, smoothness, motion, sharpness


def test_still_clip_is_perfectly_consistent_and_not_dynamic(scene):
    clip = clip_of(scene)
    for name in (
        "subject_consistency",
        "background_consistency",
        "motion_smoothness",
        "i2v_subject",
        "i2v_background",
    ):
        assert measure(name, clip) == pytest.approx(1, abs=1e-6), name
    assert measure("dynamic_degree", clip) == 0


@pytest.mark.parametrize("direction", list(world.DIRECTIONS))
def test_a_moving_shape_is_dynamic(scene, direction):
    assert measure("dynamic_degree", clip_of(scene, motion=("quickly", direction))) == 1


@pytest.mark.parametrize(
    "name",
    [
        "subject_consistency",
        "background_consistency",
        "motion_smoothness",
        "i2v_subject",
        "i2v_background",
    ],
)
def test_a_cut_costs(name, pan, cut):
    assert measure(name, cut) < measure(name, pan) - 0.01


@pytest.mark.parametrize(
    "name", ["subject_consistency", "background_consistency", "motion_smoothness"]
)
def test_growing_noise_costs_more_and_more(name, noisy):
    values = [measure(name, noisy(strength)) for strength in (0, 15, 40)]
    assert values[0] > values[1] + 0.01
    assert values[1] > values[2] + 0.01


def test_another_image_is_not_followed(pan):
    other = clip_of(world.sample_still_scene(np.random.default_rng(8)))[0]
    for name in ("i2v_subject", "i2v_background"):
        assert measure(name, pan, other) < measure(name, pan) - 0.1, name


def test_blur_costs_imaging_quality(pan):
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in pan])
    more = np.stack([cv2.GaussianBlur(frame, (0, 0), 4) for frame in pan])
    values = [measure("imaging_quality", clip) for clip in (pan, blurred, more)]
    assert values[0] > values[1] + 0.05
    assert values[1] > values[2] + 0.02


def test_grey_costs_aesthetic_quality(pan):
    grey = pan.mean(-1, keepdims=True).repeat(3, -1).astype(np.uint8)
    flat = np.full_like(pan, 128)
    values = [measure("aesthetic_quality", clip) for clip in (pan, grey, flat)]
    assert values[0] > values[1] > values[2] == 0


@pytest.mark.parametrize("name", list(MEASURES))
def test_values_lie_in_0_1(name, pan, cut, noisy):
    clips = [pan, cut, noisy(200), np.zeros_like(pan), np.full_like(pan, 255)]
    for clip in clips:
        assert 0 <= measure(name, clip) <= 1 + 1e-9


def test_mirroring_changes_no_measure_of_looks(pan):
    for name in ("subject_consistency", "aesthetic_quality", "dynamic_degree", "imaging_quality"):
        mirrored = measure(name, pan[:, :, ::-1].copy())
        assert mirrored == pytest.approx(measure(name, pan), abs=0.02), name


# Motion against the true continuation


@pytest.mark.parametrize(
    ("camera", "motion"),
    [
        ("camera pans left", None),
        ("camera tilts down", None),
        ("camera zooms in", None),
        (STATIC, ("slowly", "up")),
        (STATIC, ("quickly", "right")),
    ],
)
def test_motion_matches_itself_and_not_its_opposite(scene, camera, motion):
    clip = clip_of(scene, camera, motion)
    flow = optical_flow(clip)
    assert motion_match(flow, flow) == 1
    assert motion_match(optical_flow(clip[::-1].copy()), flow) == 0
    assert motion_match(optical_flow(clip_of(scene)), flow) == 0


def test_rest_matches_rest_alone(scene):
    still = optical_flow(clip_of(scene))
    assert motion_match(still, still) == 1
    for camera, motion in (("camera pans left", None), (STATIC, ("quickly", "up"))):
        assert motion_match(optical_flow(clip_of(scene, camera, motion)), still) == 0


@pytest.mark.parametrize("direction", ["left", "right"])
def test_mirrored_motion_does_not_match(scene, direction):
    clip = clip_of(scene, motion=("quickly", direction))
    mirrored = clip[:, :, ::-1].copy()
    assert motion_match(optical_flow(mirrored), optical_flow(clip)) == 0


def test_a_quarter_of_the_speed_does_not_match(scene):
    still = replace(scene, camera=STATIC)
    clip = world.render(replace(still, motion=("quickly", "right")), frames=33)
    slow, fast = clip[:9], clip[::4]
    assert motion_match(optical_flow(fast), optical_flow(slow)) == 0


# Whole videos


@pytest.fixture
def videos(tmp_path, suite, prompts):
    """The references as if they were samples: 0 subject, 2 background, 4 and 6 camera."""
    rows = []
    for index in (0, 2, 4, 6):
        name = prompts[index].video_name(0)
        clip = read_video(suite / "reference" / f"{index:04d}.mp4")[:FRAMES]
        write_video(tmp_path / name, clip)
        rows.append({"file": name, "index": index, "prompt": prompts[index].prompt, "sample": 0})
    return pd.DataFrame(rows)


def score(prompts, videos, folder, **options):
    return score_videos(prompts, videos, folder, height=64, width=64, **options)


def test_one_row_per_video_and_dimension(tmp_path, prompts, videos):
    table = score(prompts, videos, tmp_path)
    assert list(table.columns) == ["file", "index", "sample", "kind", "dimension", "value"]
    for index in (0, 2, 4, 6):
        rows = table[table["index"] == index]
        assert tuple(rows["dimension"]) == prompts[index].dimensions
        assert set(rows["kind"]) == {prompts[index].kind}
    camera = table[table["dimension"] == "camera_motion"]
    assert list(camera["value"]) == [1.0, 1.0]


def test_references_add_two_measures(tmp_path, prompts, videos, suite):
    table = score(prompts, videos, tmp_path, references=suite / "reference")
    match = table[table["dimension"] == "motion_match"]
    assert list(match["value"]) == [1.0] * 4
    psnr = table[table["dimension"] == "reference_psnr"]
    assert (psnr["value"] > 30).all()  # encoded once more, else the same


def test_a_wrong_camera_scores_nothing(tmp_path, prompts, videos, suite):
    clip = read_video(tmp_path / "0004-0.mp4")
    write_video(tmp_path / "0004-0.mp4", clip[::-1])
    table = score(prompts, videos, tmp_path, references=suite / "reference")
    values = table[table["index"] == 4].set_index("dimension")["value"]
    assert values["camera_motion"] == 0
    assert values["motion_match"] == 0


def test_missing_video(tmp_path, prompts, videos):
    (tmp_path / "0002-0.mp4").unlink()
    with pytest.raises(ValueError, match=r"video .*0002-0\.mp4 is missing"):
        score(prompts, videos, tmp_path)


def test_unreadable_video(tmp_path, prompts, videos):
    (tmp_path / "0002-0.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"0002-0\.mp4: cannot be read as a video"):
        score(prompts, videos, tmp_path)


def test_short_video(tmp_path, prompts, videos):
    write_video(tmp_path / "0002-0.mp4", np.zeros((2, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"0002-0\.mp4: 2 frames, expected at least 3"):
        score(prompts, videos, tmp_path)


def test_video_of_another_size(tmp_path, prompts, videos):
    write_video(tmp_path / "0002-0.mp4", np.zeros((9, 48, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"0002-0\.mp4: 64x48 pixels, expected 64x64"):
        score(prompts, videos, tmp_path)


def test_manifest_of_another_suite(tmp_path, prompts, videos):
    with pytest.raises(ValueError, match="6"):
        score(prompts[:6], videos, tmp_path)


def test_other_image_sizes(tmp_path):
    """Not only 64x64: the image is wide and the shape is measured in shares of its side."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    large = cv2.resize(pixels, (160, 96), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(large).save(tmp_path / "a.png")
    prompt = SuitePrompt(0, "a, camera pans right", ("i2v_subject", "camera_motion"), Path("."))
    prompt = replace(prompt, image=tmp_path / "a.png")
    wide = cv2.resize(pixels, (240, 96), interpolation=cv2.INTER_CUBIC)
    clip = np.stack([wide[:, 2 * i : 2 * i + 160] for i in range(7)])
    write_video(tmp_path / "a.mp4", clip)
    row = {"file": "a.mp4", "index": 0, "prompt": prompt.prompt, "sample": 0}
    table = score_videos([prompt], pd.DataFrame([row]), tmp_path, height=96, width=160)
    values = table.set_index("dimension")["value"]
    assert values["camera_motion"] == 1
    assert 0 < values["i2v_subject"] < 1
