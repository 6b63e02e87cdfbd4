import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pandas as pd
import pytest

from pusa.report.page import Number, score_cell, write_latex, write_page
from tests.browser import open_browser, open_page

HOSTILE = "<script>alert('x')</script> & \"quotes\" | *a* `b` $c$ 50% #1 x_y ^ ~ {d} \\e"


@pytest.fixture
def page(tmp_path):
    """A function that writes a page and returns its Markdown, HTML and LaTeX."""

    def write(title, sections):
        write_page(title, sections, tmp_path / "page")
        parts = {heading: table for heading, _, table in sections}
        write_latex(title, sections[0][1], parts, tmp_path / "page")
        return ((tmp_path / f"page.{kind}").read_text() for kind in ("md", "html", "tex"))

    return write


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.cells = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells and self.tags[-1] in ("td", "button"):
            self.cells[-1] += data


def test_html_is_escaped(page):
    table = pd.DataFrame([{HOSTILE: HOSTILE, "source": HOSTILE}])
    _, html, _ = page(HOSTILE, [(HOSTILE, HOSTILE, table)])
    reader = Reader(html)
    assert reader.tags.count("script") == 1  # the page's own
    assert [cell.strip() for cell in reader.cells] == [HOSTILE, "source", HOSTILE, HOSTILE]


def test_markdown_is_escaped(page):
    markdown, _, _ = page(
        "Title", [("", HOSTILE, pd.DataFrame([{"a": HOSTILE, "b": "two\nlines"}]))]
    )
    text, *table = [line for line in markdown.splitlines()[1:] if line]
    assert not re.search(r"(?<!\\)[<|*`]", text)
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in table] == [3, 3, 3]
    assert "two lines" in table[2]


def test_latex_is_escaped(page):
    _, _, latex = page(HOSTILE, [("", HOSTILE, pd.DataFrame([{"a": HOSTILE, "b": "[first"}]))])
    caption = next(line for line in latex.splitlines() if "caption" in line).removesuffix(r"\\")
    plain = re.sub(r"\\text[a-z]+\{\}|\\[&%$#_{}]|\\caption", "", caption)
    assert not re.search(r"[&%$#_^~\\<>|]", plain)
    assert latex.count(r"50\% \#1 x\_y \textasciicircum{} \textasciitilde{} \{d\}") == 3
    assert r"{[}first \\" in latex  # a bare bracket would be an option of the line above


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(page, tmp_path):
    cells = {"model": [HOSTILE, "[b"], "Total": [Number("-1.00", "[-2.00, -0.50]", True), ""]}
    page(HOSTILE, [("(a)", HOSTILE, pd.DataFrame(cells)), ("(b)", "b", pd.DataFrame(cells))])
    document = (
        r"\documentclass{article}\usepackage{booktabs,longtable,pdflscape}"
        r"\begin{document}\input{page.tex}\end{document}"
    )
    (tmp_path / "document.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_numbers(page):
    table = pd.DataFrame(
        {
            "model": ["a-b", "c"],
            "Total": [Number("-1.25", "[-2.00, -0.50]"), Number("87.32", best=True)],
        }
    )
    markdown, html, latex = page("Title", [("", "text", table)])
    assert "| a-b     | -1.25 [-2.00, -0.50] |" in markdown
    assert "| **87.32**            |" in markdown
    assert '<td class="number">-1.25<small>[-2.00, -0.50]</small></td>' in html
    assert '<td class="number"><b>87.32</b></td>' in html
    assert '<th scope="col" aria-sort="none" class="number"><button>Total</button></th>' in html
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
        ((5.0, math.nan, math.nan), {}, Number("5.00")),
        ((math.nan, math.nan, math.nan), {"best": True}, ""),
    ],
)
def test_score_cell(arguments, options, expected):
    assert score_cell(*arguments, **options) == expected


