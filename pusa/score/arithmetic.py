"""VBench-I2V's arithmetic: from per-video values to dimension scores, halves and total.

A dimension's score is a weighted mean over videos. It is normalised with the leaderboard's
bounds, weighted and averaged into the I2V half and the quality half; the total is their mean.
Source: VBench's ``vbench2_beta_i2v`` leaderboard constants, and the code of its dimensions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
#: Of VBench-I2V's camera prompts, which name each as often; one of them is a static camera.
CAMERA_MOTIONS = 7
NAMES = tuple(d.name for d in DIMENSIONS)
SHORT = {d.name: d.short for d in DIMENSIONS}
TOTALS = ("total", "i2v", "quality")
METRICS = (*TOTALS, *NAMES)
#: What is measured besides where the true continuation of an image is known.
BY_REFERENCE = ("reference_psnr", "motion_match", "motion_explained")

_BY_FRAMES = tuple(d.name for d in DIMENSIONS if d.by_frames)
_DECIBELS = "reference_psnr"  # every other measure is a share


def setting_scores(videos: pd.DataFrame, measures: Sequence[str] = METRICS) -> dict[str, float]:
    """The scores of one setting, in per cent (``reference_psnr`` in dB).

    Args:
        videos: the score table of the setting (`pusa.score.files`).
        measures: of `METRICS`, or any other dimension of the table.

    Raises:
        ValueError: as `check_complete`; a gap is never counted as zero.
    """
    check_complete(videos, measures)
    value, weight = prompt_sums(videos, measures)
    scores = scores_of_sums(value.sum(), weight.sum(), measures)
    return {measure: float(score) for measure, score in scores.items()}


def total_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """``quality``, ``i2v`` and ``total``, in per cent, from the nine dimensions in per cent."""
    halves = {}
    for half in ("quality", "i2v"):
        members = [d for d in DIMENSIONS if d.half == half]
        normalised = [d.weight * (scores[d.name] / 100 - d.low) / (d.high - d.low) for d in members]
        halves[half] = 100 * sum(normalised) / sum(d.weight for d in members)
    return {**halves, "total": (halves["quality"] + halves["i2v"]) / 2}


def still_picture(published: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Least and greatest score that a picture standing still can have of VBench-I2V, in per cent.

    Its frames are the prompt's image: consistency, smoothness and likeness to the image are at
    their maximum, nothing moves, and the camera is right where the prompt wants it static. How good
    the images look is not published; their aesthetic and imaging quality are taken to lie within
    those of the models' videos, which are made from them, but for the extreme on either side: one
    model's printed cells are shifted.

    Args:
        published: Table 1, whose models tell the two ranges.
    """
    scores = {d.name: (100 * d.high, 100 * d.high) for d in DIMENSIONS}
    scores["dynamic_degree"] = 0.0, 0.0
    share = 100 / CAMERA_MOTIONS
    scores["camera_motion"] = share, share
    for name in ("aesthetic_quality", "imaging_quality"):
        within = published[name].dropna().sort_values().iloc[1:-1]
        scores[name] = within.iloc[0], within.iloc[-1]
    ends = [{name: ends[i] for name, ends in scores.items()} for i in (0, 1)]
    totals = [total_scores(end) for end in ends]
    return scores | {name: (totals[0][name], totals[1][name]) for name in TOTALS}


def check_complete(videos: pd.DataFrame, measures: Sequence[str]) -> None:
    """Check that a score table has all that measures need.

    Prompts of one kind have the same dimensions and samples.

    Raises:
        ValueError: that names what is missing: a dimension, or the value of a video.
    """
    needed = needed_dimensions(measures)
    rows = videos[videos["dimension"].isin(needed)]
    scored = rows[rows["value"].notna()]
    present = set(scored["dimension"])
    if missing := [name for name in needed if name not in present]:
        raise ValueError(f"scores lack {', '.join(missing)}")
    asked = rows[["kind", "index"]].drop_duplicates()
    asked = asked.merge(rows[["kind", "dimension", "sample"]].drop_duplicates())
    gaps = asked.merge(scored[asked.columns], how="left", indicator="in")
    gaps = gaps[gaps["in"] == "left_only"]
    if len(gaps):
        raise ValueError(
            f"scores lack {len(gaps)} value(s), such as {gaps['dimension'].iloc[0]} of prompt "
            f"{gaps['index'].iloc[0]}, sample {gaps['sample'].iloc[0]}"
        )


def needed_dimensions(measures: Sequence[str]) -> list[str]:
    """The dimensions that measures are made from: all nine for the total and its halves."""
    names = NAMES if not set(TOTALS).isdisjoint(measures) else ()
    return list(dict.fromkeys([*names, *(m for m in measures if m not in TOTALS)]))


def prompt_sums(videos: pd.DataFrame, measures: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sums over the videos of each prompt: of ``weight * value``, and of ``weight``.

    A video weighs 1; where VBench means over pairs of frames, it weighs its frames less one.

    Returns:
        Two tables, one row per prompt (``kind, index``) and one column per dimension that
        the measures need; 0 where a dimension does not apply to a prompt.
    """
    rows = videos[videos["dimension"].isin(needed_dimensions(measures))]
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
