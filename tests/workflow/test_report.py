"""The report of a small run, opened in a browser and used."""

import pytest

from tests.browser import open_browser, open_page
from tests.mini import snakemake, write_mini

pytestmark = pytest.mark.slow

OVERVIEW, TABLES, VIDEOS = "0. Overview", "1. Tables", "4. Videos"
CATEGORIES = [OVERVIEW, TABLES, "2. The paper's claims", "3. Figures", VIDEOS, "5. Provenance"]
LOADED = "() => [...document.querySelectorAll('video')].every(video => video.readyState >= 2)"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report's address."""
    results = tmp_path_factory.mktemp("report") / "results"
    config = write_mini(results)
    for arguments in ([], ["--report", str(results / "report.html")]):
        done = snakemake(config, *arguments)
        assert done.returncode == 0, done.stdout[-4000:]
    return (results / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser, report):
    with open_page(browser, report, viewport={"width": 1400, "height": 900}) as page:
        yield page


def choose(page, category):
    """Click on a category of the menu; its results are then listed beside an eye each."""
    if not page.get_by_text(CATEGORIES[-1], exact=True).is_visible():
        page.get_by_role("link", name="Results", exact=True).click()
    page.get_by_role("link", name=category).click()
    return page.locator("table.table-auto tbody tr")


def show(page, category, label):
    """Click on the eye of an HTML result; the page that it opens."""
    row = choose(page, category).filter(has_text=label)
    row.locator("a").first.click()
    frame = page.locator("iframe").element_handle().content_frame()
    frame.wait_for_load_state()
    return frame


def test_overview_is_where_the_first_page_says(page):
    assert "0. Overview" in page.locator("p strong").all_inner_texts()
    # and it is the first of the results
    listed = [name for name in page.locator("nav li").all_inner_texts() if name in CATEGORIES]
    assert listed == CATEGORIES
    frame = show(page, OVERVIEW, "Overview")
    assert frame.locator("h1").inner_text().startswith("Pusa V1.0, reproduced")
    assert "The paper's main effect" in frame.locator("p").first.inner_text()
    headings = frame.locator("h2").all_inner_texts()
    assert headings == ["Beside the published tables", "The paper's claims", "Cost", "Provenance"]


def test_every_result_loads(page):
    kinds = []
    for category in CATEGORIES:
        for row in choose(page, category).all():
            link = row.locator("a").first
            file = link.get_attribute("download")
            if file is not None:  # of a video, Snakemake offers the file
                assert file.endswith(".mp4")
                opened = page.evaluate(
                    """link => new Promise((resolve, reject) => {
                        const video = Object.assign(document.createElement("video"), {src: link});
                        video.onloadeddata = () => resolve(video.duration);
                        video.onerror = () => reject(video.error.message);
                    })""",
                    link.get_attribute("href"),
                )
                assert opened > 0
                kinds.append("file")
                continue
            link.click()
            picture = page.locator("div.overflow-auto img")
            if picture.count():
                picture.evaluate("image => image.decode()")
                assert picture.evaluate("image => image.naturalWidth") > 0
                kinds.append("picture")
            else:
                frame = page.locator("iframe").element_handle().content_frame()
                frame.wait_for_selector("h1")  # Chromium blocks a page of more than 2 MiB
                frame.wait_for_function(LOADED)
                kinds.append("page")
    assert kinds.count("picture") >= 4 and kinds.count("page") >= 8


def test_tables_sort(page):
    frame = show(page, TABLES, "Table 1")
    names = frame.locator("thead th").all_inner_texts()
    column = next(n for n, name in enumerate(names, 1) if name.startswith("Total"))
    # Published rows, which a model of ours may follow; ours alone come after all of them.
    cells = frame.locator(f"tbody:has-text('published') tr:first-child td:nth-child({column})")
    before = cells.all_inner_texts()
    frame.get_by_role("button", name="Total").click()
    texts = cells.all_inner_texts()
    numbers = [float(text.split()[0]) for text in texts if text]
    assert len(numbers) > 10 and numbers == sorted(numbers)
    assert texts != before and not any(texts[len(numbers) :])  # without a total: last


def test_videos_play_in_step(page):
    frame = show(page, VIDEOS, "every model")
    frame.wait_for_function(LOADED)
    assert frame.locator("video").count() > 1
    frame.get_by_role("button", name="Play").click()
    frame.wait_for_function("document.querySelector('video').currentTime > 0.1")
    times = frame.evaluate("[...document.querySelectorAll('video')].map(v => v.currentTime)")
    assert max(times) - min(times) < 0.1


def test_runtimes_are_shown(page):
    page.get_by_text("Statistics", exact=True).click()
    page.wait_for_selector("canvas, svg.marks")
