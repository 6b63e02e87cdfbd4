"""Score files: a CSV with one row per video and dimension, and a JSON record of its making.

The record lies beside the table, with the suffix ``.json``, and is written last: a table
without one is what an interrupted job left. It holds the table's SHA-256: one of another content
was edited, or cut.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pusa.data.manifest import check_manifest
from pusa.data.suite import KINDS, SuitePrompt
from pusa.digests import digest_file, write_record
from pusa.records import atomic, record_beside
from pusa.score.arithmetic import NAMES

#: ``file`` names the video, ``index`` its prompt's place in the suite. ``value`` is a share, of
#: ``imaging_quality`` VBench's value / 100, of ``reference_psnr`` dB. ``frames`` are pixel frames.
#: ``sha256`` is that of the video.
COLUMNS = ("file", "sha256", "index", "sample", "kind", "dimension", "value", "frames", "scorer")
SCORERS = ("vbench", "weight_free")

MAX_PSNR = 60.0  # dB; rounding to 8 bits alone leaves 59

_LEAST = {"index": 0, "sample": 0, "frames": 2}  # of the columns of whole numbers
_YES_OR_NO = ("dynamic_degree", "camera_motion", "motion_match")
_SLACK = 1e-3  # a cosine of a vector with itself may pass 1 by rounding
#: What VBench's networks give by regression may pass 0 and 1, though not as per cent would.
_REGRESSIONS = ("aesthetic_quality", "imaging_quality")
_REGRESSION_SLACK = 0.5
#: Keys of a record in which score files that are compared may differ; all others decide a score.
_VARYING = ("dimensions", "device", "devices", "sha256")
_INTERRUPTED = "the job that wrote it was interrupted: delete it and run again"


def write_scores(table: pd.DataFrame, record: Mapping, out: str | Path) -> None:
    """Write a score table to ``out``, then its record beside it.

    Args:
        table: rows with `COLUMNS`.
        record: ``scorer``, ``dimensions``, ``device``, ``packages`` and whatever else decides
            a score; `pusa.digests.write_record` adds the table's digest.

    Raises:
        ValueError: for a row that `read_scores` would refuse, or the record's own name.
    """
    out = Path(out)
    beside = record_beside(out)
    table = _check_rows(table, out, record)
    beside.unlink(missing_ok=True)
    with atomic(out) as partial:
        table.to_csv(partial, index=False)
    write_record([out], record)


def read_scores(file: str | Path) -> pd.DataFrame:
    """Read and check a score table.

    Raises:
        FileNotFoundError: if there is no table.
        ValueError: if it was cut off, edited or exchanged, has no record, or has a row whose value
            is missing, not finite or out of range, or that repeats another; names the file and the
            row.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"score file {file} does not exist")
    record = read_record(file)
    if record["sha256"].get(file.name) != digest_file(file):
        raise ValueError(
            f"{file} was cut, edited or exchanged: its SHA-256 is not that of its record; delete "
            "it and run again"
        )
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas does not name the file
        raise ValueError(f"{file}: cannot be read as CSV ({error})") from None
    return _check_rows(table, file, record)


def read_record(file: str | Path) -> dict:
    """Read the record beside a score table.

    Raises:
        ValueError: if it is missing, damaged, or lacks what `write_scores` put there.
    """
    record_file = Path(file).with_suffix(".json")
    try:
        record = dict(json.loads(record_file.read_text(encoding="utf-8")))
    except (FileNotFoundError, TypeError, ValueError):
        raise ValueError(
            f"{file} has no complete record {record_file.name}; {_INTERRUPTED}"
        ) from None
    text, listed = (str, "text"), (list, "a list")
    table = (dict, "a table")
    kinds = {"scorer": text, "dimensions": listed, "packages": table, "sha256": table}
    kinds |= {"devices": listed} if "devices" in record else {"device": text}
    for key, (kind, expected) in kinds.items():
        if not isinstance(record.get(key), kind):
            raise ValueError(f"{record_file}: {key} is {record.get(key)!r}, expected {expected}")
    if record["scorer"] not in SCORERS:
        raise ValueError(
            f"{record_file}: scorer is {record['scorer']!r}, expected one of {', '.join(SCORERS)}"
        )
    return record