def test_our_rows_are_highlighted(page):
    table = pd.DataFrame({"model": list("abc"), "source": ["published", "here", "here - main"]})
    _, html, _ = page("Title", [("", "text", table)])
    assert re.findall(r"<tr(?: class=\"(\w+)\")?><td>(.)", html) == [
        ("published", "a"),
        ("here", "b"),
        ("", "c"),
    ]


def test_sections_in_order(page):
    table = pd.DataFrame({"x": ["1.50"]})
    markdown, html, latex = page("Title", [("", "intro", table), ("Losses", "more", table)])
    for text in (markdown, html):
        places = [text.index(words) for words in ("intro", "Losses", "more")]
        assert places == sorted(places)
    assert markdown.startswith("# Title\n")
    assert "## Losses" in markdown
    assert markdown.count("| 1.50 |") == 2  # shown as it is, not as 1.5
    assert html.count("<h2>") == 1  # an empty heading is left out
    # one table in LaTeX, with one caption, and a heading over the rows of the second part
    assert latex.count(r"\begin{longtable}") == latex.count(r"\end{longtable}") == 1
    assert latex.count(r"\caption") == 1 and r"\caption{Title. intro}" in latex
    assert latex.index("1.50") < latex.index(r"\multicolumn{1}{l}{Losses}") < latex.rindex("1.50")


def test_section_without_a_table(tmp_path):
    sections = [("", "result", None), ("Rest", "more", pd.DataFrame({"x": ["1.50"]}))]
    write_page("Title", sections, tmp_path / "page")
    assert (tmp_path / "page.md").read_text().startswith("# Title\n\nresult\n\n## Rest\n\nmore\n")
    assert Reader((tmp_path / "page.html").read_text()).tags.count("table") == 1


def test_click_on_a_name_sorts(tmp_path):
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
    write_page("Title", [("", "", table)], tmp_path / "page")
    with (
        open_browser() as browser,
        open_page(browser, (tmp_path / "page.html").as_uri()) as page,
    ):

        def names():
            return page.locator("td:first-child").all_inner_texts()

        pair = ["b", "ours b", ""]
        as_written = names()
        assert as_written == list(table["name"])
        total = page.get_by_role("columnheader", name="Total")
        total.get_by_role("button").click()
        assert names() == [
            "d",
            *pair,
            "a",
            "alone",
            "c",
        ]  # as numbers; without a published one last
        assert total.get_attribute("aria-sort") == "ascending"
        page.keyboard.press("Enter")  # the button has the focus
        assert names() == ["a", *pair, "d", "alone", "c"]
        assert total.get_attribute("aria-sort") == "descending"
        page.keyboard.press("Enter")
        assert names() == as_written
        page.get_by_role("button", name="run").click()
        assert names() == ["d", "a", *pair, "alone", "c"]  # not by ours under b
        assert total.get_attribute("aria-sort") == "none"


def test_a_wide_table(tmp_path):
    """A name is clicked anywhere in its cell; the first column stays in sight."""
    table = pd.DataFrame([{"name": "first", **{f"column {n}": "a b c " * 9 for n in range(40)}}])
    write_page("Title", [("", "", table)], tmp_path / "page")
    with (
        open_browser() as browser,
        open_page(browser, (tmp_path / "page.html").as_uri()) as page,
    ):
        page.get_by_role("columnheader", name="name").click(position={"x": 2, "y": 2})
        assert page.locator("th").first.get_attribute("aria-sort") == "ascending"
        page.evaluate("window.scrollTo(2000, 0)")
        assert page.evaluate("window.scrollX") > 1000
        assert page.locator("td").first.bounding_box()["x"] >= 0


def test_rows_under_an_empty_first_cell_stay(tmp_path):
    table = pd.DataFrame({"claim": ["first", "", "second"], "value": ["5", "1", "3"]})
    write_page("Title", [("", "", table)], tmp_path / "page")
    with (
        open_browser() as browser,
        open_page(browser, (tmp_path / "page.html").as_uri()) as page,
    ):
        page.get_by_role("button", name="value").click()
        assert page.locator("td:last-child").all_inner_texts() == ["3", "5", "1"]
