"""The paper's effects as comparisons between settings, each with its interval and verdict.

A comparison pairs the videos of two settings by prompt and sample, so that only the weights
or the sampling differ, and takes the mean difference. Its 95 % interval comes from a
bootstrap over prompts; with several training seeds the spread over seeds is given beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from pusa.aggregate import NAMES, dimension_scores, restrict, total_scores
from pusa.experiments import Setting, base_setting
from pusa.page import write_page

RESAMPLES = 2000


@dataclass(frozen=True)
class Comparison:
    """A claim: ``measure`` rises, falls or holds from ``before`` to ``after``."""

    effect: str
    before: Setting
    after: Setting
    measure: str
    expected: str = "rises"  # "rises", "falls" or "holds"
    tolerance: float = 0.0  # for "holds": the loss that still counts as none


def comparisons(settings: list[Setting], main: Setting) -> list[Comparison]:
    """The paper's effects, for those settings that exist (seeds aside)."""
    found = {replace(s, seed=main.seed) if s.seed is not None else s for s in settings}
    result: list[Comparison] = []

    def add(effect, before, after, measures, expected="rises", tolerance=0.0):
        if before in found and after in found and before != after:
            result.extend(
                Comparison(effect, before, after, m, expected, tolerance) for m in measures
            )

    base = base_setting(main)
    adherence = ("i2v_subject", "i2v_background", "reference_psnr")
    add("follows the image better than base + VTA", base, main, adherence)
    add("moves as prompted, better than base + VTA", base, main, ("motion_match",))
    add("scores higher than base + VTA", base, main, ("total",))

    controls = [s for s in found if s == replace(main, model=s.model) and s != main]
    for control in controls:
        add(
            f"vectorized timesteps make the difference ({control.model} has one per clip)",
            control,
            main,
            (*adherence, "motion_match", "total"),
        )
    earlier = sorted(
        (s for s in found if s == replace(main, iteration=s.iteration)), key=lambda s: s.iteration
    )
    before = [s for s in earlier if s.iteration < main.iteration]
    after = [s for s in earlier if s.iteration > main.iteration]
    if before:
        add("more iterations help", before[0], main, ("reference_psnr", "total"))
    if after:
        add("then a plateau", main, after[-1], ("total",), "holds", 1.0)
    if main.rank is not None:
        ranked = (s for s in found if (s.model, s.alpha) == (main.model, main.alpha))
        for low in sorted((s for s in ranked if s.rank < main.rank), key=lambda s: s.rank):
            high = replace(low, rank=main.rank)
            add("a higher rank helps", low, high, ("reference_psnr", "total"))
    steps = {s.steps: s for s in found if s == replace(main, steps=s.steps)}
    fewer = sorted(n for n in steps if n < main.steps)
    more = sorted(n for n in steps if n > main.steps)
    for n in fewer:
        add(f"{main.steps} steps beat {n}", steps[n], main, ("total",))
    for n in more:
        add(f"{n} steps add little to {main.steps}", main, steps[n], ("total",), "holds", 1.0)
    alphas = {s.alpha: s for s in found if s == replace(main, alpha=s.alpha)}
    for alpha in sorted(alphas):
        if alpha != main.alpha:
            add(f"alpha {main.alpha:g} beats {alpha:g}", alphas[alpha], main, ("total",))
    if alphas:
        low, high = alphas[min(alphas)], alphas[max(alphas)]
        add("a higher alpha is more consistent", low, high, ("subject_consistency",))
        add("a higher alpha moves less", low, high, ("dynamic_degree",), "falls")
    t2v = (replace(base, task="t2v"), replace(main, task="t2v"))
    add("text-to-video is kept: motion", *t2v, ("motion_match",), "holds", 10.0)
    add("text-to-video is kept: quality", *t2v, ("imaging_quality",), "holds", 2.0)
    return result


def measure_effects(
    scores: dict[str, pd.DataFrame], settings: dict[str, Setting], main: Setting
) -> pd.DataFrame:
    """Evaluate every comparison.

    Args:
        scores: per-video scores of each setting, by its name.
        settings: the settings by name; several training seeds of one setting are averaged.

    Returns:
        One row per comparison: ``effect, before, after, measure, value_before, value_after,
        difference, low, high, seed_sd, seeds, verdict``. Measures are in per cent, except
        ``reference_psnr`` in dB.
    """
    by_setting: dict[Setting, list[pd.DataFrame]] = {}
    for name, setting in settings.items():
        seedless = setting if setting.seed is None else replace(setting, seed=main.seed)
        by_setting.setdefault(seedless, []).append(scores[name])
    rows = []
    for c in comparisons(list(settings.values()), main):
        before, after = by_setting[c.before], by_setting[c.after]
        values = _paired(before, after, c.measure)
        if values is None:  # the suite has no reference clips
            continue
        first, second, low, high, per_seed = values
        rows.append(
            {
                "effect": c.effect,
                "before": c.before.label,
                "after": c.after.label,
                "measure": c.measure,
                "value_before": first,
                "value_after": second,
                "difference": second - first,
                "low": low,
                "high": high,
                "seed_sd": float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else np.nan,
                "seeds": len(per_seed),
                "verdict": _verdict(low, high, c),
            }
        )
    return pd.DataFrame(rows)


