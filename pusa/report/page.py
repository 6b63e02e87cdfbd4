"""Tables as pages: Markdown for the repository, HTML for the report, LaTeX for a paper."""

import re
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd

_LATEX_ESCAPES = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\n": " "}
    | {"[": "{[}"}  # after a line's end it would open an argument
)


@dataclass(frozen=True)
class Number:
    """A table cell that holds a formatted number; every other cell is shown as plain text."""

    text: str
    interval: str = ""  # shown smaller, beside or under the number
    best: bool = False  # shown bold

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".strip()


def score_cell(
    value: float,
    low: float = np.nan,
    high: float = np.nan,
    *,
    sign: str = "",
    best: bool = False,
) -> Number | str:
    """A score with two decimals and its interval, or nothing for NaN; ``sign`` may be ``+``."""
    if np.isnan(value):
        return ""
    interval = "" if np.isnan(low) else f"[{low:{sign}.2f}, {high:{sign}.2f}]"
    return Number(f"{value:{sign}.2f}", interval, best)


def two_columns(facts: dict) -> pd.DataFrame:
    """Facts by their name as a table."""
    return pd.DataFrame({"what": list(facts), "value": [str(fact) for fact in facts.values()]})


Sections = list[tuple[str, str, pd.DataFrame | None]]


def write_page(title: str, sections: Sections, out: Path) -> None:
    """Write sections of (heading, text, table) to ``out`` with the suffixes .md and .html.

    A heading may be empty, a table None. Cells are shown as they are; a row whose column ``source``
    says ``here`` is highlighted. In HTML, a click on a column's name sorts by it: upwards,
    downwards, as written; empty cells last. Rows that belong together stay so: a published row,
    ours under it, and their difference, by the published cell alone, as ours may be on another
    scale; or rows under one whose first cell they leave empty, by the first value that they have.
    """
    for suffix in (".md", ".html"):
        page = TEMPLATES.get_template(f"page{suffix}").render(title=title, sections=sections)
        out.with_suffix(suffix).write_text(page)


def write_latex(title: str, text: str, parts: dict[str, pd.DataFrame], out: Path) -> None:
    """Write tables of the same columns as one ``longtable`` to ``out`` with the suffix .tex.

    It takes landscape pages of a one-column document that loads booktabs, longtable and pdflscape.

    Args:
        text: the caption, after the title.
        parts: tables by the heading that stands above their rows, which may be empty.
    """
    columns = list(next(iter(parts.values())))
    template = TEMPLATES.get_template("longtable.tex")
    table = template.render(caption=f"{title}. {text}", columns=columns, parts=parts)
    out.with_suffix(".tex").write_text(table)


def _markdown(value) -> str:
    """One line in which nothing of the value's own is read as Markdown or HTML."""
    if isinstance(value, Number) and value.best:
        return f"**{value.text}** {value.interval}".strip()
    return re.sub(r"([\\`*<|])", r"\\\1", str(value)).replace("\n", " ")


def _markdown_table(table: pd.DataFrame) -> str:
    shown = table.rename(columns=_markdown).map(_markdown)
    return shown.to_markdown(index=False, disable_numparse=True)


def _number_columns(table: pd.DataFrame) -> list[str]:
    def is_number(value) -> bool:
        return isinstance(value, Number) or re.fullmatch(r"[+-]?[\d.,]*", str(value)) is not None

    return [name for name in table.columns if all(map(is_number, table[name]))]


def _bodies(table: pd.DataFrame) -> list[list[dict]]:
    """Rows that belong together."""
    bodies: list[list[dict]] = []
    above = ""  # source of the last row
    for row in table.to_dict("records"):
        source = str(row.get("source", ""))
        goes_on = source.startswith("here - ") or next(iter(row.values())) == ""
        if not bodies or not (above == "published" if source == "here" else goes_on):
            bodies.append([])
        bodies[-1].append(row)
        above = source
    return bodies


def _latex(value) -> str:
    if isinstance(value, Number):
        number = _latex(value.text).replace("-", "$-$")  # not a hyphen
        return rf"\textbf{{{number}}}" if value.best else number
    return str(value).translate(_LATEX_ESCAPES)


def _latex_interval(value) -> str:
    """The ends of an interval one above the other, or the table would be twice as wide."""
    if not isinstance(value, Number) or not value.interval:
        return ""
    ends = _latex(Number(value.interval)).replace(", ", r",\\")
    return rf"{{\tiny\shortstack[r]{{{ends}}}}}"


#: Of all pages; HTML is escaped by itself, Markdown and LaTeX by these filters.
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("pusa.report"),
    autoescape=jinja2.select_autoescape(),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters |= {
    "markdown": _markdown,
    "markdown_table": _markdown_table,
    "number_columns": _number_columns,
    "bodies": _bodies,
    "latex": _latex,
    "latex_interval": _latex_interval,
}
