import math
import re
import shutil
import subprocess
from html import unescape

import pandas as pd
import pytest

from pusa.report.page import Number, score_cell, write_latex, write_page
from tests.browser import open_page

HOSTILE = "<script>alert('x')</script> & \"quotes\" | *a* `b` $c$ 50% #1 x_y ^ ~ {d} \\e"


@pytest.fixture
def write(tmp_path):
    """A function that writes a page and returns its Markdown, HTML and LaTeX."""

    def call(title, sections):
        write_page(title, sections, tmp_path / "page")
        parts = {heading: table for heading, _, table in sections if table is not None}
        write_latex(title, sections[0][1], parts, tmp_path / "page")
        return ((tmp_path / f"page.{kind}").read_text() for kind in ("md", "html", "tex"))

    return call


def test_html_is_escaped(write):
    table = pd.DataFrame([{HOSTILE: HOSTILE, "source": HOSTILE}])
    _, html, _ = write(HOSTILE, [(HOSTILE, HOSTILE, table)])
    assert html.count("<script>") == 1  # the page's own
    # two titles, heading, text, the column's name and two cells
    assert unescape(html).count(HOSTILE) == 7


def test_markdown_is_escaped(write):
    table = pd.DataFrame([{"a": HOSTILE, "b": "two\nlines"}])
    markdown, _, _ = write("Title", [("", HOSTILE, table)])
    text, *table = [line for line in markdown.splitlines()[1:] if line]
    assert not re.search(r"(?<!\\)[<|*`]", text)
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in table] == [3, 3, 3]
    assert "two lines" in table[2]