def _check_rows(texts: pd.DataFrame, file: Path, record: Mapping) -> pd.DataFrame:
    """The table with its numbers as numbers, if all its rows can be."""
    if tuple(texts.columns) != COLUMNS:
        raise ValueError(
            f"{file}: columns are {', '.join(map(str, texts.columns))}; "
            f"expected {', '.join(COLUMNS)}"
        )
    table = texts.assign(
        **{c: pd.to_numeric(texts[c], errors="coerce") for c in ("value", *_LEAST)}
    )
    value, dimension = table["value"], table["dimension"]

    def refuse(bad: pd.Series, column: str, expected: str) -> None:
        if bad.any():
            row = int(bad.to_numpy().argmax())
            found = texts[column].iloc[row]
            raise ValueError(
                f"{file}, row {row + 2}: {column} of {dimension.iloc[row]} of "
                f"{table['file'].iloc[row]} is {'empty' if found == '' else found}, "
                f"expected {expected}"
            )

    regressed = dimension.isin(_REGRESSIONS) & (record["scorer"] == "vbench")
    slack = regressed.map({True: _REGRESSION_SLACK, False: _SLACK})
    psnr = dimension == "reference_psnr"
    refuse(~np.isfinite(value), "value", "a finite number")
    refuse(dimension.isin(_YES_OR_NO) & ~value.isin([0, 1]), "value", "0 or 1")
    refuse(psnr & ~value.between(0, MAX_PSNR), "value", f"0 to {MAX_PSNR:g} dB")
    refuse(~psnr & ~value.between(-slack, 1 + slack), "value", "0 to 1")
    for column, least in _LEAST.items():
        whole = (table[column] >= least) & (table[column] % 1 == 0)
        refuse(~whole, column, f"a whole number from {least}")
    refuse(~table["kind"].isin(KINDS), "kind", f"one of {', '.join(KINDS)}")
    refuse(table["scorer"] != record["scorer"], "scorer", f"{record['scorer']}, as recorded")
    for key in (["file", "dimension"], ["index", "sample", "dimension"]):
        repeated = table.duplicated(key)
        if repeated.any():
            second = int(repeated.to_numpy().argmax())
            first = int((table[key] == table[key].iloc[second]).all(axis=1).to_numpy().argmax())
            raise ValueError(
                f"{file}, row {second + 2} repeats row {first + 2}: {dimension.iloc[second]} of "
                f"{table['file'].iloc[second]}"
            )
    return table.astype({**dict.fromkeys(_LEAST, int), "value": float})


def extend_scores(
    earlier: str | Path | None,
    videos: pd.DataFrame,
    score: Callable[[pd.DataFrame], tuple[pd.DataFrame, dict]],
    *,
    made_from: Mapping[str, str],
) -> tuple[pd.DataFrame, dict]:
    """Score videos, but for those whose scores an earlier table of the setting has.

    So a setting that got more prompts or samples keeps its scores, wherever its jobs now divide it.

    Args:
        earlier: from `gather_scores`. A score of it is kept if the video is the same and it would
            be made alike today; a table that is missing or damaged has none.
        videos: the manifest, ``file, index, prompt, sample, sha256``.
        score: gives the table of some videos and its record, quickly if there are none.
        made_from: SHA-256, by name, of what else decides scores; the record gets them.

    Returns:
        The table and the record, with the ``devices`` of both.
    """

    def score_some(some: pd.DataFrame) -> tuple[pd.DataFrame, dict]:
        table, record = score(some)
        return table, {**record, **made_from}

    nothing, today = score_some(videos[:0])
    kept, devices = nothing, []
    try:
        if earlier:
            table, record = read_scores(earlier), read_record(earlier)
            check_alike({"earlier": record, "today": today})
            # One job may score one dimension alone.
            asked = table["dimension"].isin(today["dimensions"] or table["dimension"])
            kept = table[asked].merge(videos[["file", "sha256"]])[list(COLUMNS)]
            devices = _devices(record)
    except (OSError, ValueError):
        pass  # all are scored again
    rest = videos[~videos["file"].isin(kept["file"])]
    table, record = score_some(rest) if len(rest) else (nothing, today)
    if kept.empty:
        return table, record
    used = {*devices, *(_devices(record) if len(table) else [])}
    record = {key: value for key, value in record.items() if key != "device"}
    table = pd.concat([kept, table]) if len(table) else kept
    table = table.sort_values(["index", "sample"], kind="stable", ignore_index=True)
    record["dimensions"] = sorted({*record["dimensions"], *table["dimension"]})
    return table, record | {"devices": sorted(used)}


def _devices(record: Mapping) -> list[str]:
    return record.get("devices") or [record["device"]]


