"""Tables as pages: Markdown for the repository, HTML for the report, LaTeX for a paper."""

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em; color: #222; }
p { max-width: 60em; }
table { border-collapse: collapse; }
th, td { padding: .25em .5em; text-align: left; border-bottom: 1px solid #ddd; }
td { vertical-align: top; }
th { position: sticky; top: 0; background: #fff; }
.number { text-align: right; }
td:first-child, th:first-child { min-width: 9em; }
tr.here td { background: #e8f1fa; }
small { display: block; color: #666; white-space: nowrap; }
"""
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


Sections = list[tuple[str, str, pd.DataFrame]]


def write_page(title: str, sections: Sections, out: Path) -> None:
    """Write sections of (heading, text, table) to ``out`` with the suffixes .md and .html.

    Cells are shown as they are; a row whose column ``source`` says ``here`` is highlighted.
    """
    markdown, html = [f"# {_markdown(title)}"], [f"<h1>{escape(title)}</h1>"]
    for heading, text, table in sections:
        if heading:
            markdown.append(f"## {_markdown(heading)}")
            html.append(f"<h2>{escape(heading)}</h2>")
        markdown += [_markdown(text), _markdown_table(table)]
        html += [f"<p>{escape(text)}</p>", _html_table(table)]
    out.with_suffix(".md").write_text("\n\n".join(markdown) + "\n")
    out.with_suffix(".html").write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style>\n" + "\n".join(html) + "\n</html>\n"
    )


def write_latex(title: str, text: str, parts: dict[str, pd.DataFrame], out: Path) -> None:
    """Write tables of the same columns as one ``longtable`` to ``out`` with the suffix .tex.

    It takes landscape pages of a one-column document that loads booktabs, longtable and pdflscape.

    Args:
        text: the caption, after the title.
        parts: tables by the heading that stands above their rows, which may be empty.
    """
    columns = next(iter(parts.values())).columns
    head = [r"\toprule", " & ".join(map(_latex, columns)) + r" \\", r"\midrule"]
    lines = [
        r"% Needs \usepackage{booktabs,longtable,pdflscape}.",
        r"\begin{landscape}",
        r"\scriptsize",
        r"\setlength{\tabcolsep}{2pt}",
        r"\setlength{\LTcapwidth}{\linewidth}",
        rf"\begin{{longtable}}{{l{'r' * (len(columns) - 1)}}}",
        rf"\caption{{{_latex(f'{title}. {text}')}}}\\",
        *(*head, r"\endfirsthead"),
        *(*head, r"\endhead"),
        *(r"\bottomrule", r"\endfoot"),
    ]
    for place, (heading, table) in enumerate(parts.items()):
        lines += [r"\midrule"] if place else []
        if heading:
            lines.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{{_latex(heading)}}} \\*")
        lines += _latex_rows(table)
    lines += [r"\end{longtable}", r"\end{landscape}"]
    out.with_suffix(".tex").write_text("\n".join(lines) + "\n")


def _markdown(value) -> str:
    """One line in which nothing of the value's own is read as Markdown or HTML."""
    if isinstance(value, Number):
        text = _markdown(value.text)
        text = f"**{text}**" if value.best else text
        return f"{text} {_markdown(value.interval)}".strip()
    return re.sub(r"([\\`*<|])", r"\\\1", str(value)).replace("\n", " ")


def _markdown_table(table: pd.DataFrame) -> str:
    shown = table.rename(columns=_markdown).map(_markdown)
    return shown.to_markdown(index=False, disable_numparse=True)


def _html(value) -> str:
    if isinstance(value, Number):
        text = escape(value.text)
        text = f"<b>{text}</b>" if value.best else text
        return text + (f"<small>{escape(value.interval)}</small>" if value.interval else "")
    return escape(str(value))


def _html_table(table: pd.DataFrame) -> str:
    numbers = [all(map(_is_number, table[column])) for column in table.columns]

    def line(values, tag: str) -> str:
        marks = [' class="number"' if number else "" for number in numbers]
        cells = zip(marks, map(_html, values), strict=True)
        return "".join(f"<{tag}{mark}>{cell}</{tag}>" for mark, cell in cells)

    mark = ' class="here"'
    rows = [
        f"<tr{mark if row.get('source') == 'here' else ''}>{line(row.values(), 'td')}</tr>"
        for row in table.to_dict("records")
    ]
    return (
        f"<table><thead><tr>{line(table.columns, 'th')}</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody></table>"
    )


def _is_number(value) -> bool:
    return isinstance(value, Number) or re.fullmatch(r"[+-]?[\d.,]*", str(value)) is not None


def _latex(value) -> str:
    if isinstance(value, Number):
        text = _latex_minus(value.text)
        return rf"\textbf{{{text}}}" if value.best else text
    return str(value).translate(_LATEX_ESCAPES)


def _latex_minus(number: str) -> str:
    return _latex(number).replace("-", "$-$")  # not a hyphen


def _latex_rows(table: pd.DataFrame) -> list[str]:
    lines = []
    for row in table.itertuples(index=False, name=None):
        intervals = [v.interval if isinstance(v, Number) else "" for v in row]
        line = " & ".join(map(_latex, row))
        if not any(intervals):
            lines.append(rf"{line} \\")
            continue
        # The ends of intervals have lines of their own, or the table would be twice as wide.
        ends = [_latex_minus(i).replace(", ", r",\\") for i in intervals]
        small = [rf"{{\tiny\shortstack[r]{{{end}}}}}" if end else "" for end in ends]
        lines += [rf"{line} \\*", " & ".join(small) + r" \\"]
    return lines