def test_latex_is_escaped(write):
    _, _, latex = write(HOSTILE, [("", HOSTILE, pd.DataFrame([{"a": HOSTILE, "b": "[first"}]))])
    caption = next(line for line in latex.splitlines() if "caption" in line).removesuffix(r"\\")
    plain = re.sub(r"\\text[a-z]+\{\}|\\[&%$#_{}]|\\caption", "", caption)
    assert not re.search(r"[&%$#_^~\\<>|]", plain)
    assert latex.count(r"50\% \#1 x\_y \textasciicircum{} \textasciitilde{} \{d\}") == 3
    assert r"{[}first \\" in latex  # a bare bracket would be an option of the line above


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(write, tmp_path):
    cells = {"model": [HOSTILE, "[b"], "Total": [Number("-1.00", "[-2.00, -0.50]", True), ""]}
    write(HOSTILE, [("(a)", HOSTILE, pd.DataFrame(cells)), ("(b)", "b", pd.DataFrame(cells))])
    document = (
        r"\documentclass{article}\usepackage{booktabs,longtable,pdflscape}"
        r"\begin{document}\input{page.tex}\end{document}"
    )
    (tmp_path / "document.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_numbers(write):
    table = pd.DataFrame(
        {
            "model": ["a-b", "c"],
            "Total": [Number("-1.25", "[-2.00, -0.50]"), Number("87.32", best=True)],
        }
    )
    markdown, html, latex = write("Title", [("", "text", table)])
    assert "| a-b     | -1.25 [-2.00, -0.50] |" in markdown
    assert "| **87.32**            |" in markdown
    assert '<td class="number">-1.25<small>[-2.00, -0.50]</small></td>' in html
    assert '<td class="number"><b>87.32</b></td>' in html
    lines = latex.splitlines()
    at = lines.index(r"a-b & $-$1.25 \\*")
    assert lines[at + 1] == r" & {\tiny\shortstack[r]{{[}$-$2.00,\\$-$0.50]}} \\"
    assert lines[at + 2] == r"c & \textbf{87.32} \\"


@pytest.mark.parametrize(
    ("arguments", "options", "expected"),
    [
        ((87.316, 86.0, 88.449), {}, Number("87.32", "[86.00, 88.45]")),
        ((0.5, -0.25, 1.25), {"sign": "+"}, Number("+0.50", "[-0.25, +1.25]")),
        ((99.0,), {"best": True}, Number("99.00", "", True)),
        ((math.nan, math.nan, math.nan), {"best": True}, ""),
    ],
)
def test_score_cell(arguments, options, expected):
    assert score_cell(*arguments, **options) == expected


def test_sections_in_order(write):
    table = pd.DataFrame({"x": ["1.50"]})
    sections = [("", "intro", table), ("Losses", "more", table), ("Rest", "less", None)]
    markdown, html, latex = write("Title", sections)
    assert markdown == (
        "# Title\n\nintro\n\n| x    |\n|:-----|\n| 1.50 |\n\n"  # shown as it is, not as 1.5
        "## Losses\n\nmore\n\n| x    |\n|:-----|\n| 1.50 |\n\n## Rest\n\nless\n"
    )
    places = [html.index(words) for words in ("intro", "Losses", "more", "Rest", "less")]
    assert places == sorted(places)
    assert html.count("<h2>") == html.count("<table ") == 2
    # one table in LaTeX, with one caption, and a heading over the rows of the second part
    assert latex.count(r"\begin{longtable}") == latex.count(r"\end{longtable}") == 1
    assert latex.count(r"\caption") == 1 and r"\caption{Title. intro}" in latex
    assert latex.index("1.50") < latex.index(r"\multicolumn{1}{l}{Losses}") < latex.rindex("1.50")


@pytest.fixture
def show(browser, tmp_path):
    """A function that opens a page with a table."""

    def call(table):
        write_page("Title", [("", "", table)], tmp_path / "page")
        return open_page(browser, (tmp_path / "page.html").as_uri())

    return call


def test_click_on_a_name_sorts(show):
    table = pd.DataFrame(
        [
            ("b", "published", "9.50", ""),
            ("ours b", "here", Number("1.00", "[0.50, 1.50]"), "run 10"),
            ("", "here - main", Number("+70.00"), ""),
            ("alone", "here", Number("1,000.00"), "run 9"),  # beside no published row
            ("c", "published", "", ""),
            ("a", "published", "10.25", "run 10"),
            ("d", "published", "-3.00", "run 8"),
        ],
        columns=["name", "source", "Total", "run"],
    )
    with show(table) as page:

        def names():
            return page.locator("td:first-child").all_inner_texts()

        pair = ["b", "ours b", ""]
        as_written = names()
        assert as_written == list(table["name"])
        total = page.get_by_role("columnheader", name="Total")
        total.get_by_role("button").click()
        # as numbers; without a published one last
        assert names() == ["d", *pair, "a", "alone", "c"]
        assert total.get_attribute("aria-sort") == "ascending"
        page.keyboard.press("Enter")  # the button has the focus
        assert names() == ["a", *pair, "d", "alone", "c"]
        assert total.get_attribute("aria-sort") == "descending"
        page.keyboard.press("Enter")
        assert names() == as_written
        page.get_by_role("button", name="run").click()
        assert names() == ["d", "a", *pair, "alone", "c"]  # not by ours under b
        assert total.get_attribute("aria-sort") == "none"


def test_our_rows_are_highlighted(show):
    table = pd.DataFrame({"model": list("abc"), "source": ["published", "here", "here - main"]})
    with show(table) as page:
        colours = page.locator("td:last-child").evaluate_all(
            "cells => cells.map(cell => getComputedStyle(cell).backgroundColor)"
        )
    assert colours[0] == colours[2] != colours[1]


def test_a_wide_table(show):
    """A name is clicked anywhere in its cell; header and first column stay, the page does not move.

    Of the columns up to the source, which tell a row's setting, those stay that leave half of the
    room.
    """
    row = {"group": "a", "rank": "512", "steps": "10", "source": "here"}
    table = pd.DataFrame([row | {f"column {n}": "a b c " * 9 for n in range(40)}] * 50)
    with show(table) as page:
        page.get_by_role("columnheader", name="group").click(position={"x": 2, "y": 2})
        assert page.locator("th").first.get_attribute("aria-sort") == "ascending"
        for width, kept in ((1200, 4), (420, 3), (180, 1)):
            page.set_viewport_size({"width": width, "height": 600})
            page.wait_for_function(f"document.querySelectorAll('th.kept').length === {kept}")
            page.locator(".table").evaluate("table => table.scrollTo(2000, 1000)")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            place = page.locator(".table").bounding_box()
            heads = [head.bounding_box() for head in page.locator("th.kept").all()]
            cells = page.locator("tbody:nth-of-type(40) td.kept").all()
            cells = [cell.bounding_box() for cell in cells]
            left = place["x"]
            for head, cell in zip(heads, cells, strict=True):
                assert head["x"] == cell["x"] == pytest.approx(left, abs=1)
                assert head["y"] == pytest.approx(place["y"], abs=1) and cell["y"] > head["y"]
                left += head["width"]
            assert left - place["x"] <= max(place["width"] / 2, heads[0]["width"])


def test_rows_under_an_empty_first_cell_stay(show):
    table = pd.DataFrame({"claim": ["first", "", "second"], "value": ["5", "1", "3"]})
    with show(table) as page:
        page.get_by_role("button", name="value").click()
        assert page.locator("td:last-child").all_inner_texts() == ["3", "5", "1"]
