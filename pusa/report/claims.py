"""The paper's claims, evaluated on its own tables and on ours.

``config/claims.yaml`` states claims, and the effects that `pusa.report.effects` measures, as
comparisons between rows of the tables. On the published numbers, which come without an interval, a
comparison holds or does not; only of a still picture, whose scores follow from VBench's arithmetic,
some are known as a range. On ours it is paired by prompt and sample: it holds, or does not, where
the whole 95 % interval of the difference says so, and is not decided otherwise.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pusa.experiments import COLUMNS, published_key
from pusa.report.page import Number, score_cell, write_page
from pusa.report.study import NOT_VBENCH, Study
from pusa.score.arithmetic import BY_REFERENCE, METRICS, NAMES, still_picture
from pusa.score.intervals import FAILS, HOLDS, UNDECIDED, judge

STILL = "still"  # of `pusa.experiments.BOUNDS`
NOT_PUBLISHED, NOT_RUN = "no published number", "not run"
TITLE = "The paper's claims, on its numbers and on ours"
_NUMBER = r"(\d+(?:\.\d+)?)"
COMPARISON = re.compile(
    rf"(\S+) (?:([<>]) (\S+)(?: ([+-]) {_NUMBER})?|= (\S+) - {_NUMBER} \+ {_NUMBER})"
)


@dataclass(frozen=True)
class Comparison:
    """That ``left`` less ``right`` lies above one margin and below another, both in points."""

    left: str
    right: str
    above: float = -np.inf
    below: float = np.inf

    def __str__(self) -> str:
        if np.isfinite(self.above) and np.isfinite(self.below):
            return f"{self.left} = {self.right} - {-self.above:g} + {self.below:g}"
        relation, margin = ("<", self.below) if np.isinf(self.above) else (">", self.above)
        told = f" {'+' if margin > 0 else '-'} {abs(margin):g}" if margin else ""
        return f"{self.left} {relation} {self.right}{told}"

    @property
    def expected(self) -> str:
        """What the difference has to be, in words."""
        above, below = f"above {self.above:g}", f"below {self.below:g}"
        if np.isinf(self.below):
            return above
        return below if np.isinf(self.above) else f"{self.above:g} to {self.below:+g}"

    def judge(self, low: float, high: float) -> str:
        """The verdict on a difference that is known to lie from ``low`` to ``high``."""
        return judge(low, high, above=self.above, below=self.below)


def _parse(text: object) -> Comparison:
    found = COMPARISON.fullmatch(str(text))
    if found is None:
        raise ValueError(
            f"found {text!r}, expected a comparison as 'row > other + 0.5' or 'row = other - 1 + 1'"
        )
    left, relation, right, sign, margin, equal, less, more = found.groups()
    if equal:
        return Comparison(left, equal, -float(less), float(more))
    signed = float(f"{sign}{margin}") if margin else 0.0
    if relation == ">":
        return Comparison(left, right, above=signed)
    return Comparison(left, right, below=signed)


#: One comparison as it is written, or a list of them.
Comparisons = Annotated[
    list[Annotated[Comparison, BeforeValidator(_parse)]],
    BeforeValidator(lambda found: found if isinstance(found, list) else [found]),
    Field(min_length=1),
]


class _Statement(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    #: By column of the tables; ``dimensions`` stands for each of the nine.
    compare: dict[Literal["dimensions", *METRICS], Comparisons] = Field(min_length=1)

    @property
    def comparisons(self) -> list[tuple[str, Comparison]]:
        """Every comparison, with its column of `METRICS` or other measure."""
        return [
            (column, comparison)
            for key, comparisons in self.compare.items()
            for comparison in comparisons
            for column in (NAMES if key == "dimensions" else (key,))
        ]


class Claim(_Statement):
    """What the paper says, and the comparisons of which all, or most, have to hold."""

    claim: str
    source: str
    needs: Literal["all", "most"] = "all"

    def needed(self, comparisons: int) -> int:
        """How many of so many comparisons have to hold; it fails once no more as many can."""
        return comparisons // 2 + 1 if self.needs == "most" else comparisons

    def judge(self, verdicts: list[str]) -> str:
        """The claim's verdict from those of its comparisons; what is unknown may not matter."""
        needed = self.needed(len(verdicts))
        if verdicts.count(HOLDS) >= needed:
            return HOLDS
        if verdicts.count(FAILS) > len(verdicts) - needed:
            return FAILS
        return next((v for v in (NOT_RUN, NOT_PUBLISHED) if v in verdicts), UNDECIDED)


class Effect(_Statement):
    """What one thing does to our scores; it may also be measured by what is not published."""

    effect: str
    compare: dict[Literal["dimensions", *METRICS, *BY_REFERENCE], Comparisons] = Field(min_length=1)


class Claims(BaseModel):
    """Claims and effects, and the rows that they name."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    #: The cells of the experiments sheet that single a row out, by the row's name.
    rows: dict[str, Annotated[dict[Literal[COLUMNS], str], Field(min_length=1)]]
    claims: list[Claim] = Field(min_length=1)
    effects: list[Effect] = []

    @model_validator(mode="after")
    def _name_rows(self) -> "Claims":
        for statement in (*self.claims, *self.effects):
            for _, c in statement.comparisons:
                for name in {c.left, c.right} - self.rows.keys():
                    raise ValueError(f"'{c}' compares {name!r}, which is not among the rows")
        return self

    def find(
        self, name: str, table: pd.DataFrame, what: str = "the experiments sheet"
    ) -> dict | None:
        """The one row of a table that has the cells that the table knows of; None if there is none.

        Raises:
            ValueError: if there are several.
        """
        found = table
        for column, cell in self.rows[name].items():
            if column in table.columns:
                found = found[found[column].astype(str) == cell]  # numbers, in published tables
        if len(found) > 1:
            raise ValueError(
                f"claims row {name!r} stands for {len(found)} rows of {what}, expected one; "
                "give more of its cells"
            )
        return None if found.empty else found.iloc[0].to_dict()


def read_claims(file: str | Path) -> Claims:
    """Read and check the claims.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: that names the key, what was found and what was expected.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"claims {file} do not exist")
    try:
        return Claims.model_validate(yaml.safe_load(file.read_text()))
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: cannot be read as YAML ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part != "[key]")
        message = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        if first["type"] not in ("value_error", "missing"):
            message = f"found {first['input']!r}, {message}"
        raise ValueError(": ".join(filter(None, [str(file), key, message]))) from None


