"""The paper's claims, evaluated on its own tables and on ours.

``config/claims.yaml`` states each claim as comparisons between rows of the tables. On the
published numbers, which come without an interval, a comparison holds or does not. On ours it is
paired by prompt and sample: it holds, or does not, where the whole 95 % interval of the
difference says so, and is not decided otherwise.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import yaml
from jsonschema.exceptions import best_match

from pusa.experiments import COLUMNS, published_key
from pusa.report.page import score_cell, write_page
from pusa.report.study import NOT_VBENCH, Study
from pusa.score.arithmetic import METRICS, NAMES
from pusa.score.intervals import FAILS, HOLDS, UNDECIDED, judge

NOT_PUBLISHED, NOT_RUN = "no published number", "not run"
TITLE = "The paper's claims, on its numbers and on ours"
COMPARISON = re.compile(r"(\S+) ([<>]) (\S+)(?: ([+-]) (\d+(?:\.\d+)?))?")
SCHEMA = {
    "type": "object",
    "required": ["rows", "claims"],
    "additionalProperties": False,
    "properties": {
        "rows": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "minProperties": 1,
                "propertyNames": {"enum": COLUMNS},
            },
        },
        "claims": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["claim", "source", "compare"],
                "additionalProperties": False,
                "properties": {
                    "claim": {"type": "string"},
                    "source": {"type": "string"},
                    "needs": {"enum": ["all", "most"]},
                    "compare": {
                        "type": "object",
                        "minProperties": 1,
                        "propertyNames": {"enum": ["dimensions", *METRICS]},
                        "additionalProperties": {
                            "type": ["string", "array"],
                            "items": {"type": "string"},
                            "minItems": 1,
                        },
                    },
                },
            },
        },
    },
}


@dataclass(frozen=True)
class Row:
    """A row of the tables, by the cells of the experiments sheet that single it out."""

    name: str
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Comparison:
    """``left > right + margin``, or ``<``, in one column; the margin is in points."""

    column: str  # of `METRICS`
    left: Row
    relation: str
    right: Row
    margin: float = 0.0

    def __str__(self) -> str:
        margin = f" {'+' if self.margin > 0 else '-'} {abs(self.margin):g}" if self.margin else ""
        return f"{self.left.name} {self.relation} {self.right.name}{margin}"


@dataclass(frozen=True)
class Claim:
    """What the paper says, and the comparisons of which all, or most, have to hold."""

    text: str
    source: str
    needs: str  # "all" or "most"
    comparisons: tuple[Comparison, ...]

    def judge(self, verdicts: list[str]) -> str:
        """The claim's verdict from those of its comparisons; what is unknown may not matter."""
        holds, fails, needed = verdicts.count(HOLDS), verdicts.count(FAILS), len(verdicts)
        if self.needs == "most":
            needed = needed // 2 + 1
        if holds >= needed:
            return HOLDS
        if fails > len(verdicts) - needed:
            return FAILS
        return next((v for v in (NOT_RUN, NOT_PUBLISHED) if v in verdicts), UNDECIDED)


