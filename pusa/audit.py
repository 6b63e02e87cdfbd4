"""Audit of the published tables: what in them cannot be right, or hardly.

The rules know VBench-I2V's arithmetic and that values are printed to two decimals; they know
nothing of what is wrong in the paper. Evidence is counted in bits: by Markov's inequality, chance
alone reaches ``b`` bits at most once in ``2**b`` times.
"""

from collections.abc import Iterator
from functools import cache
from itertools import combinations, pairwise, permutations
from math import comb, log, log2
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm, spearmanr, t, theilslopes

from pusa.aggregate import DIMENSIONS, METRICS, NAMES, SHORT, total_scores
from pusa.experiments import published_key
from pusa.page import write_page
from pusa.suite import VBENCH_COUNTS

ROUNDING = 0.005 + 1e-9  # of a printed value, up or to even; and of the arithmetic here
EVIDENCE = 10.0  # bits that a claim needs after its own cost
SIMILAR = 3.0  # bits within which two explanations are about as good
FAR = 7.0  # robust standard deviations; of 3,600 simulated sound cells none has so many
FEWEST = 8  # other rows without which nothing is typical
SAMPLES = 5  # videos per prompt of VBench-I2V
#: Videos of the whole suite behind the two dimensions that are shares of videos.
WHOLE_SUITE = {
    "dynamic_degree": SAMPLES * VBENCH_COUNTS["subject"],
    "camera_motion": SAMPLES * VBENCH_COUNTS["camera"],
}
COLUMNS = ("rule", "table", "row", "column", "found", "expected", "explanation")

#: The row, the column, what is printed, what would fit, and the arithmetic in words.
Findings = Iterator[tuple[dict, str, str, str, str]]


def audit_tables(
    table1: pd.DataFrame, table2: pd.DataFrame, *, same_setting: dict[str, str] | None = None
) -> pd.DataFrame:
    """Check the published tables by all `RULES`; one row of text per finding, with `COLUMNS`.

    Args:
        table1: ``model, group`` and the scores in per cent; a score may be missing.
        table2: ``group, rank, iteration, alpha, steps`` and the scores in per cent.
        same_setting: for models of Table 1, the ``rank/iteration/alpha/steps`` of Table 2 that
            is the same setting, as `same_settings` reads it from the experiments sheet.

    Raises:
        ValueError: for a missing column, a score that is not a number, or an entry of
            ``same_setting`` that names no row.
    """
    rows = _stack(table1, table2, same_setting or {})
    return pd.DataFrame(
        (
            (rule, row["table"], row["row"], *finding)
            for rule, (_, find) in RULES.items()
            for row, *finding in find(rows)
        ),
        columns=COLUMNS,
    )


def same_settings(experiments: pd.DataFrame) -> dict[str, str]:
    """Rows of Table 1 and of Table 2 that stand for one setting of the experiments sheet."""
    printed = experiments[experiments["published"] != ""]
    two = printed[printed["table"] == "2"]
    keys = dict(zip(two["setting"], two["published"], strict=True))
    one = printed[printed["table"] == "1"]
    pairs = zip(one["published"], one["setting"], strict=True)
    return {model: keys[setting] for model, setting in pairs if setting in keys}


def _stack(table1: pd.DataFrame, table2: pd.DataFrame, same: dict[str, str]) -> pd.DataFrame:
    """Both tables with the columns ``table, row, group, setting`` and the scores."""
    one = _checked(table1, "1", ["model", "group"])
    two = _checked(table2, "2", ["group", "rank", "iteration", "alpha", "steps"])
    keys = published_key(table2)
    for model, key in same.items():
        if model not in set(one["model"]) or key not in set(keys):
            raise ValueError(
                f"same setting {model!r}: {key!r} names no row; expected a model of Table 1 "
                "and rank/iteration/alpha/steps of Table 2"
            )
    one = one.assign(row=one["model"], setting=[same.get(m, m) for m in one["model"]])
    two = two.assign(row=two["group"] + " " + keys, setting=keys)
    columns = ["table", "row", "group", "setting", *METRICS]
    return pd.concat([one[columns], two[columns]], ignore_index=True)


