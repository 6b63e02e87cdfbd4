import subprocess
import sys
from fractions import Fraction
from itertools import islice

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.reformatter import ColorTrc
from PIL import Image, ImageCms

from pusa.data.video import (
    FPS,
    check_clip,
    check_samples,
    read_clip,
    read_settings,
    read_video,
    scan_video,
    video_shape,
    write_gif,
    write_png_frames,
    write_video,
)
from pusa.tiny import world


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


def test_floats_are_written_as_what_they_round_to(tmp_path, clip):
    write_video(tmp_path / "a.mp4", clip)
    write_video(tmp_path / "b.mp4", clip.astype(np.float32) / 255)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


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
    for _ in range(20):
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


def test_odd_sides_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.mp4: frames of 49x32 pixels, expected even sides"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 32, 49, 3), np.uint8))
    assert not [*tmp_path.iterdir()]


def test_any_even_size(tmp_path):
    for shape in ((2, 2), (18, 130)):
        write_video(tmp_path / "a.mp4", np.full((3, *shape, 3), 90, np.uint8))
        assert video_shape(tmp_path / "a.mp4") == (3, *shape)


def test_gif(tmp_path, clip):
    write_gif(tmp_path / "a.gif", clip)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.info["loop"] == 0  # endless
        frames, durations = [], []
        for number in range(gif.n_frames):
            gif.seek(number)
            durations.append(gif.info["duration"])
            frames.append(np.asarray(gif.convert("RGB")))
    assert np.abs(np.stack(frames).astype(int) - clip).mean() < 4  # of 256 colours
    assert sum(durations) == 440  # 7 frames of 1000 / 16 ms, in hundredths of a second


def test_png_frames(tmp_path, clip):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "frame_0099.png").touch()
    write_png_frames(tmp_path / "a", clip)
    files = sorted((tmp_path / "a").iterdir())
    assert [file.name for file in files] == [f"frame_000{n}.png" for n in range(1, 8)]
    assert all(
        np.array_equal(np.asarray(Image.open(file)), frame)
        for file, frame in zip(files, clip, strict=True)
    )


def check_one(path):
    check_samples([path], frames=7, height=32, width=48)


def check_training(path):
    check_clip(path, frames=7, height=32, width=48)


