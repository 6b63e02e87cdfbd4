import json
import re

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import expect
from typer.testing import CliRunner

from pusa.cli import app
from pusa.data.manifest import COLUMNS
from pusa.data.video import FPS, read_video, write_video
from pusa.digests import digest_file
from pusa.report import gallery
from pusa.report.gallery import Sample, find_samples, write_gallery, write_video_page
from tests.browser import open_page

HOSTILE = "</script><script>document.title = 'taken'</script> <img src=x onerror=alert(1)> & \"q\""
FRAMES = 17


def make_video(file, settings, *, frames=FRAMES, width=32, height=32):
    """A video whose brightness tells the frame."""
    file.parent.mkdir(parents=True, exist_ok=True)
    grey = np.linspace(20, 235, frames).astype(np.uint8)
    write_video(
        file, np.broadcast_to(grey[:, None, None, None], (frames, height, width, 3)), settings
    )


def make_setting(folder, prompts, *, given, samples=1):
    """A setting's folder, as the suite's sampling writes it."""
    rows = []
    for index, prompt in enumerate(prompts):
        for sample in range(samples):
            name = f"{index:04d}-{sample}.mp4"
            about = {"prompt": prompt, "given": given, "steps": 2, "seed": 0}
            make_video(folder / name, about)
            digest = digest_file(folder / name)
            rows.append((name, index, prompt, sample, digest))
    pd.DataFrame(rows, columns=COLUMNS).to_csv(folder / "shard0.csv", index=False)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two settings of a suite, and a folder of videos of other tasks."""
    root = tmp_path_factory.mktemp("videos")
    prompts = ["a red dog", "a blue dog", HOSTILE]
    make_setting(root / "tables/ours", prompts, given=[[1, 1, 0.0]])
    make_setting(root / "tables/base", prompts[:2], given=[])
    about = {"prompt": "a red dog", "given": [[1, 1, 0.3], [14, 17, 0.7]]}
    make_video(root / "my #1 ends/dog?.mp4", about, frames=33)
    make_video(root / "my #1 ends/foreign.mp4", None)
    (root / "my #1 ends/.partial-x.mp4").write_bytes(b"not yet a video")
    return root


@pytest.fixture
def folders(videos):
    return [videos / "tables", videos / "my #1 ends"]


def data_of(page):
    """The videos that a page tells its script of."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    return json.loads(found[1])


def test_find_samples(folders):
    found = find_samples(folders)
    assert [(s.setting, s.file.name, s.prompt, s.sample, s.task) for s in found] == [
        ("base", "0000-0.mp4", "a red dog", 0, "text-to-video"),
        ("base", "0001-0.mp4", "a blue dog", 0, "text-to-video"),
        ("ours", "0000-0.mp4", "a red dog", 0, "image-to-video"),
        ("ours", "0001-0.mp4", "a blue dog", 0, "image-to-video"),
        ("ours", "0002-0.mp4", HOSTILE, 0, "image-to-video"),
        ("my #1 ends", "dog?.mp4", "a red dog", None, "given frames 1, 14-17"),
        ("my #1 ends", "foreign.mp4", "foreign", None, "text-to-video"),
    ]
    assert found[5].given == [[1, 1, 0.3], [14, 17, 0.7]]


def test_samples_of_a_prompt_are_in_order(tmp_path):
    make_setting(tmp_path / "one", ["b", "a"], given=[], samples=2)
    found = find_samples([tmp_path / "one"])
    assert [(s.prompt, s.sample) for s in found] == [("b", 0), ("b", 1), ("a", 0), ("a", 1)]


@pytest.mark.parametrize(
    ("given", "task"),
    [
        ([], "text-to-video"),
        ([[1, 1, 0.2]], "image-to-video"),
        ([[33, 33, 0.0]], "given frames 33"),
        ([[1, 9, 0.0], [22, 33, 0.0]], "given frames 1-9, 22-33"),
    ],
)
def test_task_by_what_was_given(tmp_path, given, task):
    assert Sample(tmp_path / "a.mp4", "s", "p", settings={"given": given}).task == task


def test_folder_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder of videos .*none does not exist"):
        find_samples([tmp_path / "none"])