def _checked(table: pd.DataFrame, name: str, place: list[str]) -> pd.DataFrame:
    lacking = [c for c in (*place, *METRICS) if c not in table]
    if lacking:
        raise ValueError(f"published table {name} lacks the columns {', '.join(lacking)}")
    if table.empty:
        raise ValueError(f"published table {name} has no rows; expected one per printed row")
    scores = table[list(METRICS)].apply(pd.to_numeric, errors="coerce")
    for column in METRICS:
        bad = table[column][scores[column].isna() & table[column].notna()]
        if len(bad):
            raise ValueError(
                f"published table {name}: {column} is {bad.iloc[0]!r}, expected a number"
            )
    return table.assign(table=name, **scores)


# Totals that do not follow from their row


def _arithmetic(rows: pd.DataFrame) -> Findings:
    spread = {half: _rounding_of(half) for half in ("quality", "i2v")}
    for row in rows.to_dict("records"):
        cells = total_scores(row)
        by_halves = (row["quality"] + row["i2v"]) / 2
        follows_halves = abs(row["total"] - by_halves) <= 2 * ROUNDING
        follows_cells = abs(row["total"] - cells["total"]) <= ROUNDING + sum(spread.values()) / 2
        total = (
            f"the printed total is {row['total']:.2f}, ({row['quality']:.2f} + {row['i2v']:.2f})/2 "
            f"is {by_halves:.3f}, and the total from all cells is {cells['total']:.3f}"
        )
        if np.isnan(row["total"]):
            total = "there is no total to compare with"
        wrong = [h for h in spread if abs(row[h] - cells[h]) > spread[h] + ROUNDING]
        for half in wrong:
            if follows_cells and not follows_halves:
                verdict = "so the half is misprinted" + _slip(row[half], cells[half], spread[half])
            elif follows_halves and not follows_cells:
                verdict = "so a cell is misprinted: " + _restoring(row, half, cells[half], spread)
            else:
                verdict = "which does not tell whether the half or a cell is misprinted"
            why = (
                f"{half} from its cells is {cells[half]:.3f} ± {spread[half]:.3f}, printed "
                f"{row[half]:.2f}; {total}, {verdict}"
            )
            yield row, half, f"{row[half]:.2f}", f"{cells[half]:.2f}", why
        unfollowed = abs(row["total"] - by_halves) > 2 * ROUNDING  # not so where one is missing
        if unfollowed and not (wrong and follows_cells):
            expected = cells["total"] if wrong else by_halves
            why = f"{total}, so the total is misprinted" + _slip(row["total"], expected, ROUNDING)
            yield row, "total", f"{row['total']:.2f}", f"{expected:.2f}", why


def _rounding_of(half: str) -> float:
    """How far a half may move when each of its cells is off by its rounding."""
    members = [d for d in DIMENSIONS if d.half == half]
    moved = sum(d.weight * ROUNDING / (d.high - d.low) for d in members)
    return moved / sum(d.weight for d in members)


def _restoring(row: dict, half: str, recomputed: float, spread: dict[str, float]) -> str:
    """What each cell of a half would have to be for the printed half, where it can be."""
    members = [d for d in DIMENSIONS if d.half == half]
    weights = sum(d.weight for d in members)
    ways = []
    for d in members:
        per_point = weights * (d.high - d.low) / d.weight  # cell moved per point of the half
        needed = row[d.name] + (row[half] - recomputed) * per_point
        if 100 * d.low <= needed <= 100 * d.high:
            slip = _slip(row[d.name], needed, (spread[half] + ROUNDING) * per_point)
            ways.append((not slip, f"{SHORT[d.name]} {row[d.name]:.2f} for {needed:.2f}{slip}"))
    return " or ".join(way for _, way in sorted(ways)) or "no single cell can restore the half"


