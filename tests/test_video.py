import av
import numpy as np
import pytest

from pusa.tiny import world
from pusa.video import FPS, read_settings, read_video, write_video


@pytest.fixture
def clip():
    """A bright square that moves over a gradient: (frames, height, width, 3)."""
    frames = np.zeros((7, 32, 48, 3), np.uint8)
    frames[..., 0] = np.linspace(0, 200, 48)
    for i, frame in enumerate(frames):
        frame[8:20, 4 + 3 * i : 16 + 3 * i] = (40, 220, 90)
    return frames


def test_round_trip(tmp_path, clip):
    write_video(tmp_path / "a.mp4", clip)
    back = read_video(tmp_path / "a.mp4")
    assert back.shape == clip.shape
    assert back.dtype == np.uint8
    # crf 10 and halved chroma: a few grey levels on average, more at the square's edges.
    assert np.abs(back.astype(int) - clip).mean() < 4
    swapped = clip[..., ::-1].astype(int)
    assert np.abs(back - swapped).mean() > 20  # RGB, not BGR


def test_codec_and_rate(tmp_path, clip):
    write_video(tmp_path / "a.mp4", clip)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == FPS == 16


def test_settings_round_trip(tmp_path, clip):
    settings = {"prompt": 'a "quoted", naïve\nprompt / 100 %', "steps": 10, "size": {"frames": 7}}
    write_video(tmp_path / "a.mp4", clip, settings)
    assert read_settings(tmp_path / "a.mp4") == settings


def test_settings_absent(tmp_path, clip):
    write_video(tmp_path / "a.mp4", clip)
    assert read_settings(tmp_path / "a.mp4") == {}
    assert read_settings(tmp_path / "missing.mp4") == {}
    (tmp_path / "b.mp4").write_text("not a video")
    assert read_settings(tmp_path / "b.mp4") == {}


def test_writes_are_identical(tmp_path):
    """A panning texture, encoded many times: on this clip x264 was seen to differ."""
    scene = world.sample_scene(
        np.random.default_rng([2, 1000]), camera="camera pans left", with_shape=False
    )
    clip, contents = world.render(scene), set()
    for _ in range(40):
        write_video(tmp_path / "a.mp4", clip, {"seed": 1})
        contents.add((tmp_path / "a.mp4").read_bytes())
    assert len(contents) == 1


def test_interrupted_write_keeps_the_old_file(tmp_path, clip):
    write_video(tmp_path / "a.mp4", clip)
    before = (tmp_path / "a.mp4").read_bytes()

    class Interrupted:
        shape = clip.shape

        def __iter__(self):
            yield clip[0]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", Interrupted())
    assert (tmp_path / "a.mp4").read_bytes() == before


def test_unreadable_file_is_named(tmp_path):
    (tmp_path / "a.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"a\.mp4: cannot be read as a video"):
        read_video(tmp_path / "a.mp4")