def test_folder_without_videos(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no videos"):
        find_samples([tmp_path])


def test_video_of_a_list_that_is_missing(tmp_path):
    make_setting(tmp_path / "one", ["a", "b"], given=[])
    (tmp_path / "one/0001-0.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"0001-0.mp4 is missing"):
        find_samples([tmp_path])


def test_two_settings_of_one_name(tmp_path):
    for place in ("a/same", "b/same"):
        make_video(tmp_path / place / "x.mp4", None)
    with pytest.raises(ValueError, match=r"a/same and .*b/same have the same name"):
        find_samples([tmp_path / "a", tmp_path / "b"])


def test_gallery_holds_the_videos(folders, tmp_path):
    samples = find_samples(folders)
    write_gallery("Title", samples, tmp_path / "gallery")
    data = data_of(tmp_path / "gallery/index.html")
    assert [v["src"] for v in data["videos"]][-2:] == [
        "videos/my%20%231%20ends/dog%3F.mp4",
        "videos/my%20%231%20ends/foreign.mp4",
    ]
    copies = sorted(p.name for p in (tmp_path / "gallery/videos").rglob("*.mp4"))
    assert copies == sorted(s.file.name for s in samples)
    for sample in samples:
        copy = tmp_path / "gallery/videos" / sample.setting / sample.file.name
        assert copy.read_bytes() == sample.file.read_bytes()
    # settings are told once, and without what is shown elsewhere
    told = data["settings"]
    assert told[data["videos"][0]["settings"]] == {"steps": 2, "seed": 0}
    assert data["videos"][0]["settings"] == data["videos"][1]["settings"] and len(told) == 2


@pytest.mark.parametrize(
    ("out", "page", "count"), [("new", "new/index.html", 5), ("new.html", "new.html", 4)]
)
def test_command(videos, tmp_path, out, page, count):
    words = ["gallery", str(tmp_path / out), str(videos / "tables"), "--title", "Dogs"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    text = (tmp_path / page).read_text()
    assert "<title>Dogs</title>" in text and len(data_of(tmp_path / page)["videos"]) == count


def test_gallery_over_something_else(folders, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists; expected a new folder"):
        write_gallery("Title", find_samples(folders), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.fixture(scope="module")
def address(videos, tmp_path_factory):
    """A gallery on the disk."""
    out = tmp_path_factory.mktemp("out") / "gallery"
    write_gallery(f"Title {HOSTILE}", find_samples([videos / "tables", videos / "my #1 ends"]), out)
    return (out / "index.html").as_uri()


@pytest.fixture
def page(browser, address):
    with open_page(browser, address, viewport={"width": 1200, "height": 2400}) as page:
        page.wait_for_function(READY)
        yield page


# A video may have its first frame before the page was told how many there are.
READY = """() => shown.size > 0 && [...shown.values()].every(record => record.frames)
    && [...document.querySelectorAll("video")].every(v => v.readyState >= 2 && !v.seeking)"""
# The times of all videos at once, when that of the longest is between two.
WHEN = """() => {{
    const times = [...document.querySelectorAll("video")].map(video => video.currentTime);
    return times[2] > {low} && times[2] < {high} && times;
}}"""
TIMES = "[...document.querySelectorAll('video')].map(video => video.currentTime)"


def headings(page):
    return page.locator("h2").all_inner_texts()


def test_prompts_are_shown_as_text(page):
    assert headings(page) == ["a red dog", "a blue dog", HOSTILE, "foreign"]
    assert page.title() == f"Title {HOSTILE}"
    assert page.locator("img").count() == 0


def test_settings_stand_side_by_side(page):
    row = page.locator("section").first
    assert row.locator("figcaption > div:first-child").all_inner_texts() == [
        "base, sample 0",
        "ours, sample 0",
        "my #1 ends",
    ]
    row.locator("summary").first.click()
    assert row.locator("dl").first.inner_text().split() == ["seed", "0", "steps", "2"]


def test_given_frames_are_marked(page):
    ends = page.locator("figure").nth(2)
    assert "given: frame 1, 30 % noise; frames 14-17, 70 % noise" in ends.inner_text()
    assert page.locator("figure").nth(0).locator(".frames i").count() == 0
    places = ends.locator(".frames i").evaluate_all("all => all.map(i => parseFloat(i.style.left))")
    assert sorted(places) == pytest.approx([0, 100 * 13 / 33])

    def marked():
        figures = page.locator("figure").evaluate_all("all => all.map(f => f.className)")
        return [name == "given" for name in figures[:3]]

    assert marked() == [False, True, True]  # frame 1
    page.keyboard.press("ArrowRight")
    assert page.locator("#counter").inner_text() == "frame 2 of 33"
    assert marked() == [False, False, False]
    page.locator("#scrub").fill("15")  # frame 16
    assert marked() == [False, False, True]


def test_opens_with_what_is_to_be_seen_first(browser, folders, tmp_path):
    with pytest.raises(ValueError, match="no videos of truth, expected of base, my #1 ends, ours"):
        write_gallery("Videos", find_samples(folders), tmp_path / "a", shown=["truth"])
    out = tmp_path / "gallery"
    shown = [word for name in ("my #1 ends", "ours") for word in ("--show", name)]
    done = CliRunner().invoke(app, ["gallery", str(out), *map(str, folders), *shown])
    assert done.exit_code == 0
    high = {"viewport": {"width": 1200, "height": 2400}}
    with open_page(browser, (out / "index.html").as_uri(), **high) as page:
        page.wait_for_function(READY)
        captions = page.locator("figcaption > div:first-child")
        ends = ["my #1 ends"]
        expect(captions).to_have_text([*ends, *["ours, sample 0"] * 3, *ends])
        assert headings(page) == ["a red dog", "a blue dog", HOSTILE, "foreign"]
        page.get_by_role("checkbox", name="base").check()
        expect(captions).to_have_count(7)


def test_filters(page):
    captions = page.locator("figcaption > div:first-child")
    page.get_by_role("checkbox", name="base").uncheck()
    ends = ["my #1 ends"]
    expect(captions).to_have_text(["ours, sample 0", *ends, *["ours, sample 0"] * 2, *ends])
    page.get_by_label("Task").select_option("image-to-video")
    expect(captions).to_have_text(["ours, sample 0"] * 3)
    page.get_by_label("Prompt").press_sequentially("DOG blue")
    assert page.get_by_role("button", name="Play").is_visible()  # the space is the field's
    assert headings(page) == ["a blue dog"]
    assert page.get_by_role("status").inner_text() == "1 of 7 videos; prompts: 1"
    page.get_by_label("Prompt").fill("no such words")
    assert headings(page) == []
    page.get_by_label("Prompt").fill("")
    page.get_by_label("Task").select_option("")
    page.get_by_role("button", name="none").click()
    assert headings(page) == []
    page.get_by_role("button", name="all").click()
    expect(captions).to_have_count(7)


def test_one_button_plays_all_in_step(page):
    page.get_by_role("button", name="Play").click()
    times = page.wait_for_function(WHEN.format(low=0.3, high=0.9)).json_value()
    assert len(times) == 7 and max(times) - min(times) < 0.1
    page.get_by_role("button", name="Pause").click()
    page.wait_for_function(READY)
    times = page.evaluate(TIMES)
    longest = times.pop(2)
    last = (FRAMES - 0.5) / FPS  # where the short ones wait, should the click have come late
    assert times == pytest.approx([min(longest, last)] * 6, abs=0.01)
    assert page.evaluate("[...document.querySelectorAll('video')].every(v => v.paused)")


def test_short_videos_wait_for_the_longest(page):
    """One lasts 33 frames, the others 17: these show their last, and all begin again at once."""
    page.keyboard.press("ArrowLeft")  # from the first frame to the last
    page.wait_for_function(READY)
    assert page.locator("#counter").inner_text() == "frame 33 of 33"
    times = page.evaluate(TIMES)
    assert times[2] * 16 == pytest.approx(32.5, abs=0.1)
    assert [16 * t for t in times[:2]] == pytest.approx([16.5, 16.5], abs=0.1)
    page.keyboard.press(" ")
    times = page.wait_for_function(WHEN.format(low=0.2, high=0.9)).json_value()
    assert max(times) - min(times) < 0.1


def test_only_what_is_near_the_screen_is_loaded(browser, tmp_path):
    prompts = [f"prompt {n}" for n in range(60)]
    make_setting(tmp_path / "one", prompts, given=[])
    write_gallery("Many", find_samples([tmp_path / "one"]), tmp_path / "gallery")
    with open_page(browser, (tmp_path / "gallery/index.html").as_uri()) as page:
        page.wait_for_function(READY)
        first = page.locator("video").count()
        assert 0 < first < 10 and page.locator("section").count() == 60
        page.get_by_text("prompt 59").scroll_into_view_if_needed()
        page.wait_for_selector("section:last-child video")
        page.wait_for_function("!document.querySelector('section:first-child video')")
        assert page.locator("video").count() < 10


def test_fits_on_a_phone(browser, address):
    with open_page(browser, address, viewport={"width": 360, "height": 640}) as page:
        page.wait_for_function(READY)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_video_page_holds_small_copies(browser, folders, tmp_path):
    samples = [s for s in find_samples(folders) if s.setting in ("ours", "base")]
    write_video_page("Title", samples, tmp_path / "page.html")
    with open_page(browser, (tmp_path / "page.html").as_uri()) as page:
        page.wait_for_function(READY)
        assert page.locator("figcaption").count() == 4  # not of the prompt that one alone has
        assert "of 2 of 2 prompts that 2 settings share." in page.inner_text("body")
        sources = page.evaluate("data.videos.map(video => video.src.slice(0, 15))")
        assert set(sources) == {"data:video/mp4;"}


def test_small_copy_is_small(tmp_path, monkeypatch):
    make_video(tmp_path / "wide.mp4", None, width=832, height=480)
    written = {}

    def keep(file, frames, *, crf):
        written.update(shape=frames.shape, crf=crf)
        write_video(file, frames, crf=crf)
        assert np.abs(read_video(file).astype(int) - frames).mean() < 8

    monkeypatch.setattr(gallery, "write_video", keep)
    gallery._small_copy(tmp_path / "wide.mp4")
    assert written == {"shape": (FRAMES, 184, 320, 3), "crf": gallery.SMALL_CRF}


def test_video_page_takes_as_many_prompts_as_fit(folders, tmp_path, monkeypatch):
    prompts = [f"prompt {n}" for n in range(5)]
    make_setting(tmp_path / "one", prompts, given=[])
    samples = find_samples([tmp_path / "one"])
    write_video_page("Title", samples, tmp_path / "all.html")
    whole = (tmp_path / "all.html").stat().st_size
    assert len(data_of(tmp_path / "all.html")["videos"]) == 5

    one = len(data_of(tmp_path / "all.html")["videos"][0]["src"])
    monkeypatch.setattr(gallery, "REPORT_BYTES", whole - 2 * one)
    write_video_page("Title", samples, tmp_path / "some.html")
    shown = [v["prompt"] for v in data_of(tmp_path / "some.html")["videos"]]
    assert shown == ["prompt 0", "prompt 2", "prompt 4"]
    assert (tmp_path / "some.html").stat().st_size <= gallery.REPORT_BYTES


def test_video_page_shows_the_first_sample_alone(tmp_path):
    make_setting(tmp_path / "one", ["a", "b"], given=[], samples=2)
    write_video_page("Title", find_samples([tmp_path / "one"]), tmp_path / "page.html")
    names = [v["name"] for v in data_of(tmp_path / "page.html")["videos"]]
    assert names == ["one, sample 0", "one, sample 0"]


def test_video_page_of_videos_too_large_for_it(videos, tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    samples = find_samples([videos / "tables"])
    monkeypatch.setattr(gallery, "REPORT_PROMPTS", 1)
    write_video_page("Title", samples, page)
    assert len(data_of(page)["videos"]) == 2

    monkeypatch.setattr(gallery, "REPORT_BYTES", page.stat().st_size - 100)
    write_video_page("Title", samples, page)
    assert len(data_of(page)["videos"]) == 1
    assert "Small copies of 1 of the 2 videos of one prompt: no more fit." in page.read_text()

    monkeypatch.setattr(gallery, "REPORT_BYTES", 1000)
    write_video_page("Title", samples, page)
    assert data_of(page)["videos"] == []