def _slip(printed: float, wanted: float, tolerance: float) -> str:
    """The slip of the pen that leads from about ``wanted`` to ``printed``, if one does."""
    text = f"{printed:.2f}"
    digits = [i for i, c in enumerate(text) if c != "."]
    swapped = []
    for i, j in pairwise(digits):
        other = list(text)
        other[i], other[j] = text[j], text[i]
        swapped.append("".join(other))
    slips = {
        "two digits swapped": swapped,
        "the decimal point moved": [printed * 10**p for p in (-2, -1, 1, 2)],
    }
    if tolerance < 0.1:  # one of the digits can always be changed to fit widely
        one = [text[:i] + c + text[i + 1 :] for i in digits for c in "0123456789"]
        slips["one digit changed"] = one
    for words, values in slips.items():
        if any(abs(float(v) - wanted) <= tolerance + ROUNDING for v in values):
            return f" (as with {words})"
    return ""


# Rows against each other, and against their bounds


def _printings(rows: pd.DataFrame) -> Findings:
    for _, printings in rows.groupby("setting", sort=False):
        *others, last = printings.to_dict("records")  # Table 2 comes after Table 1
        for row in others:
            across = row["table"] != last["table"]
            caution = "; the two tables may be on different prompts" if across else ""
            for column in METRICS:
                difference = last[column] - row[column]
                if abs(difference) > 1e-9:
                    why = (
                        f"Table {last['table']}, {last['row']} is the same setting and prints "
                        f"{last[column]:.2f}, {difference:+.2f}{caution}"
                    )
                    yield row, column, f"{row[column]:.2f}", f"{last[column]:.2f}", why


def _repeats(rows: pd.DataFrame) -> Findings:
    for (_, earlier), (_, row) in combinations(rows.drop_duplicates("setting").iterrows(), 2):
        same = [n for n in NAMES if row[n] == earlier[n]]
        if len(same) > len(NAMES) / 2:
            why = (
                f"{len(same)} of {len(NAMES)} cells are those of another setting, "
                f"Table {earlier['table']}, {earlier['row']}"
            )
            yield row, ", ".join(same), _printed(row[same]), "other values", why


def _bounds(rows: pd.DataFrame) -> Findings:
    bounds = {d.name: (100 * d.low, 100 * d.high) for d in DIMENSIONS}
    for row in rows.to_dict("records"):
        for column in METRICS:
            low, high = bounds.get(column, (0.0, 100.0))
            if row[column] < low - ROUNDING or row[column] > high + ROUNDING:
                why = f"normalised it is {(row[column] - low) / (high - low):.2f}, outside 0 to 1"
                yield row, column, f"{row[column]:.2f}", f"{low:.2f} to {high:.2f}", why


def _order(rows: pd.DataFrame) -> Findings:
    ranked = rows[(rows["table"] == "1") & rows["total"].notna()]
    for group, models in ranked.groupby("group", sort=False):
        for above, row in pairwise(models.to_dict("records")):
            if row["total"] > above["total"]:
                why = f"stands below {above['row']} in the group {group!r}, whose total is lower"
                yield row, "total", f"{row['total']:.2f}", f"at most {above['total']:.2f}", why


# Cells that their column, or the column that goes with it, makes implausible


