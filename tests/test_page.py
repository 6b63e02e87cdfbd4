from html.parser import HTMLParser

import pandas as pd
import pytest

from pusa.page import write_page

HOSTILE = "<script>alert('x')</script> & \"quotes\""


@pytest.fixture
def page(tmp_path):
    """A function that writes a page and returns its Markdown and HTML."""

    def write(title, sections):
        write_page(title, sections, tmp_path / "page")
        return ((tmp_path / f"page.{kind}").read_text() for kind in ("md", "html"))

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
        if self.cells and self.tags[-1] in ("td", "th"):
            self.cells[-1] += data


def test_everything_is_escaped(page):
    table = pd.DataFrame([{HOSTILE: HOSTILE, "source": HOSTILE}])
    _, html = page(HOSTILE, [(HOSTILE, HOSTILE, table)])
    reader = Reader(html)
    assert "script" not in reader.tags
    assert [cell.strip() for cell in reader.cells] == [HOSTILE, "source", HOSTILE, HOSTILE]


def test_our_rows_are_highlighted(page):
    table = pd.DataFrame({"model": ["a", "b"], "source": ["published", "here"]})
    _, html = page("Title", [("", "text", table)])
    assert html.count('<tr class="here">') == 1
    assert html.index('<tr class="published">') < html.index('<tr class="here">')


def test_sections_in_order(page):
    table = pd.DataFrame({"x": ["1.50"]})
    markdown, html = page("Title", [("", "intro", table), ("Losses", "more", table)])
    for text in (markdown, html):
        places = [text.index(words) for words in ("intro", "Losses", "more")]
        assert places == sorted(places)
    assert markdown.startswith("# Title\n")
    assert "## Losses" in markdown
    assert markdown.count("| 1.50 |") == 2  # shown as it is, not as 1.5
    assert html.count("<h2>") == 1  # an empty heading is left out