@pytest.mark.parametrize("read", [read_video, video_shape, check_training, check_one, scan_video])
def test_unreadable_file_is_named(tmp_path, read):
    (tmp_path / "a.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"^\S*a\.mp4: cannot be read as a video \(.+\)$"):
        read(tmp_path / "a.mp4")


# Checks


def recorded(
    path,
    clip,
    *,
    rate=FPS,
    codec="libx264",
    pix_fmt="yuv420p",
    container_options=None,
    options=None,
    times=None,
    change=None,
):
    """A file as another program may write it.

    ``times`` are in milliseconds, and ``change`` is called with the stream before it begins.
    """
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = pix_fmt
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if change:
            change(stream)
        for number, picture in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def cut(path):
    """Shorten a file whose index is in front, and which so still says that it is whole."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8)
    recorded(path, noise, container_options={"movflags": "faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def test_cut_file_is_named(tmp_path):
    cut(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"a\.mp4: cannot be read as a video \(Invalid data"):
        read_video(tmp_path / "a.mp4")


def test_shape_is_counted(tmp_path, clip):
    recorded(tmp_path / "a.mkv", clip)  # whose header has no number of frames
    assert video_shape(tmp_path / "a.mkv") == (7, 32, 48)


def test_training_clips_are_checked_by_their_headers(tmp_path, clip):
    write_video(tmp_path / "a.mp4", clip)
    for frames in (1, 7):
        check_clip(tmp_path / "a.mp4", frames=frames, height=32, width=48)
    with pytest.raises(ValueError, match=r"a\.mp4: 7 frames, expected at least 8"):
        check_clip(tmp_path / "a.mp4", frames=8, height=32, width=48)
    check_clip(tmp_path / "a.mp4", frames=7, height=16, width=32)  # is cut to that
    for height, width in ((48, 32), (32, 64)):
        with pytest.raises(ValueError, match=rf"48x32 pixels, expected at least {width}x{height}"):
            check_clip(tmp_path / "a.mp4", frames=7, height=height, width=width)
    recorded(tmp_path / "a.mkv", clip)  # whose header does not tell its length
    check_clip(tmp_path / "a.mkv", frames=8, height=32, width=48)


def test_clip_of_the_size_is_taken_as_it_is(tmp_path, clip):
    write_video(tmp_path / "a.mp4", clip)
    taken = read_clip(tmp_path / "a.mp4", frames=5, height=32, width=48)
    assert np.array_equal(taken, read_video(tmp_path / "a.mp4")[:5])


@pytest.mark.parametrize(
    ("height", "width", "taken"),
    [
        (32, 32, np.s_[:, :, 8:40]),  # sides are cut off
        (16, 24, np.s_[:, ::2, ::2]),  # scaled
        (16, 48, np.s_[:, 8:24]),  # above and below
    ],
)
def test_clip_of_another_size_is_scaled_and_cut(tmp_path, clip, height, width, taken):
    recorded(tmp_path / "a.mkv", clip, rate=24, codec="ffv1", pix_fmt="bgr0")  # loses nothing
    cut = read_clip(tmp_path / "a.mkv", frames=7, height=height, width=width)
    assert cut.shape == (7, height, width, 3) and cut.dtype == np.uint8
    difference = np.abs(cut.astype(int) - clip[taken])
    assert difference.mean() < 4 if height * width == 16 * 24 else difference.max() == 0


def test_clip_that_cannot_be_cut(tmp_path, clip):
    write_video(tmp_path / "a.mp4", clip)
    for change, message in (
        ({"frames": 9}, "7 frames, expected at least 9"),
        ({"width": 64}, "48x32 pixels, expected at least 64x32"),
    ):
        with pytest.raises(ValueError, match=rf"a\.mp4: {message}"):
            read_clip(tmp_path / "a.mp4", **{"frames": 7, "height": 32, "width": 48} | change)
    recorded(tmp_path / "b.mkv", clip)  # whose header does not tell its length
    with pytest.raises(ValueError, match=r"b\.mkv: 7 frames, expected at least 9"):
        read_clip(tmp_path / "b.mkv", frames=9, height=32, width=48)


def test_turned_clip_is_measured_upright(tmp_path, clip):
    """Its header tells of the picture as it is stored."""
    recorded(tmp_path / "a.mp4", clip, change=lambda stream: stream.set_display_rotation(90))
    upright = read_clip(tmp_path / "a.mp4", frames=7, height=32, width=32)
    stored = np.rot90(read_video(tmp_path / "a.mp4"), axes=(1, 2))
    assert np.array_equal(upright, stored[:, 8:40])
    with pytest.raises(ValueError, match="32x48 pixels, expected at least 48x32"):
        read_clip(tmp_path / "a.mp4", frames=7, height=32, width=48)


@pytest.fixture
def samples(tmp_path, clip):
    files = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for file in files:
        write_video(file, clip)
    return files


def check(files, *, frames=7, height=32, width=48):
    check_samples(files, frames=frames, height=height, width=width)


def test_samples_that_cannot_be_scored(samples, clip):
    check(samples)
    longer = np.concatenate([clip, clip[:1]])
    for frames, options, message in (
        (clip[:6], {}, "6 frames, expected 7"),
        (longer, {}, "8 frames, expected 7"),
        (clip.transpose(0, 2, 1, 3), {}, "32x48 pixels, expected 48x32"),
        (clip, {"rate": 24}, "24 frames per second, expected 16"),
        (clip, {"codec": "mpeg4"}, "encoded as mpeg4, expected h264"),
    ):
        recorded(samples[1], frames, **options)
        with pytest.raises(ValueError, match=rf"b\.mp4: {message}"):
            check(samples)
    samples[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"video .*b\.mp4 is missing"):
        check(samples)


def test_header_of_a_sample_is_not_believed(tmp_path):
    cut(tmp_path / "a.mp4")
    check_clip(tmp_path / "a.mp4", frames=9, height=32, width=48)
    with pytest.raises(ValueError, match=r"a\.mp4: \d frames, expected 9"):
        check([tmp_path / "a.mp4"], frames=9)


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


# Footage


def read_frames(path, first, count):
    return np.stack([*scan_video(path).read_frames(first, count)])


@pytest.fixture
def counting():
    """Ninety frames, each by two levels brighter than the one before."""
    return np.broadcast_to(np.arange(20, 200, 2)[:, None, None, None], (90, 32, 48, 3)).astype(
        np.uint8
    )


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_frames_from_the_middle(tmp_path, counting, suffix):
    """Found by seeking, in a file with key frames apart and frames that are stored out of order."""
    codec, options = "libx264", {"g": "20", "bf": "3", "x264-params": "b-adapt=0:open-gop=1"}
    if suffix == "avi":  # has no times
        codec, options = "ffv1", {}
    recorded(tmp_path / f"a.{suffix}", counting, codec=codec, options=options)
    for first in (1, 2, 33, 34, 50, 86):
        frames = read_frames(tmp_path / f"a.{suffix}", first, 5)
        assert np.abs(frames - counting[first - 1 : first + 4].astype(int)).max() < 1.9, first


def test_only_what_is_near_is_decoded(tmp_path):
    """The damaged frames before are never seen."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 32, 48, 3), np.uint8)
    recorded(tmp_path / "a.mp4", noise, options={"g": "10", "crf": "1"})
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    content[len(content) // 8 : len(content) // 4] = bytes(len(content) // 4 - len(content) // 8)
    (tmp_path / "a.mp4").write_bytes(content)
    late = read_frames(tmp_path / "a.mp4", 78, 13)
    assert np.abs(late[..., 1] - noise[77:, ..., 1].astype(int)).mean() < 30  # half the chroma
    with pytest.raises(ValueError, match=r"a\.mp4: (cannot be read|frame \d+ is damaged)"):
        read_frames(tmp_path / "a.mp4", 1, 90)


def test_scan(tmp_path, counting):
    recorded(tmp_path / "a.mkv", counting, rate=24)  # which rounds to milliseconds
    footage = scan_video(tmp_path / "a.mkv")
    assert len(footage.times) == 90
    assert float(footage.rate) == pytest.approx(24, rel=1e-3)


@pytest.mark.parametrize(("suffix", "jump"), [("mp4", 100), ("mkv", 40)])
def test_variable_frame_rate(tmp_path, clip, suffix, jump):
    times = [0, 62, 125, 187, 187 + jump, 250 + jump, 312 + jump]
    recorded(tmp_path / f"a.{suffix}", clip, times=times)
    message = rf"a\.{suffix} has a variable frame rate, frames of \d+ to \d+ ms; .* -vf fps=16"
    with pytest.raises(ValueError, match=message):
        scan_video(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_truncated_tail(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), np.uint8)
    file = tmp_path / f"a.{suffix}"
    recorded(file, noise, container_options={"movflags": "faststart"} if suffix == "mp4" else {})
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])
    message = rf"a\.{suffix} is cut short: its header promises 60 frames, (3|4)\d are there"
    with pytest.raises(ValueError, match=message):
        scan_video(file)


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4"])
def test_cut_between_reordered_frames(tmp_path, suffix):
    """Stored in the order 0 4 2 1 3 8 6 5 7 …, and cut behind one of them."""
    clip = np.random.default_rng(0).integers(0, 256, (21, 32, 48, 3), np.uint8)
    options = {"bf": "3", "g": "40", "x264-params": "b-adapt=0:scenecut=0"}
    recorded(tmp_path / f"whole.{suffix}", clip, options=options)
    fragments = {"movflags": "empty_moov+frag_every_frame"} if suffix == "mp4" else {}
    for kept in (6, 7, 8, 9):
        with (
            av.open(str(tmp_path / f"whole.{suffix}")) as whole,
            av.open(str(tmp_path / f"a.{suffix}"), "w", options=fragments) as file,
        ):
            source = whole.streams.video[0]
            stream = file.add_stream_from_template(source)
            for packet in islice((p for p in whole.demux(source) if p.size), kept):
                packet.stream = stream
                file.mux(packet)
        if kept == 9:  # 0 to 8
            assert len(scan_video(tmp_path / f"a.{suffix}").times) == 9
        else:
            message = rf"a\.{suffix} is cut short: frames near its end are"
            with pytest.raises(ValueError, match=message):
                scan_video(tmp_path / f"a.{suffix}")