def _implausible(rows: pd.DataFrame) -> Findings:
    for _, table in rows.groupby("table"):
        table = table.drop_duplicates(["setting", *NAMES])
        partners = _partners(table)
        for index, row in table.iterrows():
            others = table.drop(index=index)
            judged = [n for n in NAMES if others[n].count() >= FEWEST]
            present = [c for c in judged if pd.notna(row[c])]
            far = {c: _judge_cell(c, partners[c], row, others) for c in present}
            far = {c: cell for c, cell in far.items() if cell.distance > FAR}
            # A cell that a much farther one makes look far is not to blame.
            far = [
                (row, c, f"{row[c]:.2f}", cell.expected, cell.explanation)
                for c, cell in far.items()
                if cell.judge not in far or far[cell.judge].distance < 2 * cell.distance
            ]
            read = _moved_cells(row[judged], others[judged], len(table))
            if read is None:
                yield from far
            else:
                moved, values, why = read
                why = "; ".join([*(explanation for *_, explanation in far), why])
                yield row, ", ".join(moved), _printed(row[moved]), _printed(values), why


def _partners(table: pd.DataFrame) -> dict[str, list[str]]:
    """For each dimension, those that go with it: Spearman's p is below 0.001."""
    ranks = table[list(NAMES)].rank()
    return {
        a: [
            b
            for b in NAMES
            if a != b and spearmanr(ranks[a], ranks[b], nan_policy="omit").pvalue < 0.001
        ]
        for a in NAMES
    }


class _Cell(NamedTuple):
    distance: float  # from what is expected, in robust standard deviations
    judge: str  # the column that it is expected from, or empty
    expected: str
    explanation: str


def _judge_cell(column: str, partners: list[str], row: pd.Series, others: pd.DataFrame) -> _Cell:
    """How far a cell lies from what the other rows let expect.

    They do by the column's median or, if it has less scatter, by a line (Theil and Sen's) through
    one of its ``partners``; far along that line less is known.
    """
    y = others[column].to_numpy()
    expected, scatter, growth = np.nanmedian(y), _deviation(y), 1.0
    judge, source = "", "the median of the other rows"
    for other in partners:
        x = others[other].to_numpy()
        both = np.isfinite(x) & np.isfinite(y)
        slope, intercept, _, _ = theilslopes(y[both], x[both])
        around_line = _deviation(y - intercept - slope * x)
        if around_line < scatter and pd.notna(row[other]):
            expected, scatter = intercept + slope * row[other], around_line
            judge, source = other, f"by {SHORT[other]} {row[other]:.2f} and the other rows"
            away = (row[other] - np.nanmedian(x)) / _deviation(x)
            growth = 1 + (1 + away**2) / both.sum()
    deviation = scatter * growth**0.5
    distance = abs(row[column] - expected) / deviation
    why = (
        f"{SHORT[column]} {row[column]:.2f} is {distance:.1f} robust standard deviations from "
        f"{expected:.2f}, {source}" + _slip(row[column], expected, 3 * deviation)
    )
    return _Cell(distance, judge, f"{expected:.2f} ± {deviation:.2f}", why)


def _deviation(values: np.ndarray) -> float:
    """Standard deviation from the 80 % quantile of distances to the median, and at least rounding.

    Half of the rows, as in the median absolute deviation, tell too little where there are 15; one
    in five may be broken here.
    """
    distances = np.abs(values - np.nanmedian(values))
    return max(np.nanquantile(distances, 0.8) / norm.ppf(0.9), ROUNDING)


