"""Reading and writing video files (PyAV), the only place that touches a codec.

Frames are ``uint8`` arrays of shape ``(frames, height, width, 3)``, RGB, 0-255.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import dropwhile, islice, pairwise
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import ColorTrc
from PIL import Image

from pusa.data.image import check_sides, fit_image
from pusa.records import atomic

FPS = 16  # Wan2.1's frame rate; VBench's dynamic degree depends on it
CRF = 10  # VBench-I2V's recipe
#: What to do with footage of another kind than is read here.
REMAKE = "re-encode it, as with ffmpeg -i FILE -vf fps=16 NEW.mp4"
#: By how many frames decoding order may differ from the order of showing, in any codec.
REORDERED = 32
#: Containers that are read. Others, such as playlists, open files that nobody named.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,h264,hevc,av1,ivf,ogg,flv,asf,"
    "gif,apng,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe,image2,wav,mp3,aac,nut,yuv4mpegpipe"
)
X264 = {"preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}


def read_video(path: str | Path) -> np.ndarray:
    """Decode every frame of the first video stream to ``(frames, height, width, 3)``.

    Raises:
        ValueError: if the file has no decodable video stream, or a damaged frame.
    """
    with _open_video(path) as stream:
        # By itself FFmpeg starts threads for the colours of each frame: six times as long.
        frames = [frame.to_ndarray(format="rgb24", threads=1) for frame in _decode(path, stream)]
    if not frames:
        raise ValueError(f"{path}: no video frame could be decoded")
    return np.stack(frames)


def read_clip(path: str | Path, *, frames: int, height: int, width: int) -> np.ndarray:
    """The first frames of a clip that anyone may have made, cut to size by `fit_image`.

    They are as viewers show them, turned upright and with square pixels; their rate may be any.

    Returns:
        ``uint8`` ``(frames, height, width, 3)``.

    Raises:
        ValueError: as `check_clip`; if a frame is damaged, its colours are HDR, or it is to be
            shown mirrored or askew.
    """
    check_clip(path, frames=frames, height=height, width=width)
    clip = []
    with _open_video(path) as stream:
        for frame in islice(_decode(path, stream), frames):
            shown = _show(Path(path), frame, stream)
            _check_covers(path, *shown.shape[:2], height, width)  # turned: no header tells
            clip.append(fit_image(Image.fromarray(shown), height=height, width=width))
    if len(clip) < frames:  # fewer than its header says
        raise ValueError(f"{path}: {len(clip)} frames, expected at least {frames}")
    return np.stack(clip)


def video_shape(path: str | Path) -> tuple[int, int, int]:
    """Frames, height and width; the frames are counted by decoding, and none is kept.

    Raises:
        ValueError: if the file has no decodable video stream, or a damaged frame.
    """
    with _open_video(path) as stream:
        return sum(1 for _ in _decode(path, stream)), stream.height, stream.width


@dataclass(frozen=True)
class Footage:
    """A video file that anyone may have made, after `scan_video`."""

    path: Path
    times: tuple[int | None, ...]  # of its frames in order, in the stream's unit; None if not told
    rate: Fraction | None  # frames per second

    def read_frames(self, first: int, count: int) -> Iterator[np.ndarray]:
        """Decode ``count`` frames from frame ``first`` on, counted from 1.

        They are as viewers show them: turned upright, with square pixels. Only what lies between
        them and the key frame before is decoded, and one frame is held.

        Yields:
            RGB, ``uint8`` ``(height, width, 3)``.

        Raises:
            ValueError: if a frame is damaged or not there, its colours are HDR, or it is to be
                shown mirrored or askew.
        """
        # Without threads per frame ("AUTO"), which were seen not to mark every damaged frame.
        with _open_video(self.path) as stream:
            number = first
            for frame in islice(self._frames_from(stream, first), count):
                told = self.times[number - 1]
                if frame.is_corrupt or told not in (None, frame.pts):
                    raise ValueError(f"{self.path}: frame {number} is damaged; {REMAKE}")
                yield _show(self.path, frame, stream)
                number += 1
        if number < first + count:
            raise ValueError(f"{self.path}: frame {number} is missing; {REMAKE}")

    def _frames_from(self, stream: av.VideoStream, first: int) -> Iterator[av.VideoFrame]:
        start = self.times[first - 1]
        if start is None:
            return islice(stream.container.decode(stream), first - 1, None)
        if first > REORDERED:
            stream.container.seek(self.times[first - 1 - REORDERED], stream=stream)
        return dropwhile(lambda frame: frame.pts < start, stream.container.decode(stream))


def scan_video(path: str | Path) -> Footage:
    """Find a file's frames without decoding them.

    Raises:
        ValueError: if it has no video stream, sides of fewer than 16 or more than 16,384 pixels,
            a variable frame rate, or fewer frames than its header promises.
    """
    with _open_video(path) as stream:
        check_sides(path, stream.width, stream.height)
        container = stream.container
        # Later, the index of other formats than MP4 holds what was read.
        promised = len(stream.index_entries) if "mp4" in container.format.name else stream.frames
        packets = [  # one packet holds one frame; a trimmed file has some that are not shown
            (packet.pts, not packet.is_discard)
            for packet in container.demux(stream)
            if packet.size and not packet.is_corrupt
        ]
        shown = [pts for pts, is_shown in packets if is_shown]
        if not shown:
            raise ValueError(f"{path}: no video frame")
        missing = promised - len(packets)
        if None in shown:  # as in AVI, which has a constant rate
            times, rate = (None,) * len(shown), stream.average_rate
        else:
            times = tuple(sorted(shown))
            # A file may be cut between frames that are not stored in the order of showing.
            whole = len(times) - stream.codec_context.reorder_depth
            rate = _constant_rate(path, times[:whole], stream.time_base) or stream.average_rate
            if "DURATION" in stream.metadata and rate:  # as in Matroska, which counts no frames
                hours, minutes, seconds = stream.metadata["DURATION"].split(":")
                end = 3600 * int(hours) + 60 * int(minutes) + float(seconds)
                missing = round((end - times[-1] * stream.time_base) * rate) - 1
    if missing > 0:
        raise ValueError(
            f"{path} is cut short: its header promises {len(times) + missing} frames, "
            f"{len(times)} are there; copy or export it again"
        )
    if None not in times and not _is_regular(times):
        raise ValueError(
            f"{path} is cut short: frames near its end are missing; copy or export it again"
        )
    return Footage(Path(path), times, rate)


def check_clip(path: str | Path, *, frames: int, height: int, width: int) -> Fraction | None:
    """Check a training clip by its header, so that thousands take seconds.

    Args:
        frames: pixel frames that it has at least.
        height, width: of its frames, at least, as they are never enlarged.

    Returns:
        Its frames per second, if the header says.

    Raises:
        ValueError: if it has no video stream, or smaller or fewer frames.
    """
    with _open_video(path) as stream:
        columns = round(stream.width * (stream.sample_aspect_ratio or 1))
        _check_covers(path, stream.height, columns, height, width)
        if 0 < stream.frames < frames:  # 0: the container does not say
            raise ValueError(f"{path}: {stream.frames} frames, expected at least {frames}")
        return stream.average_rate


def is_of_another_rate(rate: Fraction | None) -> bool:
    """Whether frames per second are known, and not the model's `FPS`."""
    return bool(rate) and abs(rate / FPS - 1) > 0.01


