"""95 % bootstrap intervals of scores, and of differences between two settings.

Prompts are resampled, each with all its samples: what is wanted is how far a score would move
with other prompts of the same sort. A suite fixes how many prompts it has of each kind, so
each kind is resampled by itself (a stratified percentile bootstrap, `scipy.stats.bootstrap`).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import DegenerateDataWarning, bootstrap

from pusa.score.arithmetic import (
    METRICS,
    available_measures,
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
    such prompts differ cannot be known. All three are NaN for a measure that is missing.
    """

    value: float
    low: float
    high: float


def judge(low: float, high: float, relation: str, margin: float = 0.0) -> str:
    """Whether a number that lies between ``low`` and ``high`` is above or below ``margin``.

    Args:
        relation: what is claimed, ``>`` or ``<``.

    Returns:
        `HOLDS` or `FAILS` where the whole interval says so, else `UNDECIDED`.
    """
    above, below = low > margin, high < margin
    if relation == "<":
        above, below = below, above
    return HOLDS if above else FAILS if below else UNDECIDED


def score_intervals(
    videos: pd.DataFrame, measures: Sequence[str] = METRICS, *, allow_partial: bool = False
) -> dict[str, Interval]:
    """Scores of one setting with their intervals.

    Args:
        videos: the score table of the setting.
        measures: of `METRICS`, or any other dimension of the table.
        allow_partial: as `pusa.score.arithmetic.setting_scores`.

    Raises:
        ValueError: as `pusa.score.arithmetic.dimension_scores`.
    """
    available = available_measures(videos, measures, allow_partial=allow_partial)
    return _intervals([videos], measures, available)


def difference_intervals(
    before: pd.DataFrame,
    after: pd.DataFrame,
    measures: Sequence[str] = METRICS,
    *,
    allow_partial: bool = False,
) -> dict[str, Interval]:
    """``after - before``, paired: both sides are resampled with the same prompts.

    Args:
        before: the score table of a setting.
        after: that of another.
        measures: as of `score_intervals`.
        allow_partial: compare the videos and dimensions that both have; what one of them lacks
            is NaN, as in `pusa.score.arithmetic.setting_scores`.

    Raises:
        ValueError: if the two were scored differently or, unless ``allow_partial``, do not hold
            the same prompts and samples; and as `pusa.score.arithmetic.dimension_scores`.
    """
    scorers = set(before["scorer"]) | set(after["scorer"])
    if len(scorers) > 1:
        raise ValueError(f"scores of {' and '.join(sorted(scorers))} cannot be compared")
    pairs = [set(zip(v["kind"], v["index"], v["sample"], strict=True)) for v in (before, after)]
    alone = sorted(pairs[0] ^ pairs[1])
    if alone and not allow_partial:
        kind, index, sample = alone[0]
        raise ValueError(
            "settings that are compared must have the same videos; "
            f"{len(alone)} are on one side only, such as {kind} prompt {index}, sample {sample} "
            f"({'before' if alone[0] in pairs[0] else 'after'})"
        )
    keys = ["index", "sample", "dimension"]
    scored = [videos.loc[videos["value"].notna(), keys] for videos in (before, after)]
    both = scored[0].merge(scored[1])
    paired = [videos.merge(both) for videos in (before, after)]
    available = measures
    for videos in (before, after, paired[0]):
        available = available_measures(videos, available, allow_partial=allow_partial)
    return _intervals(paired, measures, available)


def _intervals(
    settings: list[pd.DataFrame], measures: Sequence[str], available: Sequence[str]
) -> dict[str, Interval]:
    """Of the score of one setting, or of the second's less the first's; NaN if not available."""
    sums = [prompt_sums(videos, available) for videos in settings]
    found = _bootstrap(sums, available) if available else {}
    missing = Interval(np.nan, np.nan, np.nan)
    return {measure: found.get(measure, missing) for measure in measures}


def _bootstrap(
    sums: list[tuple[pd.DataFrame, pd.DataFrame]], measures: Sequence[str]
) -> dict[str, Interval]:
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
            # A resample of a partial table may have no video of a dimension.
            with np.errstate(invalid="ignore"):
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
        with warnings.catch_warnings():  # of NaN, which such a resample gives
            warnings.simplefilter("ignore", DegenerateDataWarning)
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
