"""VBench-I2V's arithmetic: from per-video values to dimension scores, halves and total.

A dimension's score is normalised with the leaderboard's bounds, weighted and averaged into
the I2V half and the quality half; the total is their mean. Source: VBench's
``vbench2_beta_i2v`` leaderboard constants.
"""

from dataclasses import dataclass

import pandas as pd

from pusa.suite import choose_subset


@dataclass(frozen=True)
class Dimension:
    """One row of VBench-I2V's table of constants."""

    name: str
    short: str
    half: str  # "i2v" or "quality"
    weight: float
    low: float
    high: float


DIMENSIONS = (
    Dimension("subject_consistency", "SC", "quality", 1.0, 0.1462, 1.0),
    Dimension("background_consistency", "BC", "quality", 1.0, 0.2615, 1.0),
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


def dimension_scores(videos: pd.DataFrame) -> dict[str, float]:
    """Mean over videos of each of the nine dimensions, in per cent.

    Args:
        videos: per-video values with the columns ``dimension`` and ``value`` (0 to 1).

    Raises:
        ValueError: if a dimension is missing or a value is not a number; a gap is never
            counted as zero.
    """
    if videos["value"].isna().any():
        bad = videos[videos["value"].isna()].iloc[0]
        raise ValueError(f"{bad['dimension']} of video {bad['file']} is not a number")
    means = videos.groupby("dimension")["value"].mean()
    missing = [name for name in NAMES if name not in means]
    if missing:
        raise ValueError(f"scores lack {', '.join(missing)}")
    return {name: 100 * float(means[name]) for name in NAMES}


def restrict(videos: pd.DataFrame, counts: dict[str, int] | None) -> pd.DataFrame:
    """The rows of a subset of the prompts, by `choose_subset`; all if ``counts`` is None.

    Args:
        videos: per-video values with the columns ``index`` and ``kind``, of all prompts or of
            the subset alone.
    """
    if counts is None:
        return videos
    prompts = videos.drop_duplicates("index").sort_values("index")
    chosen = choose_subset(list(prompts["kind"]), counts)
    return videos[videos["index"].isin(prompts["index"].iloc[chosen])]


def total_scores(scores: dict[str, float]) -> dict[str, float]:
    """``quality``, ``i2v`` and ``total``, in per cent, from the nine dimensions in per cent."""
    halves = {}
    for half in ("quality", "i2v"):
        members = [d for d in DIMENSIONS if d.half == half]
        normalised = [d.weight * (scores[d.name] / 100 - d.low) / (d.high - d.low) for d in members]
        halves[half] = 100 * sum(normalised) / sum(d.weight for d in members)
    return {**halves, "total": (halves["quality"] + halves["i2v"]) / 2}
