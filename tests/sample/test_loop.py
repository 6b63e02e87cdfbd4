from importlib.metadata import version

import numpy as np
import pytest
from PIL import Image

from pusa.config import GenerateSettings, Outputs
from pusa.data.manifest import COLUMNS
from pusa.data.video import read_settings, read_video, write_video
from pusa.digests import digest_file
from pusa.records import describe_device
from pusa.sample import loop
from pusa.sample.conditioning import parse_placement
from pusa.sample.loop import Request, list_videos, make_videos, plan_videos

SETTINGS = GenerateSettings(frames=9, height=64, width=64, steps=2)
ONE = [Request(name="a", prompt="a wall")]
THREE = [Request(name=name, prompt=f"a {name} wall") for name in ("red", "blue", "dark")]


@pytest.fixture
def write(tmp_path):
    """A function that writes videos of one grey each, and keeps the batches that are made."""

    def call(requests=ONE, settings=SETTINGS, out=tmp_path, batch_size=1, writes=True, **outputs):
        def load():
            call.loads += 1
            return make

        def make(batch):
            call.batches.append([request.name for request in batch])
            call.made += len(batch)
            greys = 20 * np.arange(call.made - len(batch) + 1, call.made + 1)
            frames = greys[:, None] + np.arange(9)
            shape = (*frames.shape, 64, 64, 3)
            return np.broadcast_to(frames[:, :, None, None, None], shape).astype(np.uint8)

        planned = plan_videos(
            requests, settings, out, origin={"model": "fake"}, outputs=Outputs(**outputs)
        )
        make_videos(planned, load, device="cpu", batch_size=batch_size, writes=writes)
        return [video.path for video in planned]

    call.loads, call.made, call.batches = 0, 0, []
    return call


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (80, 112, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def given(file, *places):
    return tuple(parse_placement(f"{file}@{place}") for place in places)


def greys(frames):
    return np.asarray(frames)[:, 0, 0, 0].tolist()


def times(files):
    return {file.name: file.stat().st_mtime_ns for file in files}


def test_batches_in_the_order_of_requests(write, tmp_path):
    videos = write(THREE, out=tmp_path / "out", batch_size=2)
    assert write.batches == [["red", "blue"], ["dark"]]
    assert videos == [tmp_path / "out" / f"{name}.mp4" for name in ("red", "blue", "dark")]
    for number, video in enumerate(videos, start=1):
        assert np.abs(greys(read_video(video)) - (20 * number + np.arange(9))).max() <= 2


def test_list_of_videos(tmp_path):
    requests = [Request(name="a", prompt="x"), Request(name="b", prompt="x", sample=1)]
    for request in requests:
        (tmp_path / request.file).write_text(request.name)
    assert list_videos(requests, [4, 4], tmp_path, "cpu").to_dict("list") == {
        "file": ["a.mp4", "b.mp4"],
        "index": [4, 4],
        "prompt": ["x", "x"],
        "sample": [0, 1],
        "sha256": [digest_file(tmp_path / name) for name in ("a.mp4", "b.mp4")],
        "device": [describe_device("cpu")] * 2,
    }
    assert list(list_videos([], [], tmp_path, "cpu")) == [*COLUMNS, "device"]


def test_record_is_in_the_file(write, image):
    request = Request(name="loop", prompt="a", sample=3, placements=given(image, "1:0.3", "9"))
    settings = SETTINGS.model_copy(update={"guidance_scale": 1.5, "negative_prompt": "dots"})
    [video] = write([request], settings)
    found = read_settings(video)
    assert set(found.pop("made_with")) == {"pusa", "device"}
    conditions = found.pop("conditions")
    assert [(c["file"], c["multipliers"]) for c in conditions] == [
        ("image.png", [0.3]),
        ("image.png", [0.0]),
    ]
    assert {len(c["sha256"]) for c in conditions} == {64}
    assert found == {
        "prompt": "a",
        "sample": 3,
        "given": [[1, 1, 0.3], [9, 9, 0.0]],
        "model": "fake",
        "packages": {name: version(name).partition("+")[0] for name in ("diffusers", "torch")},
        **settings.model_dump(),
    }


def test_interrupted_run_goes_on(write):
    videos = write(THREE)
    kept = times([videos[0]])
    videos[1].unlink()
    videos[2].write_bytes(b"half a video")
    write.batches.clear()
    write(THREE, overwrite=True, batch_size=5)
    assert write.batches == [["blue", "dark"]]
    assert kept == times([videos[0]])
    assert len(read_video(videos[2])) == 9


def test_nothing_is_loaded_for_what_is_there(write, monkeypatch):
    before = times(write())
    monkeypatch.setattr(loop, "describe_device", lambda device: "another")
    assert times(write()) == before
    assert write.loads == 1


def test_other_settings_are_refused_or_overwritten(write, image):
    requests = [Request(name="new", prompt="b"), *ONE]
    [video] = write()
    changed = SETTINGS.model_copy(update={"steps": 3, "seed": 1})
    message = r"a\.mp4 exists already, made with other settings \(seed, steps"
    with pytest.raises(FileExistsError, match=message):
        write(requests, changed)
    assert write.made == 1  # not even for the first request, which is new
    write(requests, changed, overwrite=True)
    assert read_settings(video)["steps"] == 3


def test_a_setting_that_is_newer_than_a_video_had_its_default(write, monkeypatch):
    [video] = write()
    older = {key: value for key, value in read_settings(video).items() if key != "shift"}
    monkeypatch.setattr(loop, "read_settings", lambda _: older)
    write()
    assert write.loads == 1
    with pytest.raises(FileExistsError, match=r"made with other settings \(shift\)"):
        write(ONE, SETTINGS.model_copy(update={"shift": 3.0}))


def test_image_of_another_content_is_other_settings(write, image):
    request = Request(name="a", prompt="b", placements=given(image, "1"))
    write([request])
    Image.new("RGB", (80, 80), (255, 0, 0)).save(image)
    with pytest.raises(FileExistsError, match=r"made with other settings \(conditions\)"):
        write([request])


def test_foreign_file_is_refused(write, tmp_path):
    write_video(tmp_path / "a.mp4", np.zeros((3, 64, 64, 3), np.uint8))
    (tmp_path / "b.gif").touch()
    with pytest.raises(FileExistsError, match=r"a\.mp4 exists already and is not ours"):
        write()
    with pytest.raises(FileExistsError, match=r"b\.gif exists already"):
        write([Request(name="b", prompt="b")], gif=True)
    with pytest.raises(FileExistsError, match=r"a\.mp4 is a file, expected a folder"):
        write(out=tmp_path / "a.mp4")


def test_bad_request_stops_the_run_before_its_first_video(write, tmp_path):
    missing = Request(name="b", prompt="b", placements=given(tmp_path / "none.png", "1"))
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        write([*ONE, missing])
    with pytest.raises(ValueError, match=r"two requests are to be written to .*a\.mp4"):
        write([*ONE, Request(name="a", prompt="b")])
    assert not write.made


def test_gif_and_frames(write, tmp_path):
    write(gif=True, png=True)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.size) == (9, (64, 64))
    frames = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "a").glob("*.png"))]
    assert greys(frames) == list(range(20, 29))  # not through the codec