def evaluate_claims(
    claims: Claims,
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
        numbers ``published_left, published_right``, each with the ends of its range,
        ``published_left_low`` and so on, and the verdict ``published`` on them; our
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
    def printed(name: str) -> dict[str, tuple[float, float]] | None:
        if claims.rows[name].get("model") == STILL:
            return still_picture(table1)
        if "published" not in claims.rows[name]:
            return None
        found = claims.find(name, published, "the published tables")
        if found is None:
            raise ValueError(f"claims row {name!r}: the published tables have no such row")
        return {metric: (found[metric], found[metric]) for metric in METRICS}

    @cache
    def differences(left: str, right: str) -> dict | None:
        pair = [claims.find(name, study.experiments) for name in (right, left)]
        return None if None in pair else study.differences(*pair)

    scorer, rows = study.scorer, []
    for number, claim in enumerate(claims.claims, start=1):
        evaluated = [
            {"column": column, "comparison": str(c)}
            | _judge_published(column, c, printed(c.left), printed(c.right))
            | _judge_here(column, c, differences(c.left, c.right))
            for column, c in claim.comparisons
        ]
        about = {
            "number": number,
            **claim.model_dump(include={"claim", "source", "needs"}),
            "claim_published": claim.judge([row["published"] for row in evaluated]),
            "claim_here": claim.judge([row["here"] for row in evaluated]),
        }
        rows += [about | row | {"scorer": scorer} for row in evaluated]
    return pd.DataFrame(rows)


def _judge_published(column: str, c: Comparison, left: dict | None, right: dict | None) -> dict:
    (left_low, left_high), (right_low, right_high) = (
        (np.nan, np.nan) if row is None else row[column] for row in (left, right)
    )
    # As many decimals as are printed.
    low, high = round(left_low - right_high, 2), round(left_high - right_low, 2)
    verdict = c.judge(low, high)
    if np.isnan(low):
        verdict = NOT_PUBLISHED
    elif verdict == UNDECIDED and low == high:  # exactly on the margin
        verdict = FAILS
    return {
        "published_left": (left_low + left_high) / 2,
        "published_left_low": left_low,
        "published_left_high": left_high,
        "published_right": (right_low + right_high) / 2,
        "published_right_low": right_low,
        "published_right_high": right_high,
        "published": verdict,
    }


def _judge_here(column: str, c: Comparison, differences: dict | None) -> dict:
    if differences is None:
        return {"difference": np.nan, "low": np.nan, "high": np.nan, "here": NOT_RUN}
    found = differences[column]
    verdict = c.judge(found.low, found.high)
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
        "or most have to hold. Published numbers have no interval; those of a still picture follow "
        "from VBench's arithmetic, with the range that the unknown quality of the images leaves. "
        "Ours are paired by prompt and sample, with a 95 % bootstrap interval over prompts. Not "
        "decided: the interval includes the boundary between holding and not. Not run: a row has "
        "no scores. Margins in points, as in + 0.5, are ours, not the paper's; = is up to the "
        "first less and the second more. The intervals are not widened for the number of "
        "comparisons: of many, one may fail by chance; and they are too narrow where a kind has "
        "under ten prompts."
    ).strip()
    names = table["number"].astype(str) + ". " + table["claim"]
    firsts = ~table["number"].duplicated()
    claims = pd.DataFrame(
        {
            "claim": name,
            "source": rows["source"].iloc[0],
            "published": _count(rows["claim_published"].iloc[0], rows["published"]),
            "here": _count(rows["claim_here"].iloc[0], rows["here"]),
            "needs": f"{rows['needs'].iloc[0]} of {len(rows)}" if len(rows) > 1 else "",
        }
        for name, rows in table.groupby(names, sort=False)
    )
    comparisons = pd.DataFrame(
        {
            "claim": names.where(firsts, ""),  # once is enough
            "column": table["column"],
            "comparison": table["comparison"],
            "published left": _printed(table, "published_left"),
            "published right": _printed(table, "published_right"),
            "published": table["published"],
            "difference here": [
                score_cell(r.difference, r.low, r.high, sign="+") for r in table.itertuples()
            ],
            "here": table["here"],
        }
    )
    text = "Left and right are the rows of a comparison; the difference is left less right."
    write_page(title, [("", intro, claims), ("Comparisons", text, comparisons)], out)


def _printed(table: pd.DataFrame, side: str) -> list[Number | str]:
    """The published numbers of a side, with their range where they have one."""
    rows = zip(table[side], table[f"{side}_low"], table[f"{side}_high"], strict=True)
    return [score_cell(*(row if row[1] < row[2] else row[:1])) for row in rows]


def _count(verdict: str, verdicts: pd.Series) -> str:
    """A claim's verdict with the count of its comparisons that hold, where there are several."""
    known = verdicts.isin([HOLDS, FAILS, UNDECIDED]).any()
    if len(verdicts) == 1 or not known:
        return verdict
    return f"{verdict} ({(verdicts == HOLDS).sum()} of {len(verdicts)} hold)"
