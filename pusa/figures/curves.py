"""Curves: training and validation losses, and total scores beside the paper's."""

from pathlib import Path

import numpy as np
import pandas as pd

from pusa.experiments import BOUNDS, main_setting, published_key
from pusa.figures.style import GREY, VERMILLION, in_style, new_figure, save
from pusa.report.study import NOT_VBENCH, Study
from pusa.score.intervals import Interval, score_intervals

DASHES = (":", "--", "-.", (0, (1, 4)))  # of what no model makes
LOSSES = {
    "training": "training (mean of 20 iterations)",
    "asynchronous": "validation: a timestep per frame",
    "image_to_video": "validation: first frame clean",
    "synchronous": "validation: one timestep per clip",
}


@in_style
def plot_losses(runs: list[Path], out: Path) -> None:
    """Training loss, smoothed, and the three validation losses of every run.

    Args:
        runs: folders of training runs, with ``training.csv`` and ``validation.csv``.
        out: the PNG; a PDF is written beside it.
    """
    figure = new_figure(4.6, "Training and validation losses: mean squared error of the velocity")
    axes = figure.subplots(2, 2).ravel()
    for run in runs:
        training = pd.read_csv(run / "training.csv")
        smooth = training["loss"].rolling(20, min_periods=1).mean()
        axes[0].plot(training["iteration"], smooth, label=run.name)
        validation = pd.read_csv(run / "validation.csv")
        for axis, name in zip(axes[1:], list(LOSSES)[1:], strict=True):
            part = validation[validation["loss"] == name]
            axis.plot(part["iteration"], part["value"], marker="o", label=run.name)
    for axis, title in zip(axes, LOSSES.values(), strict=True):
        axis.set(title=title, xlabel="iteration", ylabel="loss")
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    save(figure, out)


@in_style
def plot_scores(study: Study, published: pd.DataFrame, out: Path) -> None:
    """Total score, with its 95 % interval, against alpha, rank, iterations and steps.

    The paper's curve is beside ours; on a scale of its own where ours are not VBench's scores. What
    no model makes is a line across. A panel that the sheet has nothing for is left empty.

    Args:
        study: from `pusa.report.study.read_study`.
        published: the published Table 2, from `pusa.report.tables.read_published`.
        out: the PNG; a PDF is written beside it.

    Raises:
        ValueError: if settings differ in their scorer, or none is of Table 2.
    """
    main = main_setting(study.experiments)
    comparable = study.scorer == "vbench"
    scored = study.experiments[study.experiments["setting"].isin(study.scores)]
    ours = scored[(scored["table"] == "2") & ~scored["model"].isin(BOUNDS)]
    if ours.empty:
        raise ValueError("scores are of no rows of Table 2, expected some to plot")
    totals = _totals(study, ours)
    bounds = scored[scored["model"].isin(BOUNDS)].drop_duplicates("model", keep="last")
    bound_totals = {
        BOUNDS[model]: total.value
        for model, total in zip(bounds["model"], _totals(study, bounds), strict=True)
    }
    ours = ours.assign(
        total=[t.value for t in totals],
        below=[t.value - t.low for t in totals],
        above=[t.high - t.value for t in totals],
    )
    paper = published.assign(published=published_key(published))
    both = ours[["group", "published", "setting", "total", "below", "above"]].merge(
        paper, on=["group", "published"], how="left", suffixes=("", "_paper")
    )
    for field in ("rank", "iteration", "alpha", "steps"):
        both[field] = [getattr(s, field) for s in both["setting"]]

    at_alpha = both["alpha"].isna() if main.alpha is None else both["alpha"] == main.alpha
    at_main_weights = (both["rank"] == main.rank) & (both["iteration"] == main.iteration)
    panels = (
        ("alpha", "alpha (lora_scale)", both[(both["group"] == "iterations") & at_main_weights]),
        ("rank", f"LoRA rank, alpha {main.alpha}", both[(both["group"] == "lora") & at_alpha]),
        ("iteration", "iterations", both[(both["group"] == "iterations") & at_alpha]),
        ("steps", "sampling steps", both[both["group"] == "steps"]),
    )
    scale = "" if comparable else f" ({NOT_VBENCH}); the two scales differ"
    figure = new_figure(4.7, f"Total score{scale}")
    axes = figure.subplots(2, 2).ravel()
    for axis, (field, name, part) in zip(axes, panels, strict=True):
        part = part.dropna(subset=[field]).sort_values(field)
        positions = np.arange(len(part))
        ends = part[["below", "above"]].to_numpy(float).T
        ours_line = axis.errorbar(
            positions, part["total"], ends, marker="o", label="here, 95 % interval"
        )
        lines = [
            axis.axhline(total, ls=style, lw=0.8, color=GREY, label=bound)
            for (bound, total), style in zip(bound_totals.items(), DASHES, strict=False)
        ]
        axis.set(xlabel=name, ylabel="total" if comparable else "total, here")
        axis.set_xticks(positions, [f"{v:g}" for v in part[field]])
        side = axis if comparable else axis.twinx()
        (paper_line,) = side.plot(
            positions, part["total_paper"], marker="s", ls="--", color=VERMILLION, label="paper"
        )
        if not comparable:
            side.spines["right"].set_visible(True)
            side.set_ylabel("total, paper")
        for shown in {axis, side}:
            shown.set_visible(not part.empty)
    figure.legend(handles=[ours_line, paper_line, *lines], loc="outside lower center", ncols=3)
    save(figure, out)


def _totals(study: Study, rows: pd.DataFrame) -> list[Interval]:
    return [
        score_intervals(study.videos(row), ["total"])["total"] for row in rows.to_dict("records")
    ]
