"""What one thing at a time does to our scores: the effects of ``config/claims.yaml``, measured.

A comparison pairs the videos of two settings by prompt and sample, so that only the weights
or the sampling differ, and takes the difference of their scores. Its 95 % interval comes from
`pusa.score.intervals`; with several training seeds the spread over seeds is given beside it.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from pusa.experiments import AS_THEY_ARE, main_setting
from pusa.report.claims import Claims
from pusa.report.page import score_cell, write_page
from pusa.report.study import NOT_VBENCH, Study, restrict
from pusa.score.arithmetic import BY_REFERENCE, needed_dimensions, setting_scores

#: What models are compared by beside what no model makes.
SHOWN = ("total", "i2v_subject", "i2v_background", "dynamic_degree", *BY_REFERENCE)


def measure_effects(claims: Claims, study: Study) -> pd.DataFrame:
    """Measure every comparison of the effects of which the study has the rows and the measure.

    Args:
        claims: from `pusa.report.claims.read_claims`.
        study: from `pusa.report.study.read_study`; several training seeds of one setting are
            averaged.

    Returns:
        One row per comparison: ``effect, before, after, measure, value_before, value_after,
        difference, low, high, seed_sd, seeds, expected, verdict, scorer``, where ``expected`` says
        what ``after`` less ``before`` has to be for the effect to hold. Measures are in per cent,
        except ``reference_psnr`` in dB.

    Raises:
        ValueError: if the study has no row of any effect, if two settings that are compared have
            other videos, or if settings differ in their scorer.
    """
    scorer, rows = study.scorer, []
    for effect in claims.effects:
        for measure, c in effect.comparisons:
            sides = [claims.find(name, study.experiments) for name in (c.right, c.left)]
            pairs = [] if None in sides else study.pairs(*sides)
            needed = set(needed_dimensions([measure]))
            if not pairs or any(needed - set(v["dimension"]) for pair in pairs for v in pair):
                continue  # such as for want of reference clips
            before, after = (
                [setting_scores(videos, [measure])[measure] for videos in side]
                for side in zip(*pairs, strict=True)
            )
            found = study.differences(*sides, [measure])[measure]
            spread = np.std(np.subtract(after, before), ddof=1) if len(pairs) > 1 else np.nan
            rows.append(
                {
                    "effect": effect.effect,
                    "before": sides[0]["setting"].label,
                    "after": sides[1]["setting"].label,
                    "measure": measure,
                    "value_before": np.mean(before),
                    "value_after": np.mean(after),
                    "difference": found.value,
                    "low": found.low,
                    "high": found.high,
                    "seed_sd": spread,
                    "seeds": len(pairs),
                    "expected": c.expected,
                    "verdict": c.judge(found.low, found.high),
                    "scorer": scorer,
                }
            )
    if not rows:
        raise ValueError(
            "found no scores of two rows of the experiments sheet that an effect compares, "
            "expected such as of the main setting and of the base"
        )
    return pd.DataFrame(rows)


def compare_models(study: Study) -> pd.DataFrame:
    """What each model scores, the trained ones at their main setting, beside what no model makes.

    Returns:
        A row per image-to-video model, and its scores on the columns `SHOWN` that all have, mean
        over training seeds; on the prompts that all have.
    """
    main = main_setting(study.experiments)
    rows = {}
    for setting, videos in study.scores.items():
        alike = replace(setting, model=main.model, seed=main.seed) == main
        if setting.task == "i2v" and (setting.model in AS_THEY_ARE or alike):
            rows.setdefault(setting.label, []).append(restrict(videos, study.subset))
    measured = [set(videos["dimension"]) for some in rows.values() for videos in some]
    measures = [m for m in SHOWN if all(set(needed_dimensions([m])) <= d for d in measured)]
    scores = {
        label: pd.DataFrame([setting_scores(videos, measures) for videos in some]).mean()
        for label, some in rows.items()
    }
    return pd.DataFrame(scores).T.rename_axis("model").reset_index()


def write_effects(
    effects: pd.DataFrame, models: pd.DataFrame, losses: pd.DataFrame, out: Path, scale: str
) -> None:
    """Write effects, scores and validation losses to ``out`` with the suffixes .csv, .md and .html.

    Args:
        effects: from `measure_effects`.
        models: from `compare_models`.
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
        "prompts; an effect holds if the whole interval is as expected, does not if none of it is, "
        "and is not decided otherwise. Margins other than 0 are ours, not the paper's."
    )
    shown = effects.copy()
    shown["difference"] = [
        score_cell(r.difference, r.low, r.high, sign="+") for r in effects.itertuples()
    ]
    columns = ["effect", "before", "after", "measure", "value_before", "value_after", "difference"]
    if (effects["seeds"] > 1).any():
        columns += ["seed_sd", "seeds"]
    shown = shown[[*columns, "expected", "verdict"]].rename(columns=lambda c: c.replace("_", " "))
    shown = shown.map(lambda v: score_cell(v) if isinstance(v, float) else v)
    loss_intro = (
        "Mean squared velocity error on held-out clips at fixed noise: with a timestep per frame "
        "(asynchronous), with a clean first frame (image_to_video), and with one timestep "
        "(synchronous, what the base was trained for)."
    )
    shown_losses = losses.map(lambda v: f"{v:.4f}" if isinstance(v, float) else v)
    bounds_intro = (
        "The models at the main setting, and what no model makes: the image standing still, the "
        "true continuation, bare and through the VAE, and that of another prompt, as far as the "
        "sheet has them."
    )
    shown_models = models.rename(columns=lambda c: c.replace("_", " "))
    shown_models = shown_models.map(lambda v: f"{v:.2f}" if isinstance(v, float) else v)
    sections = [("", intro, shown), ("Beside what no model makes", bounds_intro, shown_models)]
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
