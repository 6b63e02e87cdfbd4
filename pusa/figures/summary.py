"""Figure 1: Pusa against Wan-I2V in quality, data, cost, steps and tasks."""

from pathlib import Path

import numpy as np
import pandas as pd

from pusa.experiments import Setting
from pusa.figures.style import GREY, MODEL_COLORS, SMALL_SIZE, in_style, new_figure, save
from pusa.report.costs import TRAINING
from pusa.report.study import NOT_VBENCH

BASELINE_TRAINING = "train_tiny_baseline"  # stage of the costs
MODELS = ("Wan-I2V", "Pusa")
#: What the paper shows each model do.
TASKS = {
    "image\nto video": ("Wan-I2V", "Pusa"),
    "text\nto video": ("Pusa",),
    "start and end\nframes": ("Pusa",),
    "completion,\ntransition": ("Pusa",),
    "extension": ("Pusa",),
}


#: By model: the length of its bar, and the number as it is printed.
Bars = dict[str, tuple[float, str]]
#: Figure 1 of the paper; its scores are in Table 1.
PUBLISHED: dict[str, Bars] = {
    "training clips": {"Wan-I2V": (10e6, "≥ 10M"), "Pusa": (4e3, "4K")},
    "training cost, $": {"Wan-I2V": (100e3, "≥ 100K"), "Pusa": (500, "500")},
    "sampling steps": {"Wan-I2V": (50, "50"), "Pusa": (10, "10")},
}


@in_style
def plot_figure1(
    table1: pd.DataFrame,
    costs: pd.DataFrame,
    out: Path,
    *,
    main: Setting,
    baseline: Setting | None,
    clips: int | None = None,
    note: str = "",
) -> None:
    """Figure 1: what the paper states in the first row, this run's own numbers in the second.

    A panel says so where this run has no number, for example for the training of a model that was
    downloaded.

    Args:
        table1: from `pusa.report.tables.make_table1`, with the published rows.
        costs: from `pusa.report.costs.measure_costs`.
        out: the PNG; a PDF is written beside it.
        main: the setting of Pusa in this run.
        baseline: that of Wan-I2V; None if the sheet has none.
        clips: clips that this run trained on; None if it trained nothing.
        note: stands below.

    Raises:
        ValueError: if the published rows of Table 1 lack Wan-I2V or Ours.
    """
    settings = {"Pusa": main} if baseline is None else {"Wan-I2V": baseline, "Pusa": main}
    published_scores = _scores(table1, "published", {"Wan-I2V": "Wan-I2V", "Ours": "Pusa"})
    if len(published_scores) < 2:
        raise ValueError("Table 1 has no published rows Wan-I2V and Ours")
    cost_title, cost = _training_costs(costs, main)
    weight_free = (table1.loc[table1["source"] == "here", "scorer"] == "weight_free").any()
    score_title = NOT_VBENCH.replace(", ", ",\n") if weight_free else "VBench-I2V total"
    here = {
        "training clips": {name: (clips, f"{clips:,}") for name in cost if clips is not None},
        cost_title: cost,
        "sampling steps": {name: (s.steps, str(s.steps)) for name, s in settings.items()},
    }
    rows = {
        "published": ("VBench-I2V total", published_scores, PUBLISHED),
        "this run": (
            score_title,
            _scores(table1, "here", {s.label: name for name, s in settings.items()}),
            here,
        ),
    }

    if BASELINE_TRAINING in set(costs["stage"]):
        note = f"Wan-I2V of this run is a model in its manner, trained from Pusa's base. {note}"
    figure = new_figure(
        5.0, "Figure 1: Performance and efficiency of Pusa beside Wan-I2V", note.strip()
    )
    upper, lower = figure.subfigures(2, 1, height_ratios=[3.6, 1])
    grid = upper.subplots(2, 4, width_ratios=[1.2, 1, 1, 1])
    for line, (source, (title, scores, numbers)) in zip(grid, rows.items(), strict=True):
        _draw_scores(line[0], scores)
        line[0].set_title(title)
        line[0].set_ylabel(source, size="large", weight="bold")
        for axis, (title, bars) in zip(line[1:], numbers.items(), strict=True):
            _draw_bars(axis, bars)
            axis.set_title(title)
    _draw_tasks(lower.subplots())
    save(figure, out)