def test_copies_are_made_of_a_video_that_is_there(write, tmp_path):
    write()
    write(gif=True, png=True, writes=False)
    assert not (tmp_path / "a.gif").exists()
    write(gif=True, png=True)
    assert write.loads == 1
    assert (tmp_path / "a.gif").exists()
    assert len(list((tmp_path / "a").glob("*.png"))) == 9


def test_copies_of_a_replaced_video_are_removed(write, tmp_path, monkeypatch):
    """Also where the run ends before there are new ones."""
    write(gif=True, png=True)
    (tmp_path / "a" / "notes.txt").touch()
    changed = SETTINGS.model_copy(update={"steps": 3})
    monkeypatch.setattr(loop, "_write_copies", None)
    with pytest.raises(TypeError):
        write(settings=changed, gif=True, png=True, overwrite=True)
    assert read_settings(tmp_path / "a.mp4")["steps"] == 3
    assert not (tmp_path / "a.gif").exists()
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("file", ["a.gif", "a.mp4", "a/frame_0001.png"])
def test_given_file_is_not_replaced(write, tmp_path, file):
    write(gif=True, png=True)
    before = (tmp_path / file).read_bytes()
    request = Request(name="a", prompt="b", placements=given(tmp_path / file, "1"))
    with pytest.raises(ValueError, match=rf"{file} is given and would be replaced, expected"):
        write([request], overwrite=True)
    assert (tmp_path / file).read_bytes() == before


def test_another_process_takes_part_and_does_not_write(write, tmp_path):
    write(writes=False)
    assert write.made == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to(write, monkeypatch):
    """It is found before anything is made; root may write anywhere."""
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PermissionError, match="cannot be written to, expected a folder"):
        write()
    assert write.loads == 0
