"""Clips whose answer is known by construction: rendered, or filmed from a photograph."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage import data

from pusa.config import Size
from pusa.data.suite import SuitePrompt
from pusa.data.video import read_video, write_video
from pusa.records import describe_device
from pusa.score.files import COLUMNS, write_scores
from pusa.score.weight_free import (
    MEASURES,
    ClipFeatures,
    classify_camera,
    measure_videos,
    motion_match,
    optical_flow,
    reference_psnr,
)
from pusa.tiny import world

FRAMES = 9
STATIC = "camera static"
#: Where the camera goes for each motion: right, down, and the zoom's sign.
MOTIONS = {
    "static": (0, 0, 0),
    "pans left": (-1, 0, 0),
    "pans right": (1, 0, 0),
    "tilts up": (0, -1, 0),
    "tilts down": (0, 1, 0),
    "zooms in": (0, 0, 1),
    "zooms out": (0, 0, -1),
}


def film(photograph, motion, *, frames=FRAMES, size=(64, 64), way=0.15):
    """A camera over a photograph. It goes, or zooms the border, by ``way`` of the shorter side."""
    height, width = size
    right, down, zoom = MOTIONS[motion]
    clip = []
    for share in np.linspace(0, way, frames):
        scale = np.exp(-2 * share * zoom)  # pixels of the photograph per pixel of the clip
        x = photograph.shape[1] / 2 + right * share * min(size) - scale * (width - 1) / 2
        y = photograph.shape[0] / 2 + down * share * min(size) - scale * (height - 1) / 2
        clip.append(
            cv2.warpAffine(photograph, np.array([[scale, 0, x], [0, scale, y]]), (width, height),
                           flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
        )  # fmt: skip
    return np.stack(clip)


def with_disc(clip, velocity, radius=8):
    """A clip with a striped disc that crosses its middle at ``velocity`` pixels per frame."""
    clip = clip.copy()
    height, width = clip.shape[1:3]
    y, x = np.mgrid[:height, :width]
    for time, frame in enumerate(clip):
        offset = time - (len(clip) - 1) / 2
        right = x - width / 2 - velocity[0] * offset
        below = y - height / 2 - velocity[1] * offset
        inside = np.hypot(right, below) < radius
        frame[inside] = (128 + 90 * np.sin(right + below))[inside, None]
    return clip


def add_noise(clip, strength):
    """Add noise of a standard deviation in grey levels: one for all frames, or one for each."""
    noise = np.random.default_rng(0).normal(size=clip.shape)
    strength = np.broadcast_to(strength, len(clip))[:, None, None, None]
    return (clip + strength * noise).clip(0, 255).round().astype(np.uint8)


def add_blur(clip, strength):
    return np.stack([cv2.GaussianBlur(frame, (0, 0), strength) for frame in clip])


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

    return lambda strength: add_noise(pan, np.linspace(0, strength, FRAMES))


@pytest.fixture(scope="module", params=["astronaut", "coffee", "chelsea", "brick"])
def photograph(request):
    return getattr(data, request.param)() if request.param != "brick" else _coloured(data.brick())


def _coloured(grey):
    return np.repeat(grey[..., None], 3, axis=-1)


# Camera motion


@pytest.mark.parametrize("camera", list(world.CAMERAS))
@pytest.mark.parametrize("seed", [0, 1])
def test_camera_is_named(camera, seed):
    scene = world.sample_still_scene(np.random.default_rng(seed))
    assert classify_camera(clip_of(scene, camera)) == camera.removeprefix("camera ")


@pytest.mark.parametrize("motion", list(MOTIONS))
@pytest.mark.parametrize(
    ("size", "frames", "way"),
    [((64, 64), 9, 0.15), ((64, 64), 33, 0.04), ((64, 112), 33, 0.6), ((144, 96), 17, 0.15)],
)
def test_camera_over_a_photograph_is_named(photograph, motion, size, frames, way):
    clip = film(photograph, motion, size=size, frames=frames, way=way)
    assert classify_camera(clip) == motion


@pytest.mark.parametrize("motion", list(MOTIONS))
def test_noise_and_compression_do_not_hide_the_camera(motion, tmp_path):
    clip = film(data.astronaut(), motion, frames=33, way=0.1)
    write_video(tmp_path / "a.mp4", clip)
    for worse in (read_video(tmp_path / "a.mp4"), add_noise(clip, 12)):
        assert classify_camera(worse) == motion


def test_a_drift_is_static():
    clip = film(data.astronaut(), "pans left", frames=33, way=0.004)
    assert classify_camera(clip) == "static"


@pytest.mark.parametrize("direction", list(world.DIRECTIONS))
def test_a_moving_shape_is_not_a_moving_camera(scene, direction):
    clip = clip_of(scene, motion=("quickly", direction))
    assert classify_camera(clip) == "static"


@pytest.mark.parametrize("velocity", [(1.5, 0), (-1.5, 0), (0, 1.5)])
@pytest.mark.parametrize("motion", ["static", "pans left", "tilts up", "zooms in"])
def test_a_moving_subject_does_not_hide_the_camera(motion, velocity):
    clip = with_disc(film(data.coffee(), motion, frames=17), velocity)
    assert classify_camera(clip) == motion


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


@pytest.mark.parametrize("worsen", [add_blur, add_noise])
def test_blur_and_noise_cost_imaging_quality(photograph, worsen):
    clip = film(photograph, "pans left")
    some, more = (2, 4) if worsen is add_blur else (10, 30)
    clips = (clip, worsen(clip, some), worsen(clip, more))
    values = [measure("imaging_quality", c) for c in clips]
    assert values[0] > values[1] + 0.03
    assert values[1] > values[2] + 0.03


def test_growing_noise_costs_imaging_quality(photograph):
    clip = film(photograph, "pans left")
    values = [
        measure("imaging_quality", add_noise(clip, np.linspace(0, strength, FRAMES)))
        for strength in (0, 20, 60)
    ]
    assert values[0] > values[1] + 0.03
    assert values[1] > values[2] + 0.03


@pytest.mark.parametrize("strength", [2, 5])
def test_noise_does_not_move(strength, photograph):
    still = film(photograph, "static", frames=33)
    noise = np.random.default_rng(0).normal(0, strength, still.shape)
    assert measure("dynamic_degree", np.clip(still + noise, 0, 255).astype(np.uint8)) == 0


@pytest.mark.parametrize("motion", list(MOTIONS))
def test_a_moving_camera_is_dynamic(photograph, motion):
    clip = film(photograph, motion, way=0.1)
    assert measure("dynamic_degree", clip) == (motion != "static")


def test_grey_costs_aesthetic_quality(pan):
    grey = pan.mean(-1, keepdims=True).repeat(3, -1).astype(np.uint8)
    flat = np.full_like(pan, 128)
    values = [measure("aesthetic_quality", clip) for clip in (pan, grey, flat)]
    assert values[0] > values[1] > values[2] == 0


FLAT = np.full((3, 48, 64, 3), 128, np.uint8)
STEP = np.where(np.arange(64)[:, None] < 32, FLAT, 0)
DEGENERATE = {
    "grey": FLAT,
    "black": FLAT * 0,
    "white": FLAT * 0 + 255,
    "one edge": STEP,
    "one colour, then another": np.concatenate([FLAT * 0, FLAT]),
    "vanishes": np.concatenate([STEP, FLAT]),
    "noise": np.random.default_rng(0).integers(0, 256, FLAT.shape, np.uint8),
    "tall": np.random.default_rng(0).integers(0, 256, (3, 96, 32, 3), np.uint8),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("clip", DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("name", list(MEASURES))
def test_values_lie_in_0_1(name, clip):
    assert 0 <= measure(name, clip) <= 1 + 1e-6


@pytest.mark.parametrize("name", list(MEASURES))
def test_values_of_cuts_and_noise_lie_in_0_1(name, cut, noisy):
    for clip in (cut, noisy(200)):
        assert 0 <= measure(name, clip) <= 1 + 1e-6


@pytest.mark.parametrize("name", ["grey", "black", "white", "one edge"])
def test_camera_over_nothing_to_see_is_static(name):
    assert classify_camera(DEGENERATE[name]) == "static"


def test_what_vanishes_is_not_consistent():
    vanishes, stays = DEGENERATE["vanishes"], DEGENERATE["one edge"]
    assert measure("subject_consistency", stays) == pytest.approx(1, abs=1e-6)
    # Half of the colours and no edge stay: 1/4, twice for the first frame without, and for two
    # more frames against the first.
    expected = np.mean([1, 1, 1 / 4, (1 / 4 + 1) / 2, (1 / 4 + 1) / 2])
    assert measure("subject_consistency", vanishes) == pytest.approx(expected, abs=0.03)


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
    table, _ = measure_videos(
        prompts, videos, folder, size=Size(frames=FRAMES, height=64, width=64), **options
    )
    return table


def test_one_row_per_video_and_dimension(tmp_path, prompts, videos):
    table = score(prompts, videos, tmp_path)
    assert tuple(table.columns) == COLUMNS
    assert set(table["frames"]) == {FRAMES}
    assert set(table["scorer"]) == {"weight_free"}
    for index in (0, 2, 4, 6):
        rows = table[table["index"] == index]
        assert tuple(rows["dimension"]) == prompts[index].dimensions
        assert set(rows["kind"]) == {prompts[index].kind}
    camera = table[table["dimension"] == "camera_motion"]
    assert list(camera["value"]) == [1.0, 1.0]


def test_scores_can_be_written(tmp_path, prompts, videos):
    table, record = measure_videos(
        prompts, videos, tmp_path, size=Size(frames=FRAMES, height=64, width=64)
    )
    assert record["scorer"] == "weight_free"
    assert record["dimensions"] == sorted(set(table["dimension"]))
    assert record["device"] == describe_device("cpu")
    assert "scikit-image" in record["packages"]
    write_scores(table, record, tmp_path / "scores.csv")
    assert len(pd.read_csv(tmp_path / "scores.csv")) == len(table)


def test_references_add_three_measures(tmp_path, prompts, videos, suite):
    table = score(prompts, videos, tmp_path, references=suite / "reference")
    match = table[table["dimension"] == "motion_match"]
    assert list(match["value"]) == [1.0] * 4
    psnr = table[table["dimension"] == "reference_psnr"]
    assert (psnr["value"] > 30).all()  # encoded once more, else the same
    explained = table[table["dimension"] == "motion_explained"]
    assert (explained["value"] > 0.9).all()


def test_a_wrong_camera_scores_nothing(tmp_path, prompts, videos, suite):
    clip = read_video(tmp_path / "0004-0.mp4")
    write_video(tmp_path / "0004-0.mp4", clip[::-1])
    table = score(prompts, videos, tmp_path, references=suite / "reference")
    values = table[table["index"] == 4].set_index("dimension")["value"]
    assert values["camera_motion"] == 0
    assert values["motion_match"] == 0


def test_missing_video(tmp_path, prompts, videos):
    (tmp_path / "0002-0.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"video .*0002-0\.mp4 is missing"):
        score(prompts, videos, tmp_path)


def test_unreadable_video(tmp_path, prompts, videos):
    (tmp_path / "0002-0.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"0002-0\.mp4: cannot be read as a video"):
        score(prompts, videos, tmp_path)


def test_short_video(tmp_path, prompts, videos):
    write_video(tmp_path / "0002-0.mp4", np.zeros((2, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"0002-0\.mp4: 2 frames, expected 9"):
        score(prompts, videos, tmp_path)


def test_short_reference(tmp_path, prompts, videos):
    references = tmp_path / "reference"
    references.mkdir()
    for index in (0, 2, 4, 6):
        write_video(
            references / f"{index:04d}.mp4", np.zeros((FRAMES - (index == 4), 64, 64, 3), np.uint8)
        )
    with pytest.raises(ValueError, match=r"0004\.mp4: 8 frames, expected at least 9"):
        score(prompts, videos, tmp_path, references=references)


def test_psnr():
    truth = np.zeros((3, 8, 8, 3), np.uint8)
    clip = truth.copy()
    clip[1:] = 51  # a fifth of the range: 20 log10(5)
    assert reference_psnr(clip, truth) == pytest.approx(13.979, abs=0.001)
    clip[1:] = 0
    clip[0] = 255  # the given frame does not count
    assert reference_psnr(clip, truth) == 60


def test_video_of_another_size(tmp_path, prompts, videos):
    write_video(tmp_path / "0002-0.mp4", np.zeros((9, 48, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"0002-0\.mp4: 64x48 pixels, expected 64x64"):
        score(prompts, videos, tmp_path)


def test_manifest_of_another_suite(tmp_path, prompts, videos):
    with pytest.raises(ValueError, match=r"0006-0\.mp4: the suite has no prompt 6"):
        score(prompts[:6], videos, tmp_path)


def test_prompt_without_a_camera_motion(tmp_path, prompts, videos):
    prompts = [replace(p, prompt=p.prompt.replace("camera ", "it ")) for p in prompts]
    videos = videos.assign(prompt=videos["prompt"].str.replace("camera ", "it "))
    with pytest.raises(ValueError, match=r"prompt 4 '.*, it .*' names no camera motion"):
        score(prompts, videos, tmp_path)


def test_videos_of_another_prompt(tmp_path, prompts, videos):
    with pytest.raises(ValueError, match=r"0000-0\.mp4 was made for 'a cat', but the suite's prom"):
        score(prompts, videos.assign(prompt="a cat"), tmp_path)


def test_other_image_sizes(tmp_path):
    """Not only 64x64: the image is wide and the shape is measured in shares of its side."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    large = cv2.resize(pixels, (160, 96), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(large).save(tmp_path / "a.png")
    prompt = SuitePrompt(0, "a, camera pans right", ("i2v_subject", "camera_motion"), Path("."))
    prompt = replace(prompt, image=tmp_path / "a.png")
    wide = cv2.resize(pixels, (240, 96), interpolation=cv2.INTER_CUBIC)
    clip = np.stack([wide[:, 2 * i : 2 * i + 160] for i in range(9)])
    write_video(tmp_path / "a.mp4", clip)
    row = {"file": "a.mp4", "index": 0, "prompt": prompt.prompt, "sample": 0}
    table, _ = measure_videos(
        [prompt],
        pd.DataFrame([row]),
        tmp_path,
        size=Size(frames=9, height=96, width=160),
    )
    values = table.set_index("dimension")["value"]
    assert values["camera_motion"] == 1
    assert 0 < values["i2v_subject"] < 1