def test_small_sides_are_refused_by_the_header(tmp_path):
    recorded(tmp_path / "a.mp4", np.zeros((5, 32, 14, 3), np.uint8))
    with pytest.raises(ValueError, match=r"a\.mp4 has 14x32 pixels, expected 16 to 16,384 on"):
        scan_video(tmp_path / "a.mp4")


def test_colour_profile_of_a_png(tmp_path):
    """It crashes Python when the frames are freed, so that another process is to do it."""
    pictures = [Image.new("RGB", (32, 32), (n, n, n)) for n in (50, 200)]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pictures[0].save(
        tmp_path / "a.png", save_all=True, append_images=pictures[1:], icc_profile=profile
    )
    code = (
        "import gc, sys; from pusa.data.video import scan_video\n"
        "for _ in range(5):\n"
        "    frames = [f.mean() for f in scan_video(sys.argv[1]).read_frames(1, 2)]; gc.collect()\n"
        "print(*frames)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "50.0 200.0\n"), done.stderr[-2000:]


def test_truncated_head(tmp_path, clip):
    """Without an index there is nothing that could be counted."""
    write_video(tmp_path / "a.mp4", clip)
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        ValueError, match=r"a\.mp4: cannot be read .*Invalid data.*; is it cut short\?\)"
    ):
        scan_video(tmp_path / "a.mp4")


