"""Reading and writing video files (PyAV), the only place that touches a codec.

Frames are ``uint8`` arrays of shape ``(frames, height, width, 3)``, RGB, 0-255.
"""

import json
import os
from pathlib import Path

import av
import numpy as np

FPS = 16  # Wan2.1's frame rate; VBench's dynamic degree depends on it
CRF = 10  # VBench-I2V's recipe
X264 = {"crf": str(CRF), "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}


def read_video(path: str | Path) -> np.ndarray:
    """Decode every frame of the first video stream to ``(frames, height, width, 3)``.

    Raises:
        ValueError: if the file has no decodable video stream.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: no video stream")
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a video ({error.strerror})") from error
    if not frames:
        raise ValueError(f"{path}: no video frame could be decoded")
    return np.stack(frames)


def check_video(
    path: str | Path, *, frames: int, height: int, width: int, exact: bool = False
) -> None:
    """Check a file without decoding it, so that thousands take seconds.

    Args:
        frames: pixel frames that it has at least, by its header.
        exact: it is a sample to be scored, and has exactly so many frames, at `FPS`. They are
            counted in the file itself: a header may promise what a cut file no longer holds.

    Raises:
        ValueError: if it has no video stream, or another length, size or frame rate.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: no video stream")
            stream = container.streams.video[0]
            size, rate = (stream.width, stream.height), stream.average_rate
            if exact:  # one packet holds one frame
                packets = container.demux(stream)
                found = sum(1 for packet in packets if packet.size and not packet.is_corrupt)
            else:
                found = stream.frames
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a video ({error.strerror})") from error
    if size != (width, height):
        raise ValueError(f"{path}: {size[0]}x{size[1]} pixels, expected {width}x{height}")
    if exact and found != frames:
        raise ValueError(f"{path}: {found} frames, expected {frames}")
    if 0 < found < frames:  # 0: the container does not say
        raise ValueError(f"{path}: {found} frames, expected at least {frames}")
    if exact and rate != FPS:
        raise ValueError(f"{path}: {float(rate or 0):g} frames per second, expected {FPS}")


def read_settings(path: str | Path) -> dict:
    """The settings that `write_video` stored in a file; empty if there are none."""
    try:
        with av.open(str(path)) as container:
            settings = json.loads(container.metadata.get("comment", "{}"))
    except (av.FFmpegError, OSError, json.JSONDecodeError):
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