def _moved_cells(
    row: pd.Series, others: pd.DataFrame, rows: int
) -> tuple[list[str], pd.Series, str] | None:
    """Columns, their cells as they should stand, and why, if moving cells makes a row plausible.

    A reading takes one cell to another place, which shifts those between by one column, or swaps
    two. It is judged by the likelihood of the row under heavy-tailed columns (Student's t with 3
    degrees of freedom), and pays for the number of readings of all rows.
    """
    if len(row) < 2:
        return None
    centre, deviation = others.median().to_numpy(), others.apply(_deviation).to_numpy()
    printed = row.to_numpy(dtype=float)
    readings = printed[_readings(len(row))]
    gains = _bits((readings - centre) / deviation) - _bits((printed - centre) / deviation)
    needed = log2(rows * len(readings)) + EVIDENCE
    if gains.max() < needed:
        return None
    similar = np.flatnonzero(gains >= gains.max() - SIMILAR)
    moved = ~np.isclose(readings, printed, rtol=0, equal_nan=True)
    best = min(similar, key=lambda i: (moved[i].sum(), -gains[i]))
    agreed = np.isclose(readings[similar], readings[best], rtol=0, equal_nan=True).all(axis=0)
    read = pd.Series(readings[best], index=row.index)
    why = (
        f"read as {_named(read[moved[best]])}, the row fits the others better by "
        f"{gains[best]:.0f} bits, where {needed:.0f} are evidence"
    )
    if len(similar) > 1:
        agreement = _named(read[agreed & moved[best]]) or "nothing"
        why += f"; {len(similar) - 1} more readings fit as well, and all agree on {agreement}"
    if read.reindex(NAMES).notna().all():
        why += "; read so, " + ", ".join(f"{k} is {v:.2f}" for k, v in total_scores(read).items())
    return list(row.index[moved[best]]), read[moved[best]], why


def _bits(distances: np.ndarray) -> np.ndarray:
    return np.nansum(t.logpdf(distances, df=3), axis=-1) / log(2)


def _readings(cells: int) -> list[list[int]]:
    """Orders of the cells with one taken to another place, or two swapped."""
    readings = set()
    for i, j in permutations(range(cells), 2):
        moved = [k for k in range(cells) if k != i]
        moved.insert(j, i)
        swapped = list(range(cells))
        swapped[i], swapped[j] = j, i
        readings |= {tuple(moved), tuple(swapped)}
    return [list(order) for order in sorted(readings)]


def _printed(values: pd.Series) -> str:
    return " ".join(f"{v:.2f}" for v in values)


def _named(values: pd.Series) -> str:
    return ", ".join(f"{SHORT[name]} {value:.2f}" for name, value in values.items())


# Shares of videos


def video_counts(table1: pd.DataFrame, table2: pd.DataFrame) -> pd.DataFrame:
    """The number of videos behind the shares of each table: stated, or inferred from them.

    Table 1 is the leaderboard's, on the whole suite. For Table 2 the number is sought that
    describes the column most shortly. A description says for each cell whether it is a share of
    that many videos, and which; numbers up to the whole suite's cost the same.

    Returns:
        ``table, column, videos`` (missing if nothing is evident), ``source``, ``cells`` (of
        distinct settings), ``explained`` by that number, ``by_chance`` expected, and the
        ``bits`` by which the description is shorter than the values.
    """
    return _video_counts(_stack(table1, table2, {}))


def _video_counts(rows: pd.DataFrame) -> pd.DataFrame:
    found = []
    for name, table in rows.groupby("table"):
        for column, whole in WHOLE_SUITE.items():
            cells = table.drop_duplicates(["setting", column])[column].dropna()
            hundredths = (100 * cells).round().astype(int).to_numpy()
            if name == "1":
                videos, source, bits = whole, "the whole suite", _saved_bits(hundredths, whole)
            else:
                source = "inferred"
                saved = {n: _saved_bits(hundredths, n) - log2(whole) for n in range(1, whole + 1)}
                videos, bits = max(saved.items(), key=lambda item: item[1])
            explained, by_chance = int(_is_share(hundredths, videos).sum()), _chance(videos)
            evident = name == "1" or bits >= EVIDENCE
            found.append(
                {
                    "table": name,
                    "column": column,
                    "videos": videos if evident else pd.NA,
                    "source": source if evident else "nothing evident",
                    "cells": len(cells),
                    "explained": explained,
                    "by_chance": by_chance * len(cells),
                    "bits": bits,
                }
            )
    return pd.DataFrame(found).astype({"videos": "Int64"})


def _is_share(hundredths: np.ndarray, videos: int) -> np.ndarray:
    """Whether values in 1/100 per cent are k/videos, rounded either way."""
    rest = hundredths * videos % 10_000
    return 2 * np.minimum(rest, 10_000 - rest) <= videos


