"""Audit of the published tables: what in them cannot be right, or hardly.

The rules know VBench-I2V's arithmetic and that values are printed to two decimals; they know
nothing of what is wrong in the paper.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from itertools import combinations, pairwise, permutations
from math import comb, log2
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from pusa.data.suite import VBENCH_COUNTS
from pusa.experiments import published_key
from pusa.report.page import write_page
from pusa.score.arithmetic import DIMENSIONS, METRICS, NAMES, SHORT, total_scores

ROUNDING = 0.005 + 1e-9  # of a printed value, up or to even; and of the arithmetic here
FAR = 7.0  # robust standard deviations: no cell of 400 simulated sound rows is so far out of line
NEAR = 4.0  # as all cells are in 95 % of such rows; a reading must bring them there
FEWEST = 8  # other rows without which nothing is typical
EVIDENCE = 10.0  # bits, after a claim's own cost; chance reaches b of them once in 2**b times
SAMPLES = 5  # videos per prompt of VBench-I2V
#: Videos of the whole suite behind the two dimensions that are shares of videos.
WHOLE_SUITE = {
    "dynamic_degree": SAMPLES * VBENCH_COUNTS["subject"],
    "camera_motion": SAMPLES * VBENCH_COUNTS["camera"],
}
LOW, HIGH = 100 * np.array([(d.low, d.high) for d in DIMENSIONS]).T
COLUMNS = ("rule", "table", "row", "column", "found", "expected", "explanation")

#: The row, the column, what is printed, what would fit, and the arithmetic in words.
Findings = Iterator[tuple[dict, str, str, str, str]]
#: The nine cells of rows to what each is expected to be by each, and the standard deviation.
Expect = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


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


# Cells that disagree between two printings of one setting


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


# Cells that VBench-I2V's bounds or the other rows of the table make implausible


def _implausible(rows: pd.DataFrame) -> Findings:
    for _, table in rows.groupby("table"):
        table = table.drop_duplicates(["setting", *NAMES])
        scores = table[list(NAMES)].to_numpy(dtype=float)
        for i, row in enumerate(table.to_dict("records")):
            cells, expect = scores[i], _fit_lines(np.delete(scores, i, axis=0))
            distances = _distances(cells, expect)
            if (distances <= FAR).all():
                continue
            places, *others = _explaining(distances)
            wrong = [_wrong_cell(a, places, cells, expect) for a in places]
            expected = " and ".join(value for value, _, _ in wrong)
            why = "; ".join(words for _, words, _ in wrong)
            why += "".join(f"; or else {_named(cells, other)} would be wrong" for other in others)
            slipped = any(slip for *_, slip in wrong)  # which is the simpler reading
            if len(table) > FEWEST and not slipped and (read := _moved_cells(cells, expect)):
                places, expected, words = read
                why = f"{why}; {words}"
            yield row, ", ".join(NAMES[a] for a in places), _printed(cells, places), expected, why


def _fit_lines(others: np.ndarray) -> Expect:
    """What the other rows let expect: cell ``a`` from cell ``b`` at ``[a, b]``, by Theil and Sen.

    On the diagonal stands the column's median. Where a line has no less scatter than the column,
    or too few rows, the deviation is NaN.
    """
    first, second = np.triu_indices(len(others), 1)
    steps = others[second] - others[first]
    y, x, alone = others[:, :, None], others[:, None, :], np.eye(len(NAMES), dtype=bool)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # columns without a score
        slopes = steps[:, :, None] / steps[:, None, :]
        slope = np.nanmedian(np.where(np.isfinite(slopes), slopes, np.nan), axis=0)
        slope[alone] = 0
        intercept = np.nanmedian(y - slope * x, axis=0)
        # Half of the rows, as in the median absolute deviation, tell too little where there are
        # 15; one in five may be broken here.
        distances = np.abs(y - slope * x - intercept)
        scatter = np.nanquantile(distances, 0.8, axis=0) / norm.ppf(0.9)
    scatter = np.maximum(scatter, ROUNDING)
    rows = (np.isfinite(y) & np.isfinite(x)).sum(axis=0)
    useful = (rows >= FEWEST) & (alone | (scatter < np.diag(scatter)[:, None]))

    def expect(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        away = (cells - np.diag(intercept)) / np.diag(scatter)  # far along a line less is known
        growth = (1 + (1 + away[..., None, :] ** 2) / np.maximum(rows, 1)) ** 0.5
        deviation = np.where(useful, scatter * np.where(alone, 1, growth), np.nan)
        return intercept + slope * cells[..., None, :], deviation

    return expect


def _distances(cells: np.ndarray, expect: Expect) -> np.ndarray:
    """How far pairs of cells, and on the diagonal single ones, are out of line.

    A pair is as far as the nearer of both expectations says, in robust standard deviations. A cell
    is as far as its median or the nearest of its lines says, and infinitely far out of bounds.
    """
    expected, deviation = expect(cells)
    far = np.abs(cells[..., :, None] - expected) / deviation
    single = np.fmin.reduce(far, axis=-1)
    single[(cells < LOW - ROUNDING) | (cells > HIGH + ROUNDING)] = np.inf
    far = np.minimum(far, far.swapaxes(-1, -2))
    far[..., range(len(NAMES)), range(len(NAMES))] = single
    return np.nan_to_num(far, nan=0, posinf=np.inf)


def _explaining(distances: np.ndarray) -> list[tuple[int, ...]]:
    """The sets of cells that leave nothing out of line if they are wrong.

    Smallest first, then those that leave the least distances; none contains another.
    """
    found = {}
    for size in range(1, len(distances) + 1):
        for wrong in combinations(range(len(distances)), size):
            right = [a for a in range(len(distances)) if a not in wrong]
            left = distances[np.ix_(right, right)]
            if (left <= FAR).all() and not any(set(f) <= set(wrong) for f in found):
                found[wrong] = (size, left.sum())
    return sorted(found, key=found.get)


def _wrong_cell(
    a: int, wrong: tuple[int, ...], cells: np.ndarray, expect: Expect
) -> tuple[str, str, str]:
    """What a wrong cell should be by the tightest line from a right one, why, and its slip."""
    bounds = f"{LOW[a]:.2f} to {HIGH[a]:.2f}"
    outside = cells[a] < LOW[a] - ROUNDING or cells[a] > HIGH[a] + ROUNDING
    expected, deviation = (values[a] for values in expect(cells))
    known = [b for b in np.flatnonzero(np.isfinite(deviation)) if b == a or b not in wrong]
    if not known:
        return bounds, f"{_named(cells, [a])} is outside its bounds, {bounds}", ""
    b = min(known, key=lambda b: deviation[b])
    value = f"{expected[b]:.2f} ± {deviation[b]:.2f}"
    distance = abs(cells[a] - expected[b]) / deviation[b]
    slip = _slip(cells[a], expected[b], 3 * deviation[b]) if distance > NEAR else ""
    why = (
        f"{_named(cells, [a])} is {distance:.1f} robust standard deviations from "
        f"{value}, by {'the median of the other rows' if b == a else _named(cells, [b])}{slip}"
        + (f", and outside its bounds, {bounds}" if outside else "")
    )
    return value, why, slip


def _moved_cells(cells: np.ndarray, expect: Expect) -> tuple[np.ndarray, str, str] | None:
    """Places, their cells as they should stand, and why, if moving cells brings all in line.

    A reading takes one cell to another place, which shifts those between by one column, or swaps
    two.
    """
    readings = cells[_readings(len(cells))]
    distance = _distances(readings, expect).max(axis=(1, 2))
    moved = ~np.isclose(readings, cells, rtol=0, equal_nan=True)
    good = np.flatnonzero(distance <= NEAR)
    if not len(good):
        return None
    best = min(good, key=lambda i: (moved[i].sum(), distance[i]))
    read, places = readings[best], np.flatnonzero(moved[best])
    why = f"read as {_named(read, places)}, nothing is farther than {distance[best]:.1f}, "
    tried = f"of {len(readings)} readings with one cell moved or two swapped"
    if len(good) == 1:
        why += f"which is true of no other {tried}"
    else:
        agreed = np.isclose(readings[good], read, rtol=0, equal_nan=True).all(axis=0) & moved[best]
        common = _named(read, np.flatnonzero(agreed)) or "nothing"
        why += f"and {len(good) - 1} more {tried} are as good, and all agree on {common}"
    if np.isfinite(read).all():
        totals = total_scores(dict(zip(NAMES, read, strict=True)))
        why += "; read so, " + ", ".join(f"{k} is {v:.2f}" for k, v in totals.items())
    return places, _printed(read, places), why


@cache
def _readings(cells: int) -> np.ndarray:
    """Orders of the cells with one taken to another place, or two swapped."""
    readings = set()
    for i, j in permutations(range(cells), 2):
        moved, swapped = list(range(cells)), list(range(cells))
        moved.insert(j, moved.pop(i))
        swapped[i], swapped[j] = j, i
        readings |= {tuple(moved), tuple(swapped)}
    return np.array(sorted(readings))


def _printed(cells: np.ndarray, places) -> str:
    return " ".join(f"{cells[a]:.2f}" for a in places)


def _named(cells: np.ndarray, places) -> str:
    return ", ".join(f"{DIMENSIONS[a].short} {cells[a]:.2f}" for a in places)


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
                saved = {n: _saved_bits(hundredths, n) - log2(whole) for n in range(1, whole + 1)}
                videos, bits = max(saved.items(), key=lambda item: item[1])
                source = "inferred" if bits >= EVIDENCE else "nothing evident"
            explained, by_chance = _is_share(hundredths, videos).sum(), _chance(videos) * len(cells)
            stated = pd.NA if source == "nothing evident" else videos
            found.append((name, column, stated, source, len(cells), explained, by_chance, bits))
    columns = ["table", "column", "videos", "source", "cells", "explained", "by_chance", "bits"]
    return pd.DataFrame(found, columns=columns).astype({"videos": "Int64"})


def _is_share(hundredths: np.ndarray | int, videos: int) -> np.ndarray | bool:
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
            value = round(100 * row[column])
            if _is_share(value, videos):
                continue
            below = value * videos // 10_000
            near = [f"{100 * k / videos:.2f} ({k}/{videos})" for k in (below, below + 1)]
            fewer = [n for n in range(1, videos) if _is_share(value, n)]
            shares = [f"{round(value * n / 10_000)}/{n}" for n in fewer]
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
    "implausible": ("Is every cell within bounds, and in line with the other rows?", _implausible),
    "counts": ("Can every share of videos come from the number of videos?", _counts),
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
        "on other videos than the rest, or is misprinted."
    )
    shown = counts.round(1).astype(object).where(counts.notna(), "")
    shown.columns = shown.columns.str.replace("_", " ")
    sections = [("", intro, rules), ("Numbers of videos", videos, shown)]
    for rule, rows in findings.groupby("rule", sort=False):
        sections.append((rule.capitalize(), RULES[rule][0], rows.drop(columns="rule")))
    write_page("Audit of the published tables", sections, out)
