import av
import numpy as np
import pytest

from pusa.tiny import world
from pusa.video import (
    FPS,
    check_clip,
    check_samples,
    read_settings,
    read_video,
    video_shape,
    write_video,
)


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


def check_one(path):
    check_samples([path], frames=7, height=32, width=48)


def check_training(path):
    check_clip(path, frames=7, height=32, width=48)


@pytest.mark.parametrize("read", [read_video, video_shape, check_training, check_one])
@pytest.mark.parametrize("content", ["", "not a video"])
def test_unreadable_file_is_named(tmp_path, read, content):
    (tmp_path / "a.mp4").write_text(content)
    with pytest.raises(ValueError, match=r"^\S*a\.mp4: cannot be read as a video \(.+\)$"):
        read(tmp_path / "a.mp4")


@pytest.mark.parametrize("read", [read_video, video_shape, check_training, check_one])
def test_file_without_pictures_is_named(tmp_path, read):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"a\.mp4: no video stream"):
        read(tmp_path / "a.mp4")


# Checks


def recorded(path, clip, *, rate=FPS, container_options=None):
    """A file as another program may write it."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def cut(path):
    """Shorten a file whose index is in front, and which so still says that it is whole."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8)
    recorded(path, noise, container_options={"movflags": "faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


@pytest.mark.parametrize("read", [read_video, video_shape])
def test_cut_file_is_named(tmp_path, read):
    cut(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"a\.mp4: cannot be read as a video \(Invalid data"):
        read(tmp_path / "a.mp4")


def test_shape_is_counted(tmp_path, clip):
    recorded(tmp_path / "a.mkv", clip)  # whose header has no number of frames
    assert video_shape(tmp_path / "a.mkv") == (7, 32, 48)


def test_clip_is_long_enough(tmp_path, clip):
    write_video(tmp_path / "a.mp4", clip)
    for frames in (1, 6, 7):
        check_clip(tmp_path / "a.mp4", frames=frames, height=32, width=48)
    with pytest.raises(ValueError, match=r"a\.mp4: 7 frames, expected at least 8"):
        check_clip(tmp_path / "a.mp4", frames=8, height=32, width=48)


def test_clip_whose_header_does_not_tell_its_length(tmp_path, clip):
    recorded(tmp_path / "a.mkv", clip)
    check_clip(tmp_path / "a.mkv", frames=8, height=32, width=48)


def test_clip_of_another_size(tmp_path, clip):
    write_video(tmp_path / "a.mp4", clip)
    with pytest.raises(ValueError, match=r"a\.mp4: 48x32 pixels, expected 32x48"):
        check_clip(tmp_path / "a.mp4", frames=7, height=48, width=32)


@pytest.fixture
def samples(tmp_path, clip):
    files = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for file in files:
        write_video(file, clip)
    return files


def check(files, *, frames=7, height=32, width=48):
    check_samples(files, frames=frames, height=height, width=width)


def test_samples_that_can_be_scored(samples):
    check(samples)


def test_missing_sample(samples):
    samples[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"video .*b\.mp4 is missing"):
        check(samples)


@pytest.mark.parametrize("frames", [6, 8])
def test_sample_of_another_length(samples, clip, frames):
    write_video(samples[1], np.resize(clip, (frames, *clip.shape[1:])))
    with pytest.raises(ValueError, match=rf"b\.mp4: {frames} frames, expected 7"):
        check(samples)


def test_sample_of_another_size(samples, clip):
    write_video(samples[1], clip.transpose(0, 2, 1, 3))
    with pytest.raises(ValueError, match=r"b\.mp4: 32x48 pixels, expected 48x32"):
        check(samples)


@pytest.mark.parametrize("rate", [8, 24])
def test_sample_of_another_rate(samples, clip, rate):
    recorded(samples[1], clip, rate=rate)
    check_clip(samples[1], frames=7, height=32, width=48)
    with pytest.raises(ValueError, match=rf"b\.mp4: {rate} frames per second, expected 16"):
        check(samples)


def test_header_of_a_sample_is_not_believed(tmp_path):
    cut(tmp_path / "a.mp4")
    check_clip(tmp_path / "a.mp4", frames=9, height=32, width=48)
    with pytest.raises(ValueError, match=r"a\.mp4: \d frames, expected 9"):
        check([tmp_path / "a.mp4"], frames=9)


def test_sample_of_another_codec(tmp_path, clip):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for frame in clip[:7]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"a\.mp4: encoded as mpeg4, expected h264"):
        check_samples([tmp_path / "a.mp4"], frames=len(clip[:7]), height=32, width=48)


@pytest.mark.parametrize("read", [read_video, video_shape])
def test_damaged_frame_is_named(tmp_path, read):
    noise = np.random.default_rng(0).integers(0, 255, (9, 128, 128, 3)).astype(np.uint8)
    write_video(tmp_path / "a.mp4", noise)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.mp4: frame \d is damaged; delete the file"):
        read(tmp_path / "a.mp4")
