"""Reading and writing video files (PyAV), the only place that touches a codec.

Frames are ``uint8`` arrays of shape ``(frames, height, width, 3)``, RGB, 0-255.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np

FPS = 16  # Wan2.1's frame rate; VBench's dynamic degree depends on it
CRF = 10  # VBench-I2V's recipe
X264 = {"crf": str(CRF), "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}


def read_video(path: str | Path) -> np.ndarray:
    """Decode every frame of the first video stream to ``(frames, height, width, 3)``.

    Raises:
        ValueError: if the file has no decodable video stream, or a damaged frame.
    """
    with _open_video(path) as stream:
        frames = [frame.to_ndarray(format="rgb24") for frame in _decode(path, stream)]
    if not frames:
        raise ValueError(f"{path}: no video frame could be decoded")
    return np.stack(frames)


def video_shape(path: str | Path) -> tuple[int, int, int]:
    """Frames, height and width; the frames are counted by decoding, and none is kept.

    Raises:
        ValueError: if the file has no decodable video stream, or a damaged frame.
    """
    with _open_video(path) as stream:
        return sum(1 for _ in _decode(path, stream)), stream.height, stream.width


def check_clip(path: str | Path, *, frames: int, height: int, width: int) -> None:
    """Check a training clip by its header, so that thousands take seconds.

    Args:
        frames: pixel frames that it has at least.

    Raises:
        ValueError: if it has no video stream, another size, or fewer frames.
    """
    with _open_video(path) as stream:
        _check_size(path, stream, height, width)
        if 0 < stream.frames < frames:  # 0: the container does not say
            raise ValueError(f"{path}: {stream.frames} frames, expected at least {frames}")


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


def write_video(path: str | Path, frames: np.ndarray, settings: dict | None = None) -> None:
    """Write ``(frames, height, width, 3)`` as H.264, 16 fps, crf 10, as VBench-I2V asks.

    The file appears under its name only when complete, so that an interrupted run leaves
    no half-written video. ``settings`` are stored as JSON in the container's comment.
    """
    path = Path(path)
    partial = path.with_name(f".partial-{path.name}")
    with av.open(str(partial), "w", format="mp4") as container:
        if settings is not None:
            container.metadata["comment"] = json.dumps(settings, sort_keys=True)
        # One thread and no macroblock tree: with it, x264 was seen to write small clips in
        # several ways at random, and then neither a dataset nor a training repeats.
        stream = container.add_stream("libx264", rate=FPS, options=X264)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    os.replace(partial, path)


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
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: no video stream")
            yield container.streams.video[0]
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a video ({error.strerror})") from error


def _check_size(path: str | Path, stream: av.VideoStream, height: int, width: int) -> None:
    if (stream.height, stream.width) != (height, width):
        raise ValueError(
            f"{path}: {stream.width}x{stream.height} pixels, expected {width}x{height}"
        )