@cache
def _chance(videos: int) -> float:
    """The part of all values of two decimals that are shares of so many videos."""
    return float(_is_share(np.arange(10_001), videos).mean())


def _saved_bits(hundredths: np.ndarray, videos: int) -> float:
    cells, explained = len(hundredths), int(_is_share(hundredths, videos).sum())
    chance = _chance(videos)
    which = log2(cells + 1) + log2(comb(cells, explained))
    return -explained * log2(chance) - (cells - explained) * log2(1 - chance) - which


def _counts(rows: pd.DataFrame) -> Findings:
    for count in _video_counts(rows).dropna(subset="videos").to_dict("records"):
        column, videos = count["column"], int(count["videos"])
        table = rows[(rows["table"] == count["table"]) & rows[column].notna()]
        for row in table.drop_duplicates(["setting", column]).to_dict("records"):
            value = np.array(round(100 * row[column]))
            if _is_share(value, videos):
                continue
            below = int(value * videos // 10_000)
            near = [f"{100 * k / videos:.2f} ({k}/{videos})" for k in (below, below + 1)]
            possible = [n for n in range(1, WHOLE_SUITE[column] + 1) if _is_share(value, n)]
            shares = [f"{round(value * n / 10_000)}/{n}" for n in possible if n < videos]
            why = (
                f"{count['explained']} of {count['cells']} cells are shares of {videos} videos, "
                f"{count['by_chance']:.1f} by chance; with fewer videos this one is "
                + (", ".join(dict.fromkeys((shares[0], *shares[-2:]))) if shares else "none")
            )
            yield row, column, f"{row[column]:.2f}", " or ".join(near), why


#: What each rule asks, and the rule.
RULES = {
    "arithmetic": ("Do the halves follow from their cells, and the total from both?", _arithmetic),
    "printings": ("Do two printings of one setting agree?", _printings),
    "repeats": ("Do rows of different settings print different numbers?", _repeats),
    "bounds": ("Is every value within the bounds that VBench-I2V normalises it with?", _bounds),
    "implausible": ("Does every cell fit the other rows, and its column best?", _implausible),
    "counts": ("Can every share of videos come from the number of videos?", _counts),
    "order": ("Are the models of Table 1 ranked by total within each group?", _order),
}


def write_audit(findings: pd.DataFrame, counts: pd.DataFrame, out: Path) -> None:
    """Write ``out`` with the suffixes ``.csv`` (the findings), ``.md`` and ``.html``.

    Args:
        findings: from `audit_tables`.
        counts: from `video_counts`.
    """
    findings.to_csv(out.with_suffix(".csv"), index=False)
    each = findings["rule"].value_counts()
    rules = pd.DataFrame(
        {"rule": rule, "question": question, "findings": str(each.get(rule, "nothing"))}
        for rule, (question, _) in RULES.items()
    )
    intro = (
        f"{len(RULES)} rules that know VBench-I2V's arithmetic, and no answers, checked the "
        f"published tables and found {len(findings) or 'nothing'}"
        f"{' things to explain' if len(findings) else ''}. Values are in per cent."
    )
    videos = (
        "Two dimensions are shares of videos. Explained: cells that are a whole number of that "
        "many videos. Bits: how much shorter the number makes a description of the column; "
        f"{EVIDENCE:.0f} or more are evidence. A row whose share needs another number was scored "
        "on other videos than the rest."
    )
    shown = counts.rename(columns=lambda c: c.replace("_", " "))
    sections = [("", intro, rules), ("Numbers of videos", videos, shown.map(_shown))]
    for rule, rows in findings.groupby("rule", sort=False):
        sections.append((rule.capitalize(), RULES[rule][0], rows.drop(columns="rule")))
    write_page("Audit of the published tables", sections, out)


def _shown(value) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.1f}" if isinstance(value, float) else str(value)