def check_samples(files: Iterable[str | Path], *, frames: int, height: int, width: int) -> None:
    """Check that every sample can be scored, before the first one is.

    Frames are counted in the file itself, without decoding them: a header may promise what a cut
    file no longer holds.

    Args:
        frames: pixel frames of each.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if one has no video stream, another size, another number of frames, another
            codec than h264, or a frame rate other than `FPS`.
    """
    for file in map(Path, files):
        if not file.is_file():
            raise FileNotFoundError(f"video {file} is missing")
        with _open_video(file) as stream:
            _check_size(file, stream, height, width)
            rate, codec = stream.average_rate, stream.codec_context.name
            packets = stream.container.demux(stream)  # one packet holds one frame
            found = sum(1 for packet in packets if packet.size and not packet.is_corrupt)
        if found != frames:
            raise ValueError(f"{file}: {found} frames, expected {frames}")
        if codec != "h264":
            raise ValueError(f"{file}: encoded as {codec}, expected h264")
        if rate != FPS:
            raise ValueError(f"{file}: {float(rate or 0):g} frames per second, expected {FPS}")


def read_settings(path: str | Path) -> dict:
    """The settings that `write_video` stored in a file; empty if there are none."""
    try:
        with _open_video(path) as stream:
            settings = json.loads(stream.container.metadata.get("comment", "{}"))
    except ValueError:
        return {}
    return settings if isinstance(settings, dict) else {}


def write_video(
    path: str | Path, frames: np.ndarray, settings: dict | None = None, *, crf: int = CRF
) -> None:
    """Write ``(frames, height, width, 3)`` as H.264, 16 fps, crf 10, as VBench-I2V asks.

    ``frames`` are ``uint8``, or floats in [0, 1] as a pipeline of diffusers gives them. The file
    appears under its name only when complete, so that an interrupted run leaves no half-written
    video. ``settings`` are stored as JSON in the container's comment. A higher ``crf`` makes a
    smaller file.

    Raises:
        ValueError: if height or width is odd, which yuv420p cannot hold.
    """
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: frames of {width}x{height} pixels, expected even sides")
    with atomic(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        if settings is not None:
            container.metadata["comment"] = json.dumps(settings, sort_keys=True)
        # One thread and no macroblock tree: with it, x264 was seen to write small clips in
        # several ways at random, and then neither a dataset nor a training repeats.
        stream = container.add_stream("libx264", rate=FPS, options=X264 | {"crf": str(crf)})
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            if frame.dtype.kind == "f":
                frame = (255 * frame).round().astype(np.uint8)
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())


