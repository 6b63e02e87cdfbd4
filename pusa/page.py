"""Tables as pages: Markdown for the repository, HTML for the report."""

from html import escape
from pathlib import Path

import pandas as pd

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em; color: #222; }
p { max-width: 60em; }
table { border-collapse: collapse; }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd; }
th { position: sticky; top: 0; background: #fff; }
td:first-child, th:first-child { text-align: left; }
tr.here td { background: #e8f1fa; font-weight: 600; }
"""


def write_page(title: str, sections: list[tuple[str, str, pd.DataFrame]], out: Path) -> None:
    """Write sections of (heading, text, table) to ``out`` with the suffixes .md and .html.

    Cells are shown as they are; a row whose column ``source`` says ``here`` is highlighted.
    """
    markdown, html = [f"# {title}"], [f"<h1>{escape(title)}</h1>"]
    for heading, text, table in sections:
        if heading:
            markdown.append(f"## {heading}")
            html.append(f"<h2>{escape(heading)}</h2>")
        markdown += [text, table.to_markdown(index=False, disable_numparse=True)]
        html += [f"<p>{escape(text)}</p>", _html_table(table)]
    out.with_suffix(".md").write_text("\n\n".join(markdown) + "\n")
    out.with_suffix(".html").write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style>\n" + "\n".join(html) + "\n</html>\n"
    )


def _html_table(table: pd.DataFrame) -> str:
    def line(values, tag: str) -> str:
        return "".join(f"<{tag}>{escape(str(v))}</{tag}>" for v in values)

    rows = [
        f'<tr class="{escape(str(row.get("source", "")))}">{line(row.values(), "td")}</tr>'
        for row in table.to_dict("records")
    ]
    return (
        f"<table><thead><tr>{line(table.columns, 'th')}</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody></table>"
    )
