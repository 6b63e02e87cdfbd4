"""Curves: training and validation losses, and total scores beside the paper's."""

from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd

from pusa.experiments import BOUNDS, main_setting, published_key
from pusa.figures.style import (
    GREY,
    MODEL_COLORS,
    MODEL_NAMES,
    in_style,
    model_colors,
    new_figure,
    save,
)
from pusa.report.study import NOT_VBENCH, Study
from pusa.score.intervals import Interval, score_intervals

DASHES = (":", "--", "-.", (0, (1, 4)))
PARTS = ("rank", "iteration", "alpha", "steps")  # of what a curve is drawn against
LOSSES = {
    "training": "training (mean of 20 iterations)",
    "asynchronous": "validation: a timestep per frame",
    "image_to_video": "validation: first frame clean",
    "synchronous": "validation: one timestep per clip",
}


@in_style
def plot_losses(runs: dict[Path, str], out: Path) -> None:
    """Training loss, smoothed, and the three validation losses of every run.

    Args:
        runs: models of the experiments sheet by the folders of their training runs, which have
            ``training.csv`` and ``validation.csv``.
        out: the PNG; a PDF is written beside it.
    """
    figure = new_figure(4.6, "Training and validation losses: mean squared error of the velocity")
    axes = figure.subplots(2, 2).ravel()
    names = {run: MODEL_NAMES.get(model, model) for run, model in runs.items()}
    colors = model_colors(names.values())
    dashes = {name: cycle(["-", *DASHES]) for name in colors}  # tell runs of a model apart
    for run, name in names.items():
        style = {"color": colors[name], "ls": next(dashes[name]), "label": run.name}
        training = pd.read_csv(run / "training.csv")
        smooth = training["loss"].rolling(20, min_periods=1).mean()
        axes[0].plot(training["iteration"], smooth, **style)
        validation = pd.read_csv(run / "validation.csv")
        for axis, loss in zip(axes[1:], list(LOSSES)[1:], strict=True):
            part = validation[validation["loss"] == loss]
            axis.plot(part["iteration"], part["value"], marker="o", **style)
    for axis, title in zip(axes, LOSSES.values(), strict=True):
        axis.set(title=title, xlabel="iteration", ylabel="loss")
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    save(figure, out)


@in_style
def plot_scores(study: Study, published: pd.DataFrame, out: Path) -> None:
    """Total score, with its 95 % interval, against alpha, rank, iterations and steps.

    The paper's curves are in the first row, ours of the same rows of the sheet, at the ranks and
    iterations that they have here, in the second; on one scale where ours are VBench's scores. What
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
        paper.rename(columns={name: f"{name}_paper" for name in ("total", *PARTS)}),
        on=["group", "published"],
        how="left",
    )
    for field in PARTS:
        both[field] = [getattr(s, field) for s in both["setting"]]

    at_alpha = both["alpha"].isna() if main.alpha is None else both["alpha"] == main.alpha
    at_main_weights = (both["rank"] == main.rank) & (both["iteration"] == main.iteration)
    alpha = "" if main.alpha is None else f", alpha {main.alpha}"
    panels = (
        ("alpha", "alpha (lora_scale)", both[(both["group"] == "iterations") & at_main_weights]),
        ("rank", f"LoRA rank{alpha}", both[(both["group"] == "lora") & at_alpha]),
        ("iteration", f"iterations{alpha}", both[(both["group"] == "iterations") & at_alpha]),
        ("steps", "sampling steps", both[both["group"] == "steps"]),
    )
    figure = new_figure(4.7, f"Total score{'' if comparable else f' ({NOT_VBENCH})'}")
    grid = figure.subplots(2, 4, sharey=True if comparable else "row")
    for (upper, lower), (field, name, part) in zip(grid.T, panels, strict=True):
        part = part.dropna(subset=[field]).sort_values(field)
        positions, style = np.arange(len(part)), {"marker": "o", "color": MODEL_COLORS["Pusa"]}
        upper.plot(positions, part["total_paper"], **style)
        ends = part[["below", "above"]].to_numpy(float).T
        lower.errorbar(positions, part["total"], ends, **style)
        lines = [
            lower.axhline(total, ls=dashes, lw=0.8, color=GREY, label=bound)
            for (bound, total), dashes in zip(bound_totals.items(), DASHES, strict=False)
        ]
        for axis, values in ((upper, part[f"{field}_paper"].astype(float)), (lower, part[field])):
            axis.set_xticks(positions, [f"{v:g}" for v in values])
            axis.set_visible(not part.empty)
        lower.set_xlabel(name)
    for line, name in zip(grid, ("the paper", "here, 95 % interval"), strict=True):
        first = next((axis for axis in line if axis.get_visible()), line[0])
        first.set_ylabel(f"total, {name}")
    if lines:
        figure.legend(handles=lines, loc="outside lower center", ncols=4)
    save(figure, out)


def _totals(study: Study, rows: pd.DataFrame) -> list[Interval]:
    return [
        score_intervals(study.videos(row), ["total"])["total"] for row in rows.to_dict("records")
    ]
