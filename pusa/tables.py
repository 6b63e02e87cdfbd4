"""Tables 1 and 2: published rows and ours side by side, as CSV, Markdown and HTML."""

from pathlib import Path

import pandas as pd

from pusa.aggregate import NAMES, SHORT, dimension_scores, restrict, total_scores
from pusa.experiments import published_key
from pusa.page import write_page

NOTICE = (
    "Rows marked here are weight-free stand-ins for VBench-I2V's dimensions, normalised and "
    "weighted as VBench-I2V does. They are not VBench numbers and cannot be compared with the "
    "published rows value by value, only in how they rise and fall."
)
METRICS = ("total", "i2v", "quality", *NAMES)


def setting_scores(scores: pd.DataFrame) -> dict[str, float]:
    """The nine dimensions, the halves and the total of one setting, in per cent."""
    dimensions = dimension_scores(scores)
    return {**total_scores(dimensions), **dimensions}


def row_scores(row: dict, scores: dict[str, pd.DataFrame], subset: dict | None) -> dict:
    """`setting_scores` of a row of the sheet on its prompts, and the number of its videos."""
    videos = scores[row["setting"].name]
    if row["prompts"] == "subset":
        videos = restrict(videos, subset)
    return {"videos": videos["file"].nunique(), **setting_scores(videos)}


def make_table1(
    experiments: pd.DataFrame,
    scores: dict[str, pd.DataFrame],
    published: pd.DataFrame,
    subset: dict[str, int] | None,
) -> pd.DataFrame:
    """Table 1: published models, then the rows of the sheet's table 1.

    Args:
        scores: per-video scores of each setting, by its name.
        subset: prompts of each kind that the sheet's ``subset`` stands for.
    """
    rows = [
        {
            "model": row["model"],
            "group": row["group"],
            "source": "published",
            "videos": None,
            **_metrics(row),
        }
        for row in published.to_dict("records")
    ]
    for row in experiments[experiments["table"] == "1"].to_dict("records"):
        setting = row["setting"]
        rows.append(
            {
                "model": setting.label,
                "group": row["group"],
                "source": "here",
                **row_scores(row, scores, subset),
            }
        )
    return _with_counts(rows)


def make_table2(
    experiments: pd.DataFrame,
    scores: dict[str, pd.DataFrame],
    published: pd.DataFrame,
    subset: dict[str, int] | None,
) -> pd.DataFrame:
    """Table 2: each published setting, and under it ours that stands beside it."""
    ours = experiments[experiments["table"] == "2"]
    rows = []
    for row, key in zip(published.to_dict("records"), published_key(published), strict=True):
        place = {c: row[c] for c in ("group", "rank", "iteration", "alpha", "steps")}
        rows.append({**place, "source": "published", "videos": None, **_metrics(row)})
        beside = ours[(ours["group"] == row["group"]) & (ours["published"] == key)]
        rows += [_table2_row(r, scores, subset) for r in beside.to_dict("records")]
    alone = ours[ours["published"] == ""]
    rows += [_table2_row(r, scores, subset) for r in alone.to_dict("records")]
    return _with_counts(rows)


def _with_counts(rows: list[dict]) -> pd.DataFrame:
    """Rows as a table, in which counts stay whole numbers where some rows have none."""
    table = pd.DataFrame(rows)
    counts = [c for c in ("rank", "iteration", "videos") if c in table.columns]
    return table.astype(dict.fromkeys(counts, "Int64"))


def _table2_row(row: dict, scores: dict[str, pd.DataFrame], subset: dict | None) -> dict:
    setting = row["setting"]
    return {
        "group": row["group"],
        "rank": setting.rank,
        "iteration": setting.iteration,
        "alpha": "" if setting.alpha is None else str(setting.alpha),
        "steps": setting.steps,
        "source": "here",
        **row_scores(row, scores, subset),
    }


def _metrics(row: dict) -> dict[str, float]:
    return {name: row[name] for name in METRICS}


def write_table(table: pd.DataFrame, out: Path, title: str, scale: str) -> None:
    """Write ``out`` with the suffixes ``.csv``, ``.md`` and ``.html``."""
    table.to_csv(out.with_suffix(".csv"), index=False, float_format="%.2f")
    shown = table.rename(columns=SHORT).map(_cell)
    write_page(title, [("", f"{scale} {NOTICE}", shown)], out)


def _cell(value) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)
