"""How large a study has to be for its intervals to decide, by simulating it from a smaller one.

The prompts that were seen, as pairs of scores, stand for all prompts of their kind: studies of any
size are drawn from them with replacement, shifted to the difference that is taken to be true, and
the interval of `pusa.score.intervals` is made of each: a percentile bootstrap within kinds.

As prompts are resampled within their kinds and all of a kind have the same dimensions and samples,
a score is linear in how often each prompt is in. So a study needs no more of a prompt than how far
it moves each difference.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from pusa.score.arithmetic import check_complete, prompt_sums, scores_of_sums

#: Share of the studies that are to be decided, and as the true difference says.
POWER = 0.8
STUDIES = 200  # of one size; the share has a standard error of 3 %
#: In an interval; a tenth of those of a table, whose bounds they miss by a tenth of the error.
RESAMPLES = 1000
PRECISION = 1.05  # of a size that is found: the simulation says no more
VIDEO = ["kind", "index", "sample"]


def pair_videos(
    before: pd.DataFrame, after: pd.DataFrame, measures: Sequence[str]
) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Sums of `pusa.score.arithmetic.prompt_sums` of each video that both sides have.

    Args:
        before: the score table of a setting.
        after: that of another.
        measures: of `pusa.score.arithmetic.METRICS`, or any other dimension of the tables.

    Returns:
        For each side two tables, ``weight * value`` and ``weight``, with the index `VIDEO`.

    Raises:
        ValueError: if no video is on both sides; and as `check_complete`.
    """
    shared = before[VIDEO].drop_duplicates().merge(after[VIDEO].drop_duplicates())
    if shared.empty:
        raise ValueError("settings that are compared have no prompt and sample in common")
    samples = shared["sample"].max() + 1
    sides = []
    for videos in (before, after):
        videos = videos.merge(shared)
        check_complete(videos, measures)
        sums = prompt_sums(
            videos.assign(index=videos["index"] * samples + videos["sample"]), measures
        )
        for table in sums:
            kinds, numbers = zip(*table.index, strict=True)
            index, sample = np.divmod(np.array(numbers), samples)
            table.index = pd.MultiIndex.from_arrays([kinds, index, sample], names=VIDEO)
        sides.append(sums)
    return sides


def deviations(
    sides: list[tuple[pd.DataFrame, pd.DataFrame]],
    measures: Sequence[str],
    counts: Mapping[str, int],
) -> pd.DataFrame:
    """How far each video would move the differences if all of its kind were like it.

    Args:
        sides: of `pair_videos`.
        measures: the differences, in this order.
        counts: prompts of each kind in the study, which weigh the kinds.

    Returns:
        In per cent (PSNR in dB), a row for each video and a column for each measure; their mean
        over the videos of a kind is 0.
    """
    scores = []
    for value, weight in sides:
        moved = []
        for table in (value, weight):
            kinds = table.index.get_level_values("kind")
            means = table.groupby(level="kind").mean()
            numbers = pd.Series(counts).reindex(means.index)
            rest = means.mul(numbers, axis=0).sum()  # the whole study, at its kinds' means
            apart = (table - means.loc[kinds].to_numpy()).mul(numbers.loc[kinds].to_numpy(), axis=0)
            moved.append(rest + apart)
        scores.append(pd.DataFrame(scores_of_sums(*moved, measures)))
    apart = scores[1] - scores[0]
    return apart - apart.groupby(level="kind").transform("mean")


def simulate_intervals(
    apart: pd.DataFrame, counts: Mapping[str, int], samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % intervals of studies in which nothing differs.

    A pilot of few prompts varies less than what it is of: its deviations are widened to the
    unbiased variance. Where it has several samples of a prompt, what differs between them is told
    apart from what differs between prompts, and divided by the study's samples; with one sample
    further ones count for nothing.

    Args:
        apart: of `deviations`, perhaps of several pairs side by side, for the same ``counts``.
        counts: prompts of each kind in a study.
        samples: of each prompt.

    Returns:
        Lower and upper ends, each ``(STUDIES, columns of apart)``.

    Raises:
        ValueError: if there is a single prompt of a kind.
    """
    rng = np.random.default_rng(0)
    resampled = np.zeros((RESAMPLES, STUDIES, apart.shape[1]), dtype=np.float32)
    for kind, videos in apart.groupby(level="kind"):
        seen = _prompts(videos, kind, samples)
        n = counts[kind]
        studies = seen[rng.integers(len(seen), size=(STUDIES, n))]
        places = rng.integers(n, size=(RESAMPLES, n)) + n * np.arange(RESAMPLES)[:, None]
        often = np.bincount(places.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n)
        resampled += np.tensordot((often / n).astype(np.float32), studies, axes=(1, 1))
    return tuple(np.percentile(resampled, [2.5, 97.5], axis=0))


def _prompts(videos: pd.DataFrame, kind: str, samples: int) -> np.ndarray:
    """Deviations of a kind's prompts in a study of so many samples, ``(prompts, columns)``."""
    by_prompt = videos.groupby(level="index")
    means = by_prompt.mean()
    count = len(means)
    if count < 2:
        raise ValueError(
            f"scores of a single {kind} prompt do not say how much such prompts differ; expected "
            "two or more"
        )
    before = videos.groupby(level=["kind", "index"]).size().min()
    within = by_prompt.var().mean() if before > 1 else 0.0 * means.mean()
    seen = means.var()
    wanted = np.maximum(seen + within * (1 / samples - 1 / before), within / samples)
    widened = np.sqrt(wanted / seen.where(seen > 0, np.inf) * count / (count - 1))
    return (means * widened).to_numpy(dtype=np.float32)


def find_smallest(
    decided: Callable[[float], float], least: float, most: float
) -> tuple[float | None, float]:
    """The smallest size at which `POWER` of the studies are decided, up to `PRECISION`.

    Args:
        decided: the share of the studies of a size that are; it may only rise with the size.
        least: the smallest size that is of interest.
        most: the largest.

    Returns:
        The size, None if there is none; and the share at that size, or at the largest.
    """
    size, share = least, decided(least)
    below = None
    while share < POWER:
        if size >= most:
            return None, share
        below, size = size, min(2 * size, most)
        share = decided(size)
    while below is not None and size > PRECISION * below:
        middle = (below * size) ** 0.5
        found = decided(middle)
        if found >= POWER:
            size, share = middle, found
        else:
            below = middle
    return size, share
