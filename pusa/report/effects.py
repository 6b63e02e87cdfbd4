"""The paper's effects as comparisons between settings, each with its interval and verdict.

A comparison pairs the videos of two settings by prompt and sample, so that only the weights
or the sampling differ, and takes the difference of their scores. Its 95 % interval comes from
`pusa.score.intervals`; with several training seeds the spread over seeds is given beside it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from pusa.experiments import Setting, base_setting, main_setting
from pusa.report.page import score_cell, write_page
from pusa.report.study import NOT_VBENCH, Study, restrict
from pusa.score.arithmetic import needed_dimensions, setting_scores
from pusa.score.intervals import difference_intervals, judge


@dataclass(frozen=True)
class Comparison:
    """A claim: ``after - before`` of ``measure`` is above, or below, ``margin``."""

    effect: str
    before: Setting
    after: Setting
    measure: str
    relation: str = ">"
    margin: float = 0.0  # negative for what is to hold: the loss that still counts as none


def comparisons(settings: list[Setting], main: Setting) -> list[Comparison]:
    """The paper's effects, for those settings that exist (seeds aside)."""
    found = {replace(s, seed=main.seed) if s.seed is not None else s for s in settings}
    result: list[Comparison] = []

    def add(effect, before, after, measures, relation=">", margin=0.0):
        if before in found and after in found and before != after:
            result.extend(Comparison(effect, before, after, m, relation, margin) for m in measures)

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
        add("then a plateau", main, after[-1], ("total",), margin=-1.0)
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
        add(f"{n} steps add little to {main.steps}", main, steps[n], ("total",), margin=-1.0)
    alphas = {s.alpha: s for s in found if s == replace(main, alpha=s.alpha)}
    for alpha in sorted(alphas):
        if alpha != main.alpha:
            add(f"alpha {main.alpha:g} beats {alpha:g}", alphas[alpha], main, ("total",))
    if alphas:
        low, high = alphas[min(alphas)], alphas[max(alphas)]
        add("a higher alpha is more consistent", low, high, ("subject_consistency",))
        add("a higher alpha moves less", low, high, ("dynamic_degree",), "<")
    t2v = (replace(base, task="t2v"), replace(main, task="t2v"))
    add("text-to-video is kept: motion", *t2v, ("motion_match",), margin=-10.0)
    add("text-to-video is kept: quality", *t2v, ("imaging_quality",), margin=-2.0)
    return result


def measure_effects(study: Study) -> pd.DataFrame:
    """Evaluate every comparison, on the study's subset of the prompts.

    Args:
        study: from `pusa.report.study.read_study`, with the scores of every setting; several
            training seeds of one setting are averaged.

    Returns:
        One row per comparison: ``effect, before, after, measure, value_before, value_after,
        difference, low, high, seed_sd, seeds, verdict, scorer``. Measures are in per cent,
        except ``reference_psnr`` in dB.

    Raises:
        ValueError: if two settings that are compared have other videos, or other scorers.
    """
    main = main_setting(study.experiments)
    by_setting: dict[Setting, list[pd.DataFrame]] = {}
    for setting, videos in study.scores.items():
        seedless = setting if setting.seed is None else replace(setting, seed=main.seed)
        by_setting.setdefault(seedless, []).append(restrict(videos, study.subset))
    rows = []
    for c in comparisons(list(study.scores), main):
        sides = by_setting[c.before], by_setting[c.after]
        if not all(_can_give(videos, c.measure) for side in sides for videos in side):
            continue  # the suite has no reference clips
        seeds = max(map(len, sides))
        # A setting without training has one table; it stands beside every seed of the other.
        before, after = ([side[i % len(side)] for i in range(seeds)] for side in sides)
        first, second = (
            [setting_scores(videos, [c.measure])[c.measure] for videos in side]
            for side in (before, after)
        )
        interval = difference_intervals(_pool(before), _pool(after), [c.measure])[c.measure]
        rows.append(
            {
                "effect": c.effect,
                "before": c.before.label,
                "after": c.after.label,
                "measure": c.measure,
                "value_before": np.mean(first),
                "value_after": np.mean(second),
                "difference": interval.value,
                "low": interval.low,
                "high": interval.high,
                "seed_sd": np.std(np.subtract(second, first), ddof=1) if seeds > 1 else np.nan,
                "seeds": seeds,
                "verdict": judge(interval.low, interval.high, c.relation, c.margin),
                "scorer": before[0]["scorer"].iloc[0],
            }
        )
    return pd.DataFrame(rows)


def _can_give(videos: pd.DataFrame, measure: str) -> bool:
    return set(needed_dimensions([measure])) <= set(videos["dimension"])


def _pool(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """The score tables of several training seeds as one, with as many samples more."""
    return pd.concat(
        [t.assign(sample=t["sample"] + i * (t["sample"].max() + 1)) for i, t in enumerate(tables)]
    )


def write_effects(effects: pd.DataFrame, losses: pd.DataFrame, out: Path, scale: str) -> None:
    """Write effects and validation losses to ``out`` with the suffixes .csv, .md and .html.

    Args:
        effects: from `measure_effects`.
        losses: from `validation_losses`.
        scale: a sentence on how large the run was.
    """
    effects.to_csv(out.with_suffix(".csv"), index=False, float_format="%.4f")
    title, what = "The paper's effects, measured", "Scores"
    if (effects["scorer"] == "weight_free").any():
        title += f" ({NOT_VBENCH})"
        what = "Scores are weight-free stand-ins, not VBench numbers; they"
    intro = (
        f"{scale} {what} are in per cent, reference_psnr is in dB against the true continuation. "
        "Differences are paired by prompt and sample, with a 95 % bootstrap interval over "
        "prompts. Not decided: the interval includes the boundary between holding and not."
    )
    shown = effects.copy()
    shown["difference"] = [
        score_cell(r.difference, r.low, r.high, sign="+") for r in effects.itertuples()
    ]
    columns = ["effect", "before", "after", "measure", "value_before", "value_after", "difference"]
    if (effects["seeds"] > 1).any():
        columns += ["seed_sd", "seeds"]
    shown = shown[[*columns, "verdict"]].rename(columns=lambda c: c.replace("_", " "))
    shown = shown.map(lambda v: score_cell(v) if isinstance(v, float) else v)
    loss_intro = (
        "Mean squared velocity error on held-out clips at fixed noise: with a timestep per frame "
        "(asynchronous), with a clean first frame (image_to_video), and with one timestep "
        "(synchronous, what the base was trained for)."
    )
    shown_losses = losses.map(lambda v: f"{v:.4f}" if isinstance(v, float) else v)
    sections = [("", intro, shown)]
    if not losses.empty:
        sections.append(("Validation loss", loss_intro, shown_losses))
    write_page(title, sections, out)


def validation_losses(study: Study, folder: Path) -> pd.DataFrame:
    """Validation losses of a study's trainings: a row per model, rank and iteration, over seeds.

    Args:
        folder: holds ``<run>/validation.csv`` of each training run.
    """
    trained = {setting.run: setting for setting in study.scores if setting.seed is not None}
    tables = [
        pd.read_csv(folder / run / "validation.csv").assign(
            model=trained[run].model, rank=trained[run].rank or "full"
        )
        for run in sorted(trained)
    ]
    if not tables:  # a released LoRA was trained elsewhere
        return pd.DataFrame()
    table = pd.concat(tables).pivot_table(
        index=["model", "rank", "iteration"], columns="loss", values="value"
    )
    return table.reset_index().rename_axis(columns=None)
