"""Training clips in the layout of the released dataset, ``RaphaelLiu/PusaV1_training``.

``metadata.csv`` has the columns ``file_name,text``; the files it names lie beside it, such
as ``train/video_000001.mp4``.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pusa.clip import count_latent_frames
from pusa.video import read_video


@dataclass(frozen=True)
class Clip:
    """One caption-video pair."""

    path: Path
    caption: str


def read_metadata(dataset: str | Path) -> list[Clip]:
    """Read ``metadata.csv`` and check that every row can be used.

    Raises:
        FileNotFoundError: if ``metadata.csv``, or a file that it names, is missing.
        ValueError: for a missing column, an empty caption, or no rows.
    """
    path = Path(dataset) / "metadata.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a CSV with file_name,text")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # empty, not CSV, or not text: pandas does not name the file
        raise ValueError(f"{path}: cannot be read as CSV ({error})") from None
    for column in ("file_name", "text"):
        if column not in table:
            raise ValueError(
                f"{path}: column {column!r} is missing; found {', '.join(table.columns)}"
            )
    if table.empty:
        raise ValueError(f"{path}: no clips; expected at least one row")
    clips = []
    for line, row in enumerate(table.itertuples(index=False), start=2):
        if not row.text.strip():
            raise ValueError(f"{path}, line {line}: the caption of {row.file_name!r} is empty")
        clip = Path(dataset) / row.file_name
        if not clip.is_file():
            raise FileNotFoundError(f"{path}, line {line}: {clip} does not exist")
        clips.append(Clip(clip, row.text))
    return clips


def read_clip(path: Path, *, frames: int, height: int, width: int) -> np.ndarray:
    """The first ``frames`` frames of a clip, ``uint8`` ``(frames, height, width, 3)``.

    Raises:
        ValueError: if it cannot be decoded, is too short, or has another size.
    """
    count_latent_frames(frames)
    video = read_video(path)
    if len(video) < frames:
        raise ValueError(f"{path}: {len(video)} frames, expected at least {frames}")
    if video.shape[1:3] != (height, width):
        raise ValueError(
            f"{path}: {video.shape[2]}x{video.shape[1]} pixels, expected {width}x{height}"
        )
    return video[:frames]