def gather_scores(
    files: Sequence[str | Path],
    prompts: Sequence[SuitePrompt],
    videos: pd.DataFrame,
    *,
    samples: int,
) -> tuple[pd.DataFrame, dict]:
    """Put the score files of one setting together: every video and dimension exactly once.

    Args:
        files: score files of dimensions and shards.
        prompts: the prompts of the setting, which say what is to be scored.
        videos: the manifests of the setting, ``file, index, prompt, sample, sha256``.
        samples: videos of each prompt, all of which the manifests must list.

    Returns:
        The table in the order of the suite, and a record: what all files have in common, and all
        ``dimensions`` and ``devices``.

    Raises:
        ValueError: if a score is missing, there twice, or of a video or prompt that is not
            asked for; or if files were made by different scorers, packages or modes.
    """
    if not files:
        raise ValueError("there are no score files to gather; expected at least one")
    tables = [read_scores(file).assign(source=str(file)) for file in files]
    record = _merge_records({str(file): read_record(Path(file)) for file in files})
    scores = pd.concat(tables, ignore_index=True)
    repeated = scores.duplicated(["file", "dimension"])
    if repeated.any():
        row = scores[repeated].iloc[0]
        same = (scores["file"] == row["file"]) & (scores["dimension"] == row["dimension"])
        sources = " and in ".join(scores.loc[same, "source"])
        raise ValueError(f"{row['dimension']} of {row['file']} is in {sources}; expected once")

    lengths = scores.groupby("file")["frames"].unique()
    for name, frames in lengths[lengths.map(len) > 1].items():
        sources = " and ".join(sorted(set(scores.loc[scores["file"] == name, "source"])))
        raise ValueError(
            f"{name} has {' and '.join(map(str, frames))} frames in {sources}; expected one length"
        )

    listed = scores["file"].map(videos.drop_duplicates("file").set_index("file")["sha256"])
    other = scores[listed.notna() & (listed != scores["sha256"])]
    if len(other):
        row = other.iloc[0]
        raise ValueError(
            f"{row['source']}: {row['dimension']} of {row['file']} is of another video than the "
            "one that is listed; delete the score file to have it made again"
        )

    extra = [name for name in scores["dimension"].unique() if name not in NAMES]
    asked = _asked_scores(prompts, videos, samples, extra)
    keys = list(asked.columns)
    found = scores.merge(asked, how="left", indicator="place")
    if (found["place"] != "both").any():
        row = found[found["place"] != "both"].iloc[0]
        known = any(prompt.index == row["index"] for prompt in prompts)
        raise ValueError(
            f"{row['source']}: {row['dimension']} of {row['file']}, {row['kind']} prompt "
            f"{row['index']}, sample {row['sample']}: "
            + ("not asked for by the suite and the list of videos" if known else "not in the suite")
        )
    table = asked.merge(scores, how="left", on=keys)
    missing = table[table["value"].isna()]
    if len(missing):
        lacks = missing.groupby("dimension", sort=False)["file"].agg(["count", "first"])
        raise ValueError(
            "scores lack "
            + ", ".join(f"{d} of {n} video(s), such as {f}" for d, n, f in lacks.itertuples())
        )
    return table[list(COLUMNS)], record


def _asked_scores(
    prompts: Sequence[SuitePrompt], videos: pd.DataFrame, samples: int, extra: Sequence[str]
) -> pd.DataFrame:
    """What is to be scored, in the suite's order: ``file, index, sample, kind, dimension``.

    Args:
        extra: measures that are no dimension of the suite; each is asked for of every video.
    """
    check_manifest(prompts, videos)
    listed = set(zip(videos["index"], videos["sample"], strict=True))
    for prompt in prompts:
        for sample in range(samples):
            if (prompt.index, sample) not in listed:
                raise ValueError(
                    f"video {prompt.video_name(sample)} is missing: no manifest lists sample "
                    f"{sample} of prompt {prompt.index}, {prompt.prompt!r}"
                )
    by_index = {prompt.index: prompt for prompt in prompts}
    rows = []
    for video in videos.sort_values(["index", "sample"]).to_dict("records"):
        prompt = by_index[video["index"]]
        place = (video["file"], video["index"], video["sample"], prompt.kind)
        rows += [
            (*place, name) for name in (*prompt.dimensions, *extra) if name in (*NAMES, *extra)
        ]
    return pd.DataFrame(rows, columns=["file", "index", "sample", "kind", "dimension"])


def _merge_records(records: dict[str, dict]) -> dict:
    """What all records have in common, with what they may differ in put together."""
    check_alike(records)
    return {
        **{k: v for k, v in next(iter(records.values())).items() if k not in _VARYING},
        "dimensions": sorted({name for r in records.values() for name in r["dimensions"]}),
        "devices": sorted({name for r in records.values() for name in _devices(r)}),
    }


def check_alike(records: Mapping[str, dict]) -> None:
    """Check that scores were made by one scorer, with the same packages and modes.

    Args:
        records: of score files, by their names.

    Raises:
        ValueError: that names two files and what they were made with.
    """
    first_file, first = next(iter(records.items()))
    for file, record in records.items():
        for old, new in ((first, record), (first["packages"], record["packages"])):
            for key in sorted((old.keys() | new.keys()) - {*_VARYING, "packages"}):
                if old.get(key) != new.get(key):
                    raise ValueError(
                        f"{first_file} was made with {key} {old.get(key)}, {file} with "
                        f"{new.get(key)}; scores that are compared must be made alike"
                    )
