"""Tables as pages: Markdown for the repository, HTML for the report, LaTeX for a paper."""

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

STYLE = """
:root {
  color-scheme: light dark;
  --text: light-dark(#222, #ddd); --faint: light-dark(#666, #999);
  --page: light-dark(#fff, #181a1b); --line: light-dark(#ddd, #3a3d3f);
  --ours: light-dark(#e8f1fa, #1c3145);
}
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em; color: var(--text);
  background: var(--page); }
p { max-width: 60em; }
h1 + p:has(+ p) { font-size: 1.2em; }
table { border-collapse: separate; border-spacing: 0; }
th, td { padding: .25em .5em; text-align: left; border-bottom: 1px solid var(--line); }
td { vertical-align: top; }
th { position: sticky; top: 0; z-index: 1; background: var(--page); }
th button { font: inherit; text-align: inherit; color: inherit; background: none; border: 0;
  padding: 0; cursor: pointer; text-decoration: underline dotted var(--faint); }
th button::before { content: ""; position: absolute; inset: 0; }
th[aria-sort=ascending] button::after { content: "\\a0\\2191"; }
th[aria-sort=descending] button::after { content: "\\a0\\2193"; }
.number { text-align: right; }
td:first-child, th:first-child { min-width: 9em; position: sticky; left: 0;
  background: var(--page); }
th:first-child { z-index: 2; }
tr.here td { background: var(--ours); }
small { display: block; color: var(--faint); white-space: nowrap; }
@media (max-width: 45em) {
  body { margin: 1em; }
  table { display: block; overflow-x: auto; }
}
"""
# Rows that belong together are one tbody, which moves as a whole.
SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const asWritten = [...table.tBodies];
  const heads = [...table.tHead.rows[0].cells];
  const paired = table.querySelector(".published") !== null;
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const order = {none: "ascending", ascending: "descending", descending: "none"}[head.ariaSort];
    const numeric = head.className === "number";
    const value = body => {
      const rows = paired ? body.querySelectorAll(".published") : body.rows;
      const texts = [...rows].map(row => row.cells[column].textContent.trim());
      const text = texts.find(Boolean) ?? "";
      return numeric && text ? parseFloat(text.replaceAll(",", "")) : text;
    };
    const compare = (a, b) => numeric ? a - b : a.localeCompare(b, "en", {numeric: true});
    const sign = order === "descending" ? -1 : 1;
    const sorted = order === "none" ? asWritten : asWritten
      .map(body => [value(body), body])
      .sort(([a], [b]) => (a === "") - (b === "") || (a === "" ? 0 : sign * compare(a, b)))
      .map(([, body]) => body);
    heads.forEach(other => { other.ariaSort = other === head ? order : "none"; });
    table.append(...sorted);
  }));
}
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


Sections = list[tuple[str, str, pd.DataFrame | None]]


def write_page(title: str, sections: Sections, out: Path) -> None:
    """Write sections of (heading, text, table) to ``out`` with the suffixes .md and .html.

    A heading may be empty, a table None. Cells are shown as they are; a row whose column ``source``
    says ``here`` is highlighted. In HTML, a click on a column's name sorts by it: upwards,
    downwards, as written; empty cells last. Rows that belong together stay so: a published row,
    ours under it, and their difference, by the published cell alone, as ours may be on another
    scale; or rows under one whose first cell they leave empty, by the first value that they have.
    """
    markdown, html = [f"# {_markdown(title)}"], [f"<h1>{escape(title)}</h1>"]
    for heading, text, table in sections:
        if heading:
            markdown.append(f"## {_markdown(heading)}")
            html.append(f"<h2>{escape(heading)}</h2>")
        markdown.append(_markdown(text))
        html.append(f"<p>{escape(text)}</p>")
        if table is not None:
            markdown.append(_markdown_table(table))
            html.append(_html_table(table))
    out.with_suffix(".md").write_text("\n\n".join(markdown) + "\n")
    out.with_suffix(".html").write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style>\n" + "\n".join(html) + f"\n<script>{SCRIPT}</script></html>\n"
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
    marks = [' class="number"' if number else "" for number in numbers]
    head = "".join(
        f'<th scope="col" aria-sort="none"{mark}><button>{_html(name)}</button></th>'
        for mark, name in zip(marks, table.columns, strict=True)
    )
    bodies: list[list[str]] = []
    sources: set[str] = set()  # of the rows in the last body
    for row in table.to_dict("records"):
        source = str(row.get("source", ""))
        if not bodies or not _belongs(row, source, sources):
            bodies.append([])
            sources = set()
        sources.add(source)
        cells = zip(marks, map(_html, row.values()), strict=True)
        line = "".join(f"<td{mark}>{cell}</td>" for mark, cell in cells)
        kind = f' class="{source}"' if source in ("published", "here") else ""
        bodies[-1].append(f"<tr{kind}>{line}</tr>")
    rows = "\n".join("<tbody>" + "\n".join(body) + "</tbody>" for body in bodies)
    return f"<table><thead><tr>{head}</tr></thead>\n{rows}\n</table>"


def _belongs(row: dict, source: str, above: set[str]) -> bool:
    """Whether a row goes on with those above it, which have these sources."""
    if source == "here":
        return "published" in above and "here" not in above
    return source.startswith("here - ") or next(iter(row.values())) == ""


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
