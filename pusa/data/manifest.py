"""Lists of videos, CSV files beside them: which file was made for which prompt, and its content."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd

from pusa.data.noted import clock, read_note, write_note
from pusa.data.suite import SuitePrompt
from pusa.digests import digest_file

COLUMNS = ["file", "index", "prompt", "sample", "sha256"]


def read_manifests(files: list[Path]) -> tuple[pd.DataFrame, Path]:
    """Read lists of videos that lie in one folder.

    Returns:
        One row per video, ``file, index, prompt, sample, sha256, device``, and the videos' folder.

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
        for name in table["file"]:
            if not name.endswith(".mp4") or Path(name).name != name:
                raise ValueError(f"{file}: found the video {name!r}, expected one beside the list")
        tables.append(table)
    return pd.concat(tables, ignore_index=True), folders.pop()


def check_manifest(prompts: Sequence[SuitePrompt], videos: pd.DataFrame) -> None:
    """Check that videos were made for the prompts of a suite.

    Args:
        videos: from `read_manifests`.

    Raises:
        ValueError: if a video is of a prompt that the suite has not, or words otherwise, or is
            listed twice.
    """
    for key in (["file"], ["index", "sample"]):
        if key[-1] in videos and (twice := videos.duplicated(key)).any():
            raise ValueError(f"video {videos.loc[twice, 'file'].iloc[0]} is listed twice")
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


def check_files(videos: pd.DataFrame, folder: str | Path) -> None:
    """Check that videos are what was listed, before they are scored or their scores are used.

    Args:
        videos: from `read_manifests`, as is ``folder``.

    Raises:
        FileNotFoundError: if one is missing.
        ValueError: if one says itself that it is of another prompt, or is another file.
    """
    from pusa.data.video import read_settings  # a rule file, which needs no codec, imports this

    for video in videos.to_dict("records"):
        path = Path(folder) / video["file"]
        if not path.is_file():
            raise FileNotFoundError(f"video {path} is missing")
        told = read_settings(path)
        for key in ("prompt", "sample"):
            if told.get(key, video[key]) != video[key]:
                raise ValueError(
                    f"video {path} says that it is of {key} {told[key]!r}, but it is listed for "
                    f"{video[key]!r}; delete it to have it made again"
                )
        if digest_file(path) != video["sha256"]:
            raise ValueError(
                f"video {path} was changed after it was listed; delete it to have it made again"
            )


def write_manifest(table: pd.DataFrame, manifest: Path) -> None:
    """Write a list of videos that were read a moment ago, which `find_changed` need not do again.

    Args:
        table: from `pusa.sample.loop.list_videos`.
    """
    at = clock(manifest.parent)
    table.assign(folder=manifest.parent.name).to_csv(manifest, index=False)
    write_note(manifest, {"list": digest_file(manifest), "at": at})


def find_changed(manifest: Path) -> list[Path]:
    """The videos of a list that are missing, or are no longer what was listed.

    Only those are read that were touched since that was found out last, which is noted: the time of
    the last change of an inode cannot be set back.

    Raises:
        ValueError: as `read_manifests`, or if the list was edited, or exchanged with that of
            another folder.
    """
    at = clock(manifest.parent)
    videos, folder = read_manifests([manifest])
    others = set(videos.get("folder", ())) - {folder.name}
    if others:
        raise ValueError(f"{manifest} is a list of {others.pop()}, expected one of {folder.name}")
    digest_of_list = digest_file(manifest)
    note = read_note(manifest, at)
    if note.get("list", digest_of_list) != digest_of_list:  # a job notes the list that it writes
        raise ValueError(f"{manifest} was edited after its videos were made")
    checked = note.get("at", 0)
    changed, read = [], False
    for file, digest in zip(videos["file"], videos["sha256"], strict=True):
        path = folder / file
        if path.is_file():
            if path.stat().st_ctime_ns < checked:  # the clock ticks in milliseconds
                continue
            read = True
            if digest_file(path) == digest:
                continue
        changed.append(path)
    if read and not changed:
        with suppress(OSError):  # of another owner
            write_note(manifest, {"list": digest_of_list, "at": at})
    return changed