def test_trimmed_video(tmp_path, counting):
    """A phone cuts a video by an edit list: the frames before the cut stay in the file."""
    recorded(tmp_path / "whole.mp4", counting, options={"g": "50", "bf": "0"})
    with (
        av.open(str(tmp_path / "whole.mp4")) as whole,
        av.open(str(tmp_path / "a.mp4"), "w") as trimmed,
    ):
        source = whole.streams.video[0]
        stream = trimmed.add_stream_from_template(source)
        frame = round(1 / (FPS * source.time_base))
        for packet in whole.demux(source):
            if packet.size:
                packet.pts -= 20 * frame
                packet.dts -= 20 * frame
                packet.stream = stream
                trimmed.mux(packet)
    assert len(scan_video(tmp_path / "a.mp4").times) == 70
    frames = read_frames(tmp_path / "a.mp4", 1, 70)
    assert np.abs(frames - counting[20:].astype(int)).max() < 1.9


@pytest.mark.parametrize(("turn", "quarters"), [(90, 1), (-90, -1), (180, 2)])
def test_rotated_video_is_turned_upright(tmp_path, clip, turn, quarters):
    """A phone stores what the sensor saw, and by how much viewers are to turn it."""
    recorded(tmp_path / "a.mp4", clip, change=lambda stream: stream.set_display_rotation(turn))
    expected = np.stack([np.rot90(frame, quarters) for frame in read_video(tmp_path / "a.mp4")])
    assert np.array_equal(read_frames(tmp_path / "a.mp4", 1, 7), expected)


@pytest.mark.parametrize("arguments", [(0, True, False), (90, False, True), (30, False, False)])
def test_mirrored_video(tmp_path, clip, arguments):
    recorded(
        tmp_path / "a.mp4", clip, change=lambda stream: stream.set_display_rotation(*arguments)
    )
    with pytest.raises(ValueError, match=r"a\.mp4 is to be shown mirrored or askew"):
        read_frames(tmp_path / "a.mp4", 1, 7)


def test_pixels_that_are_not_square(tmp_path, clip):
    """Each is 3/2 as wide as it is high, and so is the bright square."""

    def stretch(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)

    recorded(tmp_path / "a.mp4", clip, change=stretch)
    (frame,) = read_frames(tmp_path / "a.mp4", 3, 1)
    assert frame.shape == (32, 72, 3)
    rows, columns = np.nonzero(frame[..., 1] > 110)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (12, 18)


def test_odd_size_and_ten_bits(tmp_path):
    frames = np.zeros((5, 33, 51, 3), np.uint8)
    frames[:, 10:, 20:] = (200, 120, 40)
    # Not yuv444p10le: FFmpeg was seen to write a picture of odd width in it in two ways.
    recorded(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt="gbrp10le")
    assert np.abs(read_frames(tmp_path / "a.mkv", 1, 5) - frames.astype(int)).max() <= 2


@pytest.mark.parametrize("transfer", ["SMPTE2084", "ARIB_STD_B67"])
def test_hdr(tmp_path, clip, transfer):
    def make_hdr(stream):
        stream.codec_context.color_trc = getattr(ColorTrc, transfer)

    recorded(tmp_path / "a.mp4", clip, change=make_hdr)
    with pytest.raises(ValueError, match=r"a\.mp4 is HDR, expected SDR"):
        read_frames(tmp_path / "a.mp4", 1, 1)


def test_cover_of_a_song_is_no_video(tmp_path):
    picture = np.zeros((32, 32, 3), np.uint8)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.rate = 8000
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(cover.encode())
    with pytest.raises(ValueError, match=r"a\.mp4: no video stream"):
        scan_video(tmp_path / "a.mp4")


def test_damaged_footage(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (9, 128, 128, 3)).astype(np.uint8)
    write_video(tmp_path / "a.mp4", noise)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    (tmp_path / "a.mp4").write_bytes(content)
    assert len(read_frames(tmp_path / "a.mp4", 1, 2)) == 2  # before the damage
    with pytest.raises(ValueError, match=r"a\.mp4: frame \d is damaged; re-encode it"):
        read_frames(tmp_path / "a.mp4", 1, 9)


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "list.mkv"])
def test_a_playlist_does_not_open_what_it_names(tmp_path, name):
    write_video(tmp_path / "secret.mp4", np.zeros((5, 32, 32, 3), np.uint8))
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n"
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="cannot be read as a video"):
        read_video(tmp_path / name)
