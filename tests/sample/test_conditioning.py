from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pusa.config import Size
from pusa.data.video import read_video, write_video
from pusa.models.load import encode_pixels, frames_to_pixels, load_vae
from pusa.sample.conditioning import (
    Condition,
    Placement,
    check_conditions,
    describe_frames,
    encode_conditions,
    given_frames,
    latent_frame,
    parse_placement,
    pixel_frames,
    read_conditions,
)

#: Seven latent frames: 1 | 2-5 | 6-9 | 10-13 | 14-17 | 18-21 | 22-25
SIZE = Size(frames=25, height=64, width=64)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two clips of 33 frames, and two images, of which no two frames are alike."""
    folder = tmp_path_factory.mktemp("files")
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        textures = generator.integers(0, 256, (33, 4, 4, 3), np.uint8)
        write_video(folder / f"{name}.mp4", textures.repeat(16, axis=1).repeat(16, axis=2))
        pixels = generator.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def clips(files):
    return {name: read_video(files / f"{name}.mp4") for name in ("a", "b")}


@pytest.fixture(scope="module")
def images(files):
    return {name: np.asarray(Image.open(files / f"{name}.png"))[None] for name in ("a", "b")}


def read(files, *placements):
    return read_conditions([parse_placement(f"{files}/{p}") for p in placements], SIZE)


# Frames, as people and as the model count them


def test_latent_and_pixel_frames():
    for latent, (first, last) in {0: (1, 1), 1: (2, 5), 2: (6, 9), 20: (78, 81)}.items():
        assert pixel_frames(latent) == (first, last)
        assert {latent_frame(frame) for frame in range(first, last + 1)} == {latent}


def test_map_of_frames():
    assert describe_frames(9) == "9 pixel frames = 3 latent frames: 1 | 2-5 | 6-9"
    assert describe_frames(81).endswith("21 latent frames: 1 | 2-5 | 6-9 | 10-13 | … | 78-81")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clip.mp4#-13@1-13:0.3", ("clip.mp4", -13, 1, 13, (0.3,))),
        ("cat.png@1", ("cat.png", 1, 1, 1, (0.0,))),
        ("a b/clip.mp4#30@70-81:0,0.3,1", ("a b/clip.mp4", 30, 70, 81, (0.0, 0.3, 1.0))),
        ("me@home #2:x.png#1@5", ("me@home #2:x.png", 1, 5, 5, (0.0,))),
    ],
)
def test_placement_in_words(text, expected):
    file, source, first, last, multipliers = expected
    placement = Placement(Path(file), source, first, last, multipliers)
    assert parse_placement(text) == placement
    assert parse_placement(str(placement)) == placement


@pytest.mark.parametrize("text", ["cat.png", "@1", "cat.png@-1", "a.mp4@1-", "a.png@٣", ""])
def test_placement_that_nobody_understands(text):
    with pytest.raises(ValueError, match=rf"condition '{text}': expected FILE\[#FROM\]@FIRST"):
        parse_placement(text)


def test_multiplier_that_is_no_number():
    with pytest.raises(ValueError, match=r"'0\.3,' is not a noise multiplier"):
        parse_placement("a.png@1:0.3,")


# What is encoded together


def test_start_and_end_image_are_encoded_alone(files, images):
    start, end = read(files, "a.png@1:0.3", "b.png@25:0.7")
    assert np.array_equal(start.pixels, images["a"])
    assert np.array_equal(end.pixels, images["b"])
    assert (start.latent_frames, start.multipliers) == ((0,), (0.3,))
    assert (end.latent_frames, end.multipliers) == ((6,), (0.7,))


def test_start_frame_and_last_four_are_one_run(files, images, clips):
    (run,) = read(files, "a.png@1", "b.mp4#-4@22-25:0.5")
    assert np.array_equal(run.pixels, np.concatenate([images["a"], clips["b"][-4:]]))
    assert (run.latent_frames, run.multipliers) == ((0, 6), (0.0, 0.5))


def test_first_nine_and_last_twelve_are_one_run(files, clips):
    (run,) = read(files, "a.mp4@1-9:0,0.1,0.2", "b.mp4#22@14-25")
    assert np.array_equal(run.pixels, np.concatenate([clips["a"][:9], clips["b"][21:]]))
    assert run.latent_frames == (0, 1, 2, 4, 5, 6)
    assert run.multipliers == (0, 0.1, 0.2, 0, 0, 0)


def test_later_clip_without_a_start_repeats_its_first_frame(files, clips):
    (run,) = read(files, "a.mp4#5@6-13:0.2")
    assert np.array_equal(run.pixels, clips["a"][[4, *range(4, 12)]])
    assert (run.latent_frames, run.multipliers) == ((2, 3), (0.2, 0.2))


def test_end_of_a_clip_is_continued(files, clips):
    (run,) = read(files, "a.mp4#-13@1-13")
    assert np.array_equal(run.pixels, clips["a"][20:])
    assert run.latent_frames == (0, 1, 2, 3)


def test_keyframes_at_any_place(files, images, clips):
    conditions = read(files, "a.png@1", "a.mp4#3@7", "b.mp4@14-17", "b.png@25")
    assert [c.latent_frames for c in conditions] == [(0, 4), (2,), (6,)]
    assert np.array_equal(conditions[0].pixels, np.concatenate([images["a"], clips["b"][:4]]))
    assert np.array_equal(conditions[1].pixels, clips["a"][2:3])


def test_clip_and_image_are_resized_by_one_rule(tmp_path):
    """Of an odd size, as a film and as a picture."""
    ramp = np.linspace(0, 255, 99).astype(np.uint8)
    picture = np.broadcast_to(ramp[None, :, None], (75, 99, 3))
    Image.fromarray(picture).save(tmp_path / "a.png")
    frames = [Image.fromarray(np.roll(picture, 9 * n, axis=1)) for n in (0, 1)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=60)
    (image,) = read(tmp_path, "a.png@1")
    with pytest.warns(UserWarning, match=r"a\.gif has 16\.67 frames per second, and the model 16"):
        (film,) = read(tmp_path, "a.gif@1")
    assert film.pixels.shape == (1, 64, 64, 3)
    assert np.abs(film.pixels.astype(int) - image.pixels).max() <= 3


def test_given_frames():
    placements = [
        parse_placement(text)
        for text in ("a.png@1:0.2", "b.mp4@6-13", "c.mp4@14-21:0,0.5", "d.png@25:0.3")
    ]
    assert given_frames(placements) == [
        [1, 1, 0.2],
        [6, 13, 0.0],
        [14, 17, 0.0],
        [18, 21, 0.5],
        [25, 25, 0.3],
    ]
    assert given_frames([]) == []


# Encoding


@pytest.fixture(scope="module")
def vae(model):
    return load_vae(model)


SHAPE = (16, 7, 8, 8)


def test_encoded_alone(vae, files, images):
    latents, multipliers = encode_conditions(
        vae, read(files, "a.png@1", "b.png@25:0.7"), SHAPE, device="cpu"
    )
    assert latents.shape == (1, *SHAPE)
    for name, frame in (("a", 0), ("b", 6)):
        alone = encode_pixels(vae, frames_to_pixels(images[name][None]))
        assert torch.equal(latents[:, :, frame : frame + 1], alone)
    assert not latents[:, :, 1:6].any()
    torch.testing.assert_close(multipliers, torch.tensor([0, 1, 1, 1, 1, 1, 0.7]))


def test_encoded_together(vae, files, clips):
    latents, multipliers = encode_conditions(
        vae, read(files, "a.mp4@1-9", "b.mp4@14-25"), SHAPE, device="cpu"
    )
    pixels = np.concatenate([clips["a"][:9], clips["b"][:12]])
    run = encode_pixels(vae, frames_to_pixels(pixels[None]))
    assert torch.equal(latents[:, :, [0, 1, 2, 4, 5, 6]], run)
    assert multipliers.tolist() == [0, 0, 0, 1, 0, 0, 0]


def test_latent_of_the_repeated_frame_is_dropped(vae, files, clips):
    latents, multipliers = encode_conditions(vae, read(files, "a.mp4@6-13"), SHAPE, device="cpu")
    run = encode_pixels(vae, frames_to_pixels(clips["a"][None, [0, *range(8)]]))
    assert torch.equal(latents[:, :, 2:4], run[:, :, 1:])
    assert not latents[:, :, [0, 1, 4, 5, 6]].any()
    assert multipliers.tolist() == [1, 1, 0, 0, 1, 1, 1]


def test_nothing_to_encode(vae):
    latents, multipliers = encode_conditions(vae, [], SHAPE, device="cpu")
    assert latents.shape == (1, *SHAPE)
    assert not latents.any()
    assert multipliers.tolist() == [1] * 7


# Errors


@pytest.mark.parametrize(
    ("placements", "message"),
    [
        (["a.png@0"], r"a\.png@0: expected frames that rise, from 1 to the 25 of the video, or"),
        (["a.mp4@9-1"], r"a\.mp4@9-1: expected frames that rise"),
        (["a.mp4#0@1"], r"a\.mp4#0@1: taken from frame 0 of the file, but frames are counted from"),
        (["a.mp4@1-12"], r"a\.mp4@1-12: a clip must fill .* as 1-13 does \(25 pixel frames"),
        (["a.mp4@13-25"], r"@13-25: a clip must fill whole latent frames, as 14-25 does"),
        (["a.mp4@3-4"], r"@3-4: a clip must fill whole latent frames, as 2-5 does"),
        (
            ["a.mp4@1-5:0.5,1.5"],
            r"a\.mp4@1-5:0\.5,1\.5: noise multiplier 1\.5, expected 0 \(clean\) to 1",
        ),
        (["a.png@1:nan"], r"a\.png@1:nan: noise multiplier nan, expected 0"),
        (
            ["a.mp4@1-9:0,0.5"],
            r"a\.mp4@1-9:0,0\.5: 2 noise multipliers, expected 1 or one for each of the 3",
        ),
        (["b.png@25", "a.png@1"], r"a\.png@1 comes after \S*b\.png@25, expected them in order"),
        (
            ["a.png@22", "b.png@25"],
            r"a\.png@22 and \S*b\.png@25 overlap in the latent frame that holds 22-25",
        ),
        (["a.mp4@10-13", "b.mp4@2-13"], r"overlap in the latent frame that holds 10-13"),
        (
            ["a.mp4#22@1-13"],
            r"a\.mp4#22@1-13: 13 frames from frame 22 of the file on, which has 33",
        ),
        (["a.mp4#-34@1"], r"a\.mp4#-34@1: taken from frame -34 of the file, which has 33"),
        (["a.png@1-5"], r"a\.png@1-5: an image is one frame, expected \S*a\.png@1 or a clip"),
        (["a.png#2@1"], r"a\.png#2@1: an image is one frame, expected \S*a\.png@1 or"),
        (["no.png@1", "a.mp4@2-4"], r"a\.mp4@2-4: a clip must fill"),  # before a file is opened
    ],
)
def test_placements_that_cannot_be(files, placements, message):
    with pytest.raises(ValueError, match=message):
        read(files, *placements)


def test_files_that_cannot_be(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no\.mp4 does not exist; expected an image or"):
        read(tmp_path, "no.mp4@1")
    with pytest.raises(
        FileNotFoundError, match=r"a\.mp4#x does not .*, and a whole number behind #"
    ):
        read(tmp_path, "a.mp4#x@1")
    with pytest.raises(ValueError, match=r"folder is no file; expected an image or a video"):
        read(tmp_path, "folder@1")
    with pytest.raises(ValueError, match=r"notes\.txt: cannot be read as a video"):
        read(tmp_path, "notes.txt@1")
    with pytest.raises(ValueError, match=r"a\.jpg is not a readable image"):
        read(tmp_path, "a.jpg@1")


def pixels(n=5, height=64, width=64, dtype=np.uint8):
    return np.zeros((n, height, width, 3), dtype)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ([Condition(pixels(4), (0,), (0.0,))], "frames 0: the number of frames must be .* found 4"),
        ([Condition(pixels(width=32), (0,), (0.0,))], r"are uint8 \(5, 64, 32, 3\), expected"),
        ([Condition(pixels(dtype=np.float32), (0,), (0.0,))], "pixels are float32"),
        ([Condition(pixels(), (), ())], "frames none: expected 1 to 2 of them"),
        ([Condition(pixels(), (0, 1, 2), (0.0,) * 3)], "0, 1, 2: expected 1 to 2 of them, as 5"),
        ([Condition(pixels(), (4, 3), (0.0, 0.0))], "latent frames 4, 3: expected them to rise"),
        ([Condition(pixels(), (5, 7), (0.0, 0.0))], "5, 7: expected 0 to 6, as in 25 frames"),
        ([Condition(pixels(), (0, 3), (0.0, 1.1))], "0, 3: noise multiplier 1.1, expected 0"),
        ([Condition(pixels(), (0, 3), (0.0,))], "0, 3: 1 noise multipliers, expected 2"),
        (
            [Condition(pixels(), (0, 3), (0.0, 0.0)), Condition(pixels(1), (3,), (0.0,))],
            "latent frames 3: latent frame 3 is given twice",
        ),
    ],
)
def test_conditions_that_cannot_be(conditions, message):
    with pytest.raises(ValueError, match=message):
        check_conditions(conditions, SIZE)


def test_conditions_that_can_be(files):
    check_conditions([], SIZE)
    check_conditions(read(files, "a.png@1", "a.mp4#3@7", "b.mp4@14-17", "b.png@25"), SIZE)
    check_conditions([Condition(pixels(9), (4, 5), (0.0, 1.0))], SIZE)  # the lead is dropped
