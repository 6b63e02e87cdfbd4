"""Tables 1 and 2: published rows, ours under them, and the difference.

Every number of ours carries a 95 % bootstrap interval. What a difference is taken to depends on
the scorer: VBench's scores compare with the published row; weight-free scores compare only with
each other, and so with our main setting.
"""

from dataclasses import astuple
from pathlib import Path

import pandas as pd

from pusa.experiments import BOUNDS, Setting, main_setting, published_key
from pusa.report.page import score_cell, write_latex, write_page
from pusa.report.study import NOT_VBENCH, Study
from pusa.score.arithmetic import METRICS, SHORT
from pusa.score.intervals import Interval, score_intervals

TITLE1 = "VBench-I2V leaderboard and this reproduction"
TITLE2 = "Rank, inference steps, training iterations and alpha"
NOTICE = (
    "Rows marked here are weight-free stand-ins for VBench-I2V's dimensions, normalised and "
    "weighted as VBench-I2V does. They are not VBench numbers and cannot be compared with the "
    "published rows value by value, only in how they rise and fall."
)
TO_PUBLISHED = "here - published"
TO_MAIN = "here - main"
#: Ablation groups of Table 2, as the paper letters them.
ABLATIONS = {
    "lora": "(a) LoRA configurations",
    "steps": "(b) Inference steps",
    "iterations": "(c) Training progression",
}
#: The group of what no model makes, which closes both tables.
BOUNDS_GROUP = "bounds"
#: Groups whose published rows are the paper's own, not the leaderboard's; each has a row of ours.
OWN_GROUPS = ("baseline", "ours", *ABLATIONS)
HEADINGS = {"total": "Total", "i2v": "I2V", "quality": "Quality", **SHORT}
UNITS = (
    "In per cent, with 95 % bootstrap intervals over prompts in brackets, which are too narrow "
    "where a kind has under ten prompts; empty rows were not run."
)
#: What tells which setting a row is.
PLACE = ("model", "group", "rank", "iteration", "alpha", "steps")


def read_published(file: str | Path) -> pd.DataFrame:
    """Read a published table, 1 or 2, with alpha as it is printed.

    Raises:
        FileNotFoundError: if there is none.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"published table {file} does not exist")
    return pd.read_csv(file, dtype={"alpha": str})


def make_table1(study: Study, published: pd.DataFrame) -> pd.DataFrame:
    """Table 1: the leaderboard, with a row of ours under each of the paper's own rows.

    Args:
        study: from `pusa.report.study.read_study`.
        published: the published Table 1, from `read_published`.

    Returns:
        ``model, group, source, scorer, videos``, and for each of `METRICS` the value and its
        interval's ends, ``<metric>_low`` and ``<metric>_high``, in per cent. ``source`` is
        ``published`` (no interval), ``here`` (empty if not run), or the difference under it:
        `TO_PUBLISHED`, our interval shifted, or `TO_MAIN`, paired by prompt and sample.

    Raises:
        ValueError: if settings differ in their scorer.
    """
    published = published.assign(published=published["model"])
    rows = _interleave("1", study, published)
    return _as_table(rows, ["model", "group"])


def make_table2(study: Study, published: pd.DataFrame) -> pd.DataFrame:
    """Table 2: each published setting, and under it ours that plays its part.

    Arguments, result and errors are those of `make_table1`, with the columns ``group, rank,
    iteration, alpha, steps`` in place of ``model, group``.
    """
    published = published.assign(published=published_key(published))
    rows = _interleave("2", study, published)
    for row in rows:  # which has no other column to tell them apart by
        if row["group"] == BOUNDS_GROUP:
            row["group"] = row["model"]
    return _as_table(rows, ["group", "rank", "iteration", "alpha", "steps"])


def _interleave(number: str, study: Study, published: pd.DataFrame) -> list[dict]:
    """Published rows with ours under them; ours that stand beside none close their group."""
    against_main = study.scorer == "weight_free"
    main = _main_row(study.experiments) if against_main else None
    ours = study.experiments[study.experiments["table"] == number]

    def run_rows(row: dict, beside: dict | None) -> list[dict]:
        setting, here = row["setting"], study.videos(row)
        labels = {"group": row["group"], **_labels(setting)}
        if here is None:
            return [{**labels, "source": "here"}]
        labels["scorer"] = here["scorer"].iloc[0]
        values = score_intervals(here)
        videos = here["file"].nunique()
        rows = [{**labels, "source": "here", "videos": videos, **_columns(values)}]
        if against_main and setting != main["setting"]:
            change = study.differences(main, row)
            if change is not None:
                rows.append({**labels, "source": TO_MAIN, **_columns(change)})
        elif not against_main and beside is not None:
            shift = {m: Interval(*(x - beside[m] for x in astuple(values[m]))) for m in METRICS}
            rows.append({**labels, "source": TO_PUBLISHED, **_columns(shift)})
        return rows

    rows = []
    for group, members in published.groupby("group", sort=False):
        in_group = ours[ours["group"] == group]
        for row in members.to_dict("records"):
            rows.append({**row, "source": "published"})
            beside = in_group[in_group["published"] == row["published"]].to_dict("records")
            for own in beside:
                rows += run_rows(own, row)
            if not beside and group in OWN_GROUPS:
                place = {name: row[name] for name in PLACE if name in row}
                rows.append({**place, "source": "here"})
        for own in in_group[in_group["published"] == ""].to_dict("records"):
            rows += run_rows(own, None)
    for own in ours[ours["group"] == BOUNDS_GROUP].to_dict("records"):
        rows += run_rows(own, None)
    return rows


def _main_row(experiments: pd.DataFrame) -> dict:
    """The sheet's row of the main setting in Table 1."""
    main = main_setting(experiments)
    rows = experiments[(experiments["table"] == "1") & (experiments["setting"] == main)]
    return rows.iloc[0].to_dict()