def write_gif(path: str | Path, frames: np.ndarray) -> None:
    """Write ``(frames, height, width, 3)`` as an endless GIF of 16 frames per second."""
    # GIF counts hundredths of a second, of which a frame takes 6.25: the rest goes to every fourth.
    ends = [round(100 * n / FPS) for n in range(len(frames) + 1)]
    times = [10 * (end - start) for start, end in pairwise(ends)]
    first, *others = map(Image.fromarray, frames)
    with atomic(path) as partial:
        first.save(partial, "GIF", save_all=True, append_images=others, duration=times, loop=0)


def write_png_frames(folder: str | Path, frames: np.ndarray) -> None:
    """Write ``(frames, height, width, 3)`` as ``folder/frame_0001.png`` and so on.

    Frames of an earlier video that lie there are removed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("frame_*.png"):
        old.unlink()
    for number, frame in enumerate(frames, start=1):
        Image.fromarray(frame).save(folder / f"frame_{number:04d}.png")


def _decode(path: str | Path, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Frames in order; the decoder would fill a damaged one with something."""
    for number, frame in enumerate(stream.container.decode(stream), start=1):
        if frame.is_corrupt:
            raise ValueError(f"{path}: frame {number} is damaged; delete the file and make it anew")
        yield frame


@contextmanager
def _open_video(path: str | Path) -> Iterator[av.VideoStream]:
    """Open a file's first video stream; what FFmpeg says of it, now or later, is one sentence."""
    try:
        with av.open(str(path), options={"format_whitelist": FORMATS}) as container:
            pictures = Disposition.attached_pic  # such as the cover of a song
            streams = [s for s in container.streams.video if not s.disposition & pictures]
            if not streams:
                raise ValueError(f"{path}: no video stream")
            yield streams[0]
    except (av.FFmpegError, OSError) as error:
        cut = "; is it cut short?" if isinstance(error, av.InvalidDataError) else ""
        raise ValueError(f"{path}: cannot be read as a video ({error.strerror}{cut})") from error


def _check_size(path: str | Path, stream: av.VideoStream, height: int, width: int) -> None:
    if (stream.height, stream.width) != (height, width):
        raise ValueError(
            f"{path}: {stream.width}x{stream.height} pixels, expected {width}x{height}"
        )


def _check_covers(path: str | Path, rows: int, columns: int, height: int, width: int) -> None:
    if rows < height or columns < width:
        raise ValueError(f"{path}: {columns}x{rows} pixels, expected at least {width}x{height}")


def _constant_rate(path: str | Path, times: tuple[int, ...], unit: Fraction) -> Fraction | None:
    """Frames per second; None if there are too few frames to tell."""
    if len(times) < 2:
        return None
    if not _is_regular(times):
        steps = [1000 * float(step * unit) for step in _steps(times)]
        raise ValueError(
            f"{path} has a variable frame rate, frames of {min(steps):.0f} to {max(steps):.0f} ms; "
            f"{REMAKE}"
        )
    return (len(times) - 1) / ((times[-1] - times[0]) * unit)


def _is_regular(times: tuple[int, ...]) -> bool:
    """A tenth of a frame, or one unit of the clock, may be lost to rounding."""
    steps = _steps(times)
    return len(steps) < 2 or max(steps) - min(steps) <= max(1, sum(steps) / len(steps) / 10)


def _steps(times: tuple[int, ...]) -> list[int]:
    return [after - before for before, after in pairwise(times)]


def _show(path: Path, frame: av.VideoFrame, stream: av.VideoStream) -> np.ndarray:
    """A frame as viewers show it, ``uint8`` ``(height, width, 3)``."""
    if frame.color_trc in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67):
        raise ValueError(f"{path} is HDR, expected SDR; map its tones first")
    rotation = frame.rotation
    # FFmpeg names a PNG's colour profile in the side data, and PyAV 18 frees that name twice.
    if stream.codec_context.name not in ("png", "apng"):
        matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
        if matrix is not None:
            a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).astype(float)
            if rotation % 90 or a * d < b * c:
                raise ValueError(f"{path} is to be shown mirrored or askew; {REMAKE}")
    pixel_aspect = stream.sample_aspect_ratio or Fraction(1)
    if pixel_aspect != 1:
        width = round(frame.width * pixel_aspect)
        frame = frame.reformat(width=width, interpolation="BICUBIC")
    return np.rot90(frame.to_ndarray(format="rgb24", threads=1), rotation // 90)
