"""95 % bootstrap intervals of scores, and of differences between two settings.

Prompts are resampled, each with all its samples: what is wanted is how far a score would move
with other prompts of the same sort. A suite fixes how many prompts it has of each kind, so
each kind is resampled by itself (a stratified percentile bootstrap, `scipy.stats.bootstrap`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from pusa.score.arithmetic import (
    METRICS,
    check_complete,
    needed_dimensions,
    prompt_sums,
    scores_of_sums,
)

#: Moves a bound by 3 % of the standard error at random, which is fixed by the seed.
RESAMPLES = 10_000
BATCH = 1000  # resamples held in memory at once
#: Equal sums in another order differ in their last bits; a difference of nothing is nothing.
DECIMALS = 9
#: Verdicts on a claim about a number.
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "not decided"


@dataclass(frozen=True)
class Interval:
    """A score or difference with its 95 % interval; in per cent, PSNR in dB.

    The bounds are NaN where it rests on a kind of which there is a single prompt: how much
    such prompts differ cannot be known.
    """

    value: float
    low: float
    high: float


def judge(low: float, high: float, *, above: float = -np.inf, below: float = np.inf) -> str:
    """Whether a number that is known to lie from ``low`` to ``high`` is between two others.

    Returns:
        `HOLDS` or `FAILS` where the whole interval says so, else `UNDECIDED`.
    """
    if above < low and high < below:
        return HOLDS
    return FAILS if high < above or below < low else UNDECIDED


def score_intervals(videos: pd.DataFrame, measures: Sequence[str] = METRICS) -> dict[str, Interval]:
    """Scores of one setting with their intervals.

    Args:
        videos: the score table of the setting.
        measures: of `METRICS`, or any other dimension of the table.

    Raises:
        ValueError: as `pusa.score.arithmetic.check_complete`.
    """
    check_complete(videos, measures)
    return _bootstrap([prompt_sums(videos, measures)], measures)


def difference_intervals(
    before: pd.DataFrame,
    after: pd.DataFrame,
    measures: Sequence[str] = METRICS,
) -> dict[str, Interval]:
    """``after - before``, paired: both sides are resampled with the same prompts.

    Args:
        before: the score table of a setting.
        after: that of another.
        measures: as of `score_intervals`.

    Raises:
        ValueError: if the two were scored differently or do not hold the same prompts and
            samples; and as `pusa.score.arithmetic.check_complete`.
    """
    scorers = set(before["scorer"]) | set(after["scorer"])
    if len(scorers) > 1:
        raise ValueError(f"scores of {' and '.join(sorted(scorers))} cannot be compared")
    pairs = [set(zip(v["kind"], v["index"], v["sample"], strict=True)) for v in (before, after)]
    alone = sorted(pairs[0] ^ pairs[1])
    if alone:
        kind, index, sample = alone[0]
        raise ValueError(
            "settings that are compared must have the same videos; "
            f"{len(alone)} are on one side only, such as {kind} prompt {index}, sample {sample} "
            f"({'before' if alone[0] in pairs[0] else 'after'})"
        )
    for videos in (before, after):
        check_complete(videos, measures)
    return _bootstrap([prompt_sums(videos, measures) for videos in (before, after)], measures)


def _bootstrap(
    sums: list[tuple[pd.DataFrame, pd.DataFrame]], measures: Sequence[str]
) -> dict[str, Interval]:
    """Of the score of one setting, or of the second's less the first's."""
    prompts = sums[0][0].index.union(sums[-1][0].index)
    sums = [[table.reindex(prompts, fill_value=0.0) for table in pair] for pair in sums]
    kinds = pd.Series(prompts.get_level_values("kind"), index=prompts)
    alone = (kinds.map(kinds.value_counts()) == 1).to_numpy()

    def scores(counts: np.ndarray) -> np.ndarray:
        """``(measures, resamples)`` from how often each prompt is in, ``(resamples, prompts)``."""
        sides = []
        for pair in sums:
            value, weight = (
                dict(zip(table.columns, (counts @ table.to_numpy()).T, strict=True))
                for table in pair
            )
            found = scores_of_sums(value, weight, measures)
            sides.append(np.stack([found[measure] for measure in measures]))
        return np.round(sides[0] if len(sides) == 1 else sides[1] - sides[0], DECIMALS)

    def resampled(*places: np.ndarray, axis: int) -> np.ndarray:
        """``(measures, resamples)`` from places of prompts, each ``(resamples, of a kind)``."""
        chosen = np.hstack(places)
        cells = chosen + np.arange(len(chosen))[:, None] * len(prompts)
        counts = np.bincount(cells.ravel(), minlength=len(chosen) * len(prompts))
        return scores(counts.reshape(len(chosen), len(prompts)) + alone)

    values = scores(np.ones((1, len(prompts))))[:, 0]
    bounds = np.full((2, len(measures)), np.nan)
    groups = [np.flatnonzero(kinds == kind) for kind in kinds[~alone].unique()]
    if groups:
        bounds[:] = bootstrap(
            groups,
            resampled,
            n_resamples=RESAMPLES,
            batch=BATCH,
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
    unknown = {name for _, weight in sums for name in weight.columns[(weight[alone] > 0).any()]}
    for place, measure in enumerate(measures):
        if not unknown.isdisjoint(needed_dimensions([measure])):
            bounds[:, place] = np.nan
    return {
        measure: Interval(*map(float, numbers))
        for measure, *numbers in zip(measures, values, *bounds, strict=True)
    }