def _labels(setting: Setting) -> dict:
    return {
        "model": setting.label,
        "rank": setting.rank,
        "iteration": setting.iteration,
        "alpha": "" if setting.alpha is None else str(setting.alpha),
        "steps": setting.steps,
    }


def _columns(values: dict[str, Interval]) -> dict[str, float]:
    return {
        name + end: number
        for name, interval in values.items()
        for end, number in zip(("", "_low", "_high"), astuple(interval), strict=True)
    }


def _as_table(rows: list[dict], labels: list[str]) -> pd.DataFrame:
    """Rows as a table, in which counts stay whole numbers where some rows have none."""
    metrics = [name + end for name in METRICS for end in ("", "_low", "_high")]
    table = pd.DataFrame(rows, columns=[*labels, "source", "scorer", "videos", *metrics])
    counts = [c for c in ("rank", "iteration", "steps", "videos") if c in table.columns]
    return table.astype(dict.fromkeys(counts, "Int64")).astype(dict.fromkeys(metrics, float))


def write_table1(table: pd.DataFrame, out: Path, scale: str) -> None:
    """Write Table 1 to ``out`` with the suffixes .csv, .md, .html and .tex.

    Args:
        table: from `make_table1`.
        scale: sentences for the caption on what was run: model, prompts, samples, cost.
    """
    _write_page(f"Table 1: {TITLE1}", table, scale, out)
    title, text = _caption(TITLE1, table, scale)
    write_latex(title, text, {"": _shown(table)}, out)


def write_table2(table: pd.DataFrame, out: Path, scale: str) -> None:
    """Write Table 2 as `write_table1` does; in LaTeX, ablation groups are parts of one table."""
    _write_page(f"Table 2: {TITLE2}", table, scale, out)
    title, text = _caption(TITLE2, table, scale)
    parts = {heading: table[table["group"] == group] for group, heading in ABLATIONS.items()}
    shown = {heading: _shown(part).drop(columns="group") for heading, part in parts.items()}
    bounds = _shown(table[_is_bound(table)])
    if not bounds.empty:
        bounds["rank"] = bounds["group"]
        shown["What no model makes"] = bounds.drop(columns="group")
    write_latex(title, text, shown, out)


def _write_page(title: str, table: pd.DataFrame, scale: str, out: Path) -> None:
    table.to_csv(out.with_suffix(".csv"), index=False)
    title, text = _caption(title, table, scale)
    write_page(title, [("", text, _shown(table))], out)


def _caption(title: str, table: pd.DataFrame, scale: str) -> tuple[str, str]:
    """Title and text, which say what the numbers are and what they are compared with."""
    text = f"{scale} {UNITS}".strip()
    best = "Best in each column" + ("" if "model" in table.columns else " of a group") + " in bold"
    if (table["scorer"] == "weight_free").any():
        return f"{title} (rows of this run: {NOT_VBENCH})", (
            f"{text} Differences are to our main setting, on the prompts that both have, paired by "
            f"prompt and sample. {best}, of the published rows and of ours apart. {NOTICE}"
        )
    return title, (
        f"{text} Differences are to the published row, whose own uncertainty is not known. {best}."
    )


def _is_bound(table: pd.DataFrame) -> pd.Series:
    return table["group"].isin([BOUNDS_GROUP, *BOUNDS.values()])


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """Cells as they are printed: two decimals, intervals, and the best of each column bold.

    Best is meant within Table 1, and within each ablation group of Table 2.
    """
    is_difference = table["source"].isin([TO_PUBLISHED, TO_MAIN])
    contest = pd.Series("", table.index) if "model" in table.columns else table["group"]
    if (table["scorer"] == "weight_free").any():  # not comparable with published numbers
        contest = contest.str.cat(table["source"])
    contest = contest.mask(is_difference | _is_bound(table))
    labels = table.columns[: table.columns.get_loc("total")].drop("scorer")
    shown = table[labels].astype(object).where(table[labels].notna(), "")
    shown.loc[is_difference, labels.drop(["group", "source"])] = ""
    for metric in METRICS:
        printed = table[metric].round(2)  # equal numbers in print are equally good
        best = printed == printed.groupby(contest).transform("max")
        rows = zip(table[metric], table[f"{metric}_low"], table[f"{metric}_high"], strict=True)
        shown[HEADINGS[metric]] = [
            score_cell(*row, sign="+" if change else "", best=first)
            for row, change, first in zip(rows, is_difference, best, strict=True)
        ]
    return shown
