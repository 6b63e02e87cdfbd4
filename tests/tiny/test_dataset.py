import json
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image

from pusa.data.dataset import read_metadata
from pusa.data.suite import INFO_FILE
from pusa.data.video import read_video
from pusa.score.weight_free import classify_camera
from pusa.tiny import dataset as module
from pusa.tiny import world
from pusa.tiny.dataset import STREAMS, write_dataset, write_suite


def digest(frame):
    return sha256(np.ascontiguousarray(frame).tobytes()).hexdigest()


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def uncompressed(monkeypatch):
    """Videos as arrays: what is rendered, apart from what x264 makes of it."""
    monkeypatch.setattr(module, "write_video", lambda path, clip: path.write_bytes(clip.tobytes()))


def test_captions_are_those_of_the_clips(dataset):
    for number, clip in enumerate(read_metadata(dataset), start=1):
        scene = world.sample_scene(np.random.default_rng([STREAMS["lora"], number]))
        assert clip.caption == scene.caption
        error = np.abs(read_video(clip.path).astype(int) - world.render(scene))
        assert error.mean() < 6  # what crf 10 and halved chroma leave


def test_rendering_is_deterministic_whatever_the_number_of_workers(tmp_path, uncompressed):
    for name, workers in (("a", 1), ("b", 2)):
        write_dataset(tmp_path / name, stream="base", clips=18, workers=workers)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(read_metadata(tmp_path / "a")) == 18


def test_suite_is_deterministic(tmp_path, uncompressed):
    for name in ("a", "b"):
        write_suite(tmp_path / name, subject=1, background=1, camera=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_suite_shares_no_image_with_training(suite, tmp_path, monkeypatch):
    """Rendered without a codec: no first frame of the suite is a frame of either training set."""
    wanted = set()
    render = world.render

    def recording(scene, *args):
        clip = render(scene, *args)
        wanted.add(digest(clip[0]))
        return clip

    with monkeypatch.context() as patch:
        patch.setattr(world, "render", recording)
        write_suite(tmp_path, subject=2, background=2, camera=9)
    assert len(wanted) == 2 + 2 + 2  # nine camera prompts share two images
    for stream in ("base", "lora"):
        for number in range(1, 51):
            scene = world.sample_scene(np.random.default_rng([STREAMS[stream], number]))
            assert wanted.isdisjoint(digest(frame) for frame in world.render(scene, 3))


def test_training_streams_differ():
    captions = [
        [world.sample_scene(np.random.default_rng([STREAMS[s], n])).caption for n in range(1, 9)]
        for s in ("base", "lora")
    ]
    assert captions[0] != captions[1]
    assert len(set(STREAMS.values())) == len(STREAMS)


def test_suite_layout(suite, prompts):
    assert [p.kind for p in prompts] == ["subject"] * 2 + ["background"] * 2 + ["camera"] * 9
    entries = json.loads((suite / INFO_FILE).read_text())
    assert [e["prompt_en"] for e in entries] == [p.prompt for p in prompts]
    images = [p.image for p in prompts[4:]]
    assert len(set(images[:7])) == 1
    assert len(set(images)) == 2
    assert [p.camera_motion for p in prompts[4:11]] == [
        name.removeprefix("camera ") for name in world.CAMERAS
    ]
    assert len({p.prompt for p in prompts[:11]}) == 11


def test_references_begin_with_the_image_and_move_as_prompted(suite, prompts):
    for prompt in prompts:
        clip = read_video(suite / "reference" / f"{prompt.index:04d}.mp4")
        assert len(clip) == 33
        image = np.asarray(Image.open(prompt.image)).astype(int)
        assert np.abs(image - clip[0]).mean() < 5  # JPEG against H.264
        if prompt.kind == "camera":
            assert classify_camera(clip[:9]) == prompt.camera_motion


def test_more_backgrounds_than_captions_end(tmp_path, monkeypatch):
    """24 distinct captions of a texture and a camera exist; the 25th is searched for ever."""
    sample, calls = world.sample_scene, []

    def counting(*args, **choices):
        calls.append(1)
        if len(calls) > 3000:
            raise TimeoutError("3000 scenes drawn for 25 prompts")
        return sample(*args, **choices)

    monkeypatch.setattr(module.world, "sample_scene", counting)
    monkeypatch.setattr(module, "write_video", lambda *_: None)
    monkeypatch.setattr(module.world, "render", lambda scene: np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError):
        write_suite(tmp_path, subject=1, background=25, camera=1)