def _paired(before: list[pd.DataFrame], after: list[pd.DataFrame], measure: str):
    """Means, bootstrap interval of the difference, and the difference of every seed."""
    measures = NAMES if measure == "total" else (measure,)
    # Rows are prompts, columns measures; a prompt that a measure does not apply to is NaN.
    first = [_per_prompt(s, measures) for s in before]
    second = [_per_prompt(s, measures) for s in after]
    if any(frame.isna().all().any() for frame in first + second):
        return None
    if any(not frame.index.equals(first[0].index) for frame in first + second):
        raise ValueError("settings that are compared must have videos of the same prompts")
    statistic = _total if measure == "total" else _mean
    pooled_first, pooled_second = (sum(frames) / len(frames) for frames in (first, second))
    kinds = before[0].drop_duplicates("index").set_index("index")["kind"].loc[pooled_first.index]

    def difference(a: np.ndarray, b: np.ndarray) -> float:
        return statistic(b) - statistic(a)

    low, high = _interval(pooled_first.to_numpy(), pooled_second.to_numpy(), kinds, difference)
    seeds = max(len(first), len(second))
    per_seed = [
        difference(first[i % len(first)].to_numpy(), second[i % len(second)].to_numpy())
        for i in range(seeds)
    ]
    means = [statistic(pooled.to_numpy()) for pooled in (pooled_first, pooled_second)]
    return *means, low, high, per_seed


def _per_prompt(scores: pd.DataFrame, measures: tuple[str, ...]) -> pd.DataFrame:
    table = scores.pivot_table(index="index", columns="dimension", values="value", aggfunc="mean")
    table = table.reindex(columns=list(measures))
    # PSNR is in dB already, all other measures are shares.
    return table * [1 if name == "reference_psnr" else 100 for name in measures]


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values))


def _total(values: np.ndarray) -> float:
    return total_scores(dict(zip(NAMES, np.nanmean(values, axis=0), strict=True)))["total"]


def _interval(
    first: np.ndarray, second: np.ndarray, kinds: pd.Series, difference: Callable
) -> tuple[float, float]:
    """95 % percentile bootstrap over prompts, within each kind, so that no dimension empties."""
    groups = [np.flatnonzero(kinds == kind) for kind in sorted(set(kinds))]
    # Kinds without any value of this measure would only widen nothing.
    groups = [g for g in groups if np.isfinite(first[g]).any()]

    def statistic(*resampled: np.ndarray) -> float:
        rows = np.concatenate(resampled).astype(int)
        return difference(first[rows], second[rows])

    result = bootstrap(
        groups,
        statistic,
        n_resamples=RESAMPLES,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _verdict(low: float, high: float, comparison: Comparison) -> str:
    if comparison.expected == "falls":
        low, high = -high, -low
    if comparison.expected == "holds":
        low, high = low + comparison.tolerance, high + comparison.tolerance
    if low > 0:
        return "holds"
    return "does not hold" if high < 0 else "not decided"


def write_effects(effects: pd.DataFrame, losses: pd.DataFrame, out: Path, scale: str) -> None:
    """Write effects and validation losses to ``out`` with the suffixes .csv, .md and .html.

    Args:
        effects: from `measure_effects`.
        losses: from `validation_losses`.
        scale: a sentence on how large the run was.
    """
    effects.to_csv(out.with_suffix(".csv"), index=False, float_format="%.4f")
    intro = (
        f"{scale} Scores are weight-free stand-ins, not VBench numbers; they are in per cent, "
        "reference_psnr is in dB against the true continuation. Differences are paired by prompt "
        "and sample, with a 95 % bootstrap interval over prompts. Not decided: the interval "
        "includes the boundary between holding and not."
    )
    shown = effects.copy()
    shown["difference"] = [
        f"{r.difference:+.2f} [{r.low:+.2f}, {r.high:+.2f}]" for r in effects.itertuples()
    ]
    columns = ["effect", "before", "after", "measure", "value_before", "value_after", "difference"]
    if (effects["seeds"] > 1).any():
        columns += ["seed_sd", "seeds"]
    shown = shown[[*columns, "verdict"]].rename(columns=lambda c: c.replace("_", " "))
    shown = shown.map(lambda v: f"{v:.2f}" if isinstance(v, float) else v)
    loss_intro = (
        "Mean squared velocity error on held-out clips at fixed noise: with a timestep per frame "
        "(asynchronous), with a clean first frame (image_to_video), and with one timestep "
        "(synchronous, what the base was trained for)."
    )
    shown_losses = losses.map(lambda v: f"{v:.4f}" if isinstance(v, float) else v)
    sections = [("", intro, shown)]
    if not losses.empty:
        sections.append(("Validation loss", loss_intro, shown_losses))
    write_page("The paper's effects, measured", sections, out)


def validation_losses(files: list[Path]) -> pd.DataFrame:
    """Validation losses of all runs, averaged over seeds: one row per model, rank, iteration."""
    tables = []
    for file in files:
        model, method, _ = Path(file).parent.name.rsplit("-", 2)  # rank16 or full
        rank = method if method == "full" else int(method.removeprefix("rank"))
        tables.append(pd.read_csv(file).assign(model=model, rank=rank))
    if not tables:  # a released LoRA was trained elsewhere
        return pd.DataFrame()
    table = pd.concat(tables).pivot_table(
        index=["model", "rank", "iteration"], columns="loss", values="value"
    )
    return table.reset_index().rename_axis(columns=None)


def read_scores(
    files: dict[str, Path], counts: dict[str, int] | None = None
) -> dict[str, pd.DataFrame]:
    """Read each setting's score file, by setting name.

    Args:
        counts: the subset of prompts to keep, so that settings sampled on all prompts compare
            with those sampled on it; all if None.

    Raises:
        ValueError: if a file lacks a dimension or holds a value that is not a number.
    """
    scores = {}
    for name, file in files.items():
        scores[name] = restrict(pd.read_csv(file), counts)
        try:
            dimension_scores(scores[name])
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    return scores