def _scores(table1: pd.DataFrame, source: str, names: dict[str, str]) -> dict[str, list[float]]:
    """Total score and the ends of its interval, by name in the figure, of what was run.

    Args:
        names: that in the figure, by that in the table's column ``model``.
    """
    rows = table1[(table1["source"] == source) & table1["total"].notna()].set_index("model")
    return {
        name: rows.loc[model, ["total", "total_low", "total_high"]].astype(float).tolist()
        for model, name in names.items()
        if model in rows.index
    }


def _training_costs(costs: pd.DataFrame, main: Setting) -> tuple[str, Bars]:
    """What training the two took, as money, GPU-hours or minutes: the first that all have."""
    stages = {"Wan-I2V": BASELINE_TRAINING, "Pusa": f"{TRAINING}: {main.run}"}
    rows = costs.set_index("stage")
    took = rows.loc[[s for s in stages.values() if s in rows.index]]
    names = [name for name, stage in stages.items() if stage in rows.index]
    if took["gpu_hours"].all() and took["usd"].notna().all():
        title, values, form = "training cost, $", took["usd"], "{:,.0f}"
    elif took["gpu_hours"].all():
        title, values, form = "training, GPU-hours", took["gpu_hours"], "{:,.1f}"
    else:
        title, values, form = "training, minutes\nwithout a GPU", 60 * took["hours"], "{:,.1f}"
    return title, {n: (value, form.format(value)) for n, value in zip(names, values, strict=True)}


def _draw_scores(axis, scores: dict[str, list[float]]) -> None:
    """Points with their intervals; a scale of scores need not begin at 0, as one of bars does."""
    for place, name in enumerate(MODELS):
        if name not in scores:
            _say_absent(axis, place)
            continue
        value, low, high = scores[name]
        ends = None if np.isnan(low) else [[value - low], [high - value]]
        axis.errorbar(place, value, ends, marker="o", ms=6, capsize=3, color=MODEL_COLORS[name])
        axis.annotate(
            f"{value:.2f}", (place, value), (7, 0), textcoords="offset points",
            va="center", size=SMALL_SIZE,
        )  # fmt: skip
    axis.margins(y=0.35)
    axis.set(xticks=range(len(MODELS)), xticklabels=MODELS, xlim=(-0.5, len(MODELS) - 0.2))


def _draw_bars(axis, bars: Bars) -> None:
    for place, name in enumerate(MODELS):
        if name not in bars:
            _say_absent(axis, place)
            continue
        value, text = bars[name]
        axis.bar_label(
            axis.bar(place, value, color=MODEL_COLORS[name]), [text], size=SMALL_SIZE, padding=1
        )
    axis.margins(y=0.2)
    axis.set(
        xticks=range(len(MODELS)), xticklabels=MODELS, yticks=[], xlim=(-0.6, len(MODELS) - 0.4)
    )
    axis.spines["left"].set_visible(False)


def _say_absent(axis, place: int) -> None:
    axis.annotate(
        "not in\nthis run", (place, 0.08), xycoords=("data", "axes fraction"),
        ha="center", size=SMALL_SIZE, color=GREY,
    )  # fmt: skip


def _draw_tasks(axis) -> None:
    """A table of the tasks, with a mark where a model does one."""
    axis.axis("off")
    table = axis.table(
        [
            ["\N{CHECK MARK}" if name in able else "\N{EN DASH}" for able in TASKS.values()]
            for name in MODELS
        ],
        rowLabels=MODELS,
        colLabels=list(TASKS),
        cellLoc="center",
        edges="horizontal",
        bbox=(0.1, 0, 0.9, 0.95),
    )
    table.auto_set_font_size(False)
    table.set_fontsize(SMALL_SIZE)
    for cell in table.get_celld().values():
        cell.set_linewidth(0.6)
