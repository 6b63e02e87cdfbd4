"""Lists of videos, CSV files beside them: which file was made for which prompt."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pusa.data.suite import SuitePrompt

COLUMNS = ["file", "index", "prompt", "sample"]


def read_manifests(files: list[Path]) -> tuple[pd.DataFrame, Path]:
    """Read lists of videos that lie in one folder.

    Returns:
        One row per video, ``file, index, prompt, sample, device``, and the videos' folder.

    Raises:
        FileNotFoundError: if a list is missing.
        ValueError: if one is not such a list, or they lie in several folders.
    """
    folders = {Path(file).parent for file in files}
    if len(folders) != 1:
        names = ", ".join(sorted(map(str, folders))) or "none"
        raise ValueError(f"manifests of one folder are expected, found {names}")
    tables = []
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(f"list of videos {file} does not exist")
        try:
            table = pd.read_csv(file, keep_default_na=False, dtype={"file": str, "prompt": str})
        except ValueError as error:  # pandas does not name the file
            raise ValueError(f"{file}: cannot be read as a list of videos ({error})") from None
        lacking = [column for column in COLUMNS if column not in table]
        if lacking:
            raise ValueError(f"{file}: a list of videos has no column {', '.join(lacking)}")
        tables.append(table)
    return pd.concat(tables, ignore_index=True), folders.pop()


def check_manifest(prompts: Sequence[SuitePrompt], videos: pd.DataFrame) -> None:
    """Check that videos were made for the prompts of a suite.

    Args:
        videos: from `read_manifests`.

    Raises:
        ValueError: if a video is of a prompt that the suite has not, or words otherwise.
    """
    by_index = {prompt.index: prompt for prompt in prompts}
    for video in videos.to_dict("records"):
        file, index = video["file"], video["index"]
        if index not in by_index:
            raise ValueError(f"video {file}: the suite has no prompt {index}")
        if video["prompt"] != by_index[index].prompt:
            raise ValueError(
                f"video {file} was made for {video['prompt']!r}, but the suite's prompt {index} is "
                f"{by_index[index].prompt!r}"
            )


def is_complete(manifest: Path) -> bool:
    """Whether every video that a list names is there."""
    with manifest.open(newline="") as lines:
        return all((manifest.parent / row["file"]).exists() for row in csv.DictReader(lines))
