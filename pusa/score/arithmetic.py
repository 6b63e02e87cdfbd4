"""VBench-I2V's arithmetic: from per-video values to dimension scores, halves and total.

A dimension's score is a weighted mean over videos. It is normalised with the leaderboard's
bounds, weighted and averaged into the I2V half and the quality half; the total is their mean.
Source: VBench's ``vbench2_beta_i2v`` leaderboard constants, and the code of its dimensions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Dimension:
    """One row of VBench-I2V's table of constants."""

    name: str
    short: str
    half: str  # "i2v" or "quality"
    weight: float
    low: float
    high: float
    by_frames: bool = False  # VBench means over all pairs of frames, not over videos


DIMENSIONS = (
    Dimension("subject_consistency", "SC", "quality", 1.0, 0.1462, 1.0, by_frames=True),
    Dimension("background_consistency", "BC", "quality", 1.0, 0.2615, 1.0, by_frames=True),
    Dimension("motion_smoothness", "MS", "quality", 1.0, 0.7060, 0.9975),
    Dimension("dynamic_degree", "DD", "quality", 0.5, 0.0, 1.0),
    Dimension("aesthetic_quality", "AQ", "quality", 1.0, 0.0, 1.0),
    Dimension("imaging_quality", "IQ", "quality", 1.0, 0.0, 1.0),
    Dimension("i2v_subject", "I2V-S", "i2v", 1.0, 0.1462, 1.0),
    Dimension("i2v_background", "I2V-B", "i2v", 1.0, 0.2615, 1.0),
    Dimension("camera_motion", "CM", "i2v", 0.1, 0.0, 1.0),
)
NAMES = tuple(d.name for d in DIMENSIONS)
SHORT = {d.name: d.short for d in DIMENSIONS}
TOTALS = ("total", "i2v", "quality")
METRICS = (*TOTALS, *NAMES)

_BY_FRAMES = tuple(d.name for d in DIMENSIONS if d.by_frames)
_DECIBELS = "reference_psnr"  # every other measure is a share


def dimension_scores(videos: pd.DataFrame, *, allow_partial: bool = False) -> dict[str, float]:
    """The nine dimensions, in per cent; with ``allow_partial``, those that are there.

    Raises:
        ValueError: as `setting_scores`.
    """
    scores = setting_scores(videos, NAMES, allow_partial=allow_partial)
    return {name: score for name, score in scores.items() if not np.isnan(score)}


def setting_scores(
    videos: pd.DataFrame, measures: Sequence[str] = METRICS, *, allow_partial: bool = False
) -> dict[str, float]:
    """The scores of one setting, in per cent (``reference_psnr`` in dB).

    Args:
        videos: the score table of the setting (`pusa.score.files`).
        measures: of `METRICS`, or any other dimension of the table.
        allow_partial: score the dimensions and videos that are there. What is missing is NaN,
            and so are then the total and its halves.

    Raises:
        ValueError: if a dimension or the value of a video is missing; a gap is never counted
            as zero.
    """
    available = available_measures(videos, measures, allow_partial=allow_partial)
    value, weight = prompt_sums(videos, available)
    scores = scores_of_sums(value.sum(), weight.sum(), available)
    return {measure: float(scores.get(measure, np.nan)) for measure in measures}


def total_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """``quality``, ``i2v`` and ``total``, in per cent, from the nine dimensions in per cent."""
    halves = {}
    for half in ("quality", "i2v"):
        members = [d for d in DIMENSIONS if d.half == half]
        normalised = [d.weight * (scores[d.name] / 100 - d.low) / (d.high - d.low) for d in members]
        halves[half] = 100 * sum(normalised) / sum(d.weight for d in members)
    return {**halves, "total": (halves["quality"] + halves["i2v"]) / 2}


def available_measures(
    videos: pd.DataFrame, measures: Sequence[str], *, allow_partial: bool = False
) -> list[str]:
    """The measures that a score table can give: all, or with gaps the dimensions it has.

    Raises:
        ValueError: if there are gaps, unless ``allow_partial``.
    """
    needed = needed_dimensions(measures)
    asked = videos[videos["dimension"].isin(needed)]
    present = set(asked.loc[asked["value"].notna(), "dimension"])
    missing = [name for name in needed if name not in present]
    gaps = f"scores lack {', '.join(missing)}" if missing else _find_gaps(asked)
    if not gaps:
        return list(measures)
    if not allow_partial:
        raise ValueError(gaps)
    return [measure for measure in measures if measure in present]


def needed_dimensions(measures: Sequence[str]) -> list[str]:
    """The dimensions that measures are made from: all nine for the total and its halves."""
    names = NAMES if not set(TOTALS).isdisjoint(measures) else ()
    return list(dict.fromkeys([*names, *(m for m in measures if m not in TOTALS)]))


def _find_gaps(videos: pd.DataFrame) -> str:
    """What a table lacks, in words: prompts of one kind have the same dimensions and samples."""
    asked = videos[["kind", "index"]].drop_duplicates()
    asked = asked.merge(videos[["kind", "dimension", "sample"]].drop_duplicates())
    found = videos.loc[videos["value"].notna(), asked.columns]
    if len(found) == len(asked):
        return ""
    gaps = asked.merge(found, how="left", indicator="in")
    gaps = gaps[gaps["in"] == "left_only"]
    return (
        f"scores lack {len(gaps)} value(s), such as {gaps['dimension'].iloc[0]} of prompt "
        f"{gaps['index'].iloc[0]}, sample {gaps['sample'].iloc[0]}"
    )


def prompt_sums(videos: pd.DataFrame, measures: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sums over the videos of each prompt: of ``weight * value``, and of ``weight``.

    A video weighs 1; where VBench means over pairs of frames, it weighs its frames less one.

    Returns:
        Two tables, one row per prompt (``kind, index``) and one column per dimension that
        the measures need; 0 where a dimension does not apply to a prompt.
    """
    rows = videos[videos["dimension"].isin(needed_dimensions(measures)) & videos["value"].notna()]
    weight = (rows["frames"] - 1).where(rows["dimension"].isin(_BY_FRAMES), 1).astype(float)
    rows = rows.assign(weight=weight, value=weight * rows["value"])
    sums = rows.groupby(["kind", "index", "dimension"])[["value", "weight"]].sum()
    return tuple(sums[column].unstack(fill_value=0.0) for column in ("value", "weight"))


def scores_of_sums(value: Mapping, weight: Mapping, measures: Sequence[str]) -> dict:
    """Scores from the sums of `prompt_sums` over prompts, in per cent (PSNR in dB).

    Args:
        value: sums of ``weight * value`` by dimension: numbers, or arrays of one shape, whose
            elements stand for as many choices of prompts.
        weight: sums of ``weight``, alike.
    """
    scores = {
        name: (1 if name == _DECIBELS else 100) * value[name] / weight[name]
        for name in needed_dimensions(measures)
    }
    if not set(TOTALS).isdisjoint(measures):
        scores |= total_scores(scores)
    return {measure: scores[measure] for measure in measures}