def read_claims(file: str | Path) -> list[Claim]:
    """Read and check the claims.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: that names the key, what was found and what was expected.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"claims {file} do not exist")
    try:
        content = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: cannot be read as YAML ({error})") from None
    error = best_match(jsonschema.Draft202012Validator(SCHEMA).iter_errors(content))
    if error is not None:
        raise ValueError(f"{file}: {error.json_path.removeprefix('$.')}: {error.message}")
    rows = {
        name: Row(name, tuple((column, str(cell)) for column, cell in cells.items()))
        for name, cells in content["rows"].items()
    }
    claims = []
    for entry in content["claims"]:
        try:
            comparisons = _parse_comparisons(entry["compare"], rows)
        except ValueError as error:
            raise ValueError(f"{file}: claim {entry['claim']!r}: {error}") from None
        needs = entry.get("needs", "all")
        claims.append(Claim(entry["claim"], entry["source"], needs, comparisons))
    return claims


def _parse_comparisons(compare: dict, rows: dict[str, Row]) -> tuple[Comparison, ...]:
    comparisons = []
    for key, texts in compare.items():
        for text in [texts] if isinstance(texts, str) else texts:
            found = COMPARISON.fullmatch(text)
            if found is None:
                raise ValueError(f"found {text!r}, expected a comparison as 'row > other + 0.5'")
            left, relation, right, sign, margin = found.groups()
            for name in (left, right):
                if name not in rows:
                    raise ValueError(f"{text!r} compares {name!r}, which is not among the rows")
            margin = float(f"{sign}{margin}") if margin else 0.0
            comparisons += [
                Comparison(column, rows[left], relation, rows[right], margin)
                for column in (NAMES if key == "dimensions" else (key,))
            ]
    return tuple(comparisons)


def evaluate_claims(
    claims: list[Claim],
    table1: pd.DataFrame,
    table2: pd.DataFrame,
    study: Study,
) -> pd.DataFrame:
    """Evaluate every comparison of every claim, on the published numbers and on ours.

    Args:
        claims: from `read_claims`.
        table1: the published Table 1, from `pusa.report.tables.read_published`.
        table2: the published Table 2, likewise.
        study: from `pusa.report.study.read_study`.

    Returns:
        One row per comparison: ``number`` of the claim, ``claim, source, needs``, the claim's
        verdicts ``claim_published`` and ``claim_here``; ``column, comparison``; the printed
        numbers ``published_left, published_right`` and the verdict ``published`` on them; our
        ``difference`` (left less right, in per cent) with ``low, high`` and the verdict ``here``;
        and our ``scorer``.

    Raises:
        ValueError: if a claim's row is not published, or stands for several rows; or as
            `pusa.score.intervals.difference_intervals`.
    """
    published = pd.concat(
        [
            table1.assign(table="1", published=table1["model"]),
            table2.assign(table="2", published=published_key(table2)),
        ]
    )

    @cache
    def printed(row: Row) -> dict | None:
        if "published" not in dict(row.cells):
            return None
        found = _find(row, published, "the published tables")
        if found is None:
            raise ValueError(f"claims row {row.name!r}: the published tables have no such row")
        return found

    @cache
    def differences(left: Row, right: Row) -> dict | None:
        pair = [_find(row, study.experiments, "the experiments sheet") for row in (right, left)]
        return None if None in pair else study.differences(*pair)

    scorer = study.scorer
    rows = []
    for number, claim in enumerate(claims, start=1):
        evaluated = [
            {"column": c.column, "comparison": str(c)}
            | _judge_published(c, printed(c.left), printed(c.right))
            | _judge_here(c, differences(c.left, c.right))
            for c in claim.comparisons
        ]
        about = {
            "number": number,
            "claim": claim.text,
            "source": claim.source,
            "needs": claim.needs,
            "claim_published": claim.judge([row["published"] for row in evaluated]),
            "claim_here": claim.judge([row["here"] for row in evaluated]),
        }
        rows += [about | row | {"scorer": scorer} for row in evaluated]
    return pd.DataFrame(rows)


def _find(row: Row, table: pd.DataFrame, what: str) -> dict | None:
    """The one row of a table that has the cells that the table knows of; None if there is none."""
    found = table
    for column, cell in row.cells:
        if column in table.columns:
            found = found[found[column].astype(str) == cell]  # numbers, in published tables
    if len(found) > 1:
        raise ValueError(
            f"claims row {row.name!r} stands for {len(found)} rows of {what}, expected one; "
            "give more of its cells"
        )
    return None if found.empty else found.iloc[0].to_dict()


def _judge_published(c: Comparison, left: dict | None, right: dict | None) -> dict:
    values = [np.nan if row is None else row[c.column] for row in (left, right)]
    difference = round(values[0] - values[1], 2)  # as many decimals as are printed
    verdict = judge(difference, difference, c.relation, c.margin)
    if np.isnan(difference):
        verdict = NOT_PUBLISHED
    elif verdict == UNDECIDED:  # exactly on the margin
        verdict = FAILS
    return {"published_left": values[0], "published_right": values[1], "published": verdict}


def _judge_here(c: Comparison, differences: dict | None) -> dict:
    if differences is None or np.isnan(differences[c.column].value):
        return {"difference": np.nan, "low": np.nan, "high": np.nan, "here": NOT_RUN}
    found = differences[c.column]
    verdict = judge(found.low, found.high, c.relation, c.margin)
    return {"difference": found.value, "low": found.low, "high": found.high, "here": verdict}


def write_claims(table: pd.DataFrame, out: Path, scale: str) -> None:
    """Write the claims to ``out`` with the suffixes .csv, .md and .html.

    Args:
        table: from `evaluate_claims`.
        scale: sentences on what was run: model, prompts, samples.
    """
    table.to_csv(out.with_suffix(".csv"), index=False)
    title = TITLE
    if (table["scorer"] == "weight_free").any():
        title += f" (rows of this run: {NOT_VBENCH})"
    intro = (
        f"{scale} A claim is a number of comparisons between rows of Tables 1 and 2, of which all "
        "or most have to hold. Published numbers have no interval. Ours are paired by prompt and "
        "sample, with a 95 % bootstrap interval over prompts. Not decided: the interval includes "
        "the boundary between holding and not. Not run: a row has no scores. Margins in points, as "
        "in + 0.5, are ours, not the paper's. The intervals are not widened for the number of "
        "comparisons: of many, one may fail by chance; and they are too narrow where a kind has "
        "under ten prompts."
    ).strip()
    claims, comparisons = [], []
    for number, rows in table.groupby("number"):
        first = rows.iloc[0]
        name = f"{number}. {first['claim']}"
        claims.append(
            {
                "claim": name,
                "source": first["source"],
                "published": _count(first["claim_published"], rows["published"]),
                "here": _count(first["claim_here"], rows["here"]),
                "needs": f"{first['needs']} of {len(rows)}" if len(rows) > 1 else "",
            }
        )
        for n, row in enumerate(rows.to_dict("records")):
            comparisons.append(
                {
                    "claim": "" if n else name,  # once is enough
                    "column": row["column"],
                    "comparison": row["comparison"],
                    "published left": score_cell(row["published_left"]),
                    "published right": score_cell(row["published_right"]),
                    "published": row["published"],
                    "difference here": score_cell(
                        row["difference"], row["low"], row["high"], sign="+"
                    ),
                    "here": row["here"],
                }
            )
    text = "Left and right are the rows of a comparison; the difference is left less right."
    sections = [
        ("", intro, pd.DataFrame(claims)),
        ("Comparisons", text, pd.DataFrame(comparisons)),
    ]
    write_page(title, sections, out)


def _count(verdict: str, verdicts: pd.Series) -> str:
    """A claim's verdict with the count of its comparisons that hold, where there are several."""
    known = verdicts.isin([HOLDS, FAILS, UNDECIDED]).any()
    if len(verdicts) == 1 or not known:
        return verdict
    return f"{verdict} ({(verdicts == HOLDS).sum()} of {len(verdicts)} hold)"
