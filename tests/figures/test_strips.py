from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from pusa.data.suite import first_subjects
from pusa.data.video import read_video, write_video
from pusa.digests import digest_file
from pusa.figures.strips import (
    choose_frames,
    make_contact_sheet,
    plot_figure3,
    plot_strips,
)
from pusa.figures.style import VERMILLION
from tests.drawing import record_figures, texts, written

MAIN, BASE, WAN_I2V = "pusa", "base", "wan_i2v"


@pytest.fixture
def drawn(monkeypatch):
    return record_figures(monkeypatch)


@pytest.fixture
def samples(tmp_path, suite, prompts):
    """A video for both subject prompts."""
    for prompt in prompts[:2]:
        clip = read_video(suite / "reference" / prompt.reference_name)[:9]
        settings = {"prompt": prompt.prompt, "given": [[1, 1, 0.0]]}
        write_video(tmp_path / prompt.video_name(0), clip, settings)
    return tmp_path


def grey_ramp(file, frames, settings, height=32, width=32):
    """A video whose frame n has the grey 5n."""
    levels = 5 * np.arange(1, frames + 1, dtype=np.uint8)
    video = np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3))
    write_video(file, video, settings)
    return file


def images(figure):
    """Of each image of a figure, its mean grey, and whether it has a coloured border."""
    found = []
    for axis in figure.axes:
        spine = axis.spines["left"]
        bordered = spine.get_visible() and to_hex(spine.get_edgecolor()) == VERMILLION.lower()
        found.append((float(np.mean(axis.images[0].get_array())), bordered))
    return found


@pytest.mark.parametrize(
    ("given", "columns", "expected"),
    [
        ([], 6, [1, 17, 33, 49, 65, 81]),
        ([[1, 1, 0.0]], 5, [1, 21, 41, 61, 81]),
        ([[1, 1, 0.3], [81, 81, 0.7]], 5, [1, 21, 41, 61, 81]),
        ([[1, 9, 0.0], [70, 81, 0.0]], 7, [1, 9, 24, 40, 55, 70, 81]),
        ([[1, 41, 0.0]], 7, [1, 41, 49, 57, 65, 73, 81]),
        ([[1, 1, 0.0], [42, 45, 0.0]], 4, [1, 42, 45, 81]),
        ([[1, 81, 0.0]], 3, [1, 41, 81]),
        ([[n, n, 0.0] for n in range(1, 82, 10)], 3, [1, 41, 81]),
    ],
)
def test_choice_of_frames(given, columns, expected):
    assert choose_frames(81, given, columns) == expected


def test_choice_of_frames_in_short_videos():
    assert choose_frames(1, [[1, 1, 0.0]], 7) == [1]
    assert choose_frames(5, [], 7) == [1, 2, 3, 4, 5]
    assert choose_frames(9, [[1, 5, 0.0]], 7) == [1, 3, 5, 6, 7, 8, 9]  # full after five


def test_strips_show_and_mark_the_frames_that_they_name(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr("pusa.figures.strips.COLUMNS", 5)
    settings = {"prompt": "a cat", "given": [[1, 1, 0.3], [30, 33, 0.0]]}
    video = grey_ramp(tmp_path / "a.mp4", 33, settings)
    plot_strips([video], tmp_path / "out.png", title="Figure 9: Title", note="A note.")
    assert written(tmp_path / "out.png")
    assert texts(drawn[0]) == [
        "Figure 9: Title",
        "a cat",
        "frame 1\ngiven\n30 % noise",
        "frame 11",
        "frame 20",
        "frame 30\ngiven",
        "frame 33\ngiven",
        "A note.",
    ]
    found = images(drawn[0])
    assert [bordered for _, bordered in found] == [True, False, False, True, True]
    assert [grey for grey, _ in found] == pytest.approx([5, 55, 100, 150, 165], abs=2)


@pytest.fixture
def made_from_a_clip(tmp_path):
    """A dataset of two clips of one name, and a video that says that it was made from the second.

    Its frames are darker than the clip's.
    """
    for folder, width in (("a", 48), ("b", 64)):
        (tmp_path / "clips" / folder).mkdir(parents=True)
        grey_ramp(tmp_path / "clips" / folder / "x.mp4", 40, None, 32, width)
    metadata = "file_name,text\na/x.mp4,a cat\nb/x.mp4,a dog\n"
    (tmp_path / "clips/metadata.csv").write_text(metadata)
    digest = digest_file(tmp_path / "clips/b/x.mp4")
    origin = {"conditions": [{"file": "x.mp4", "sha256": digest}]}
    size = {"frames": 33, "height": 32, "width": 32}
    settings = {"prompt": "a dog", "given": [[1, 1, 0.0]], **origin, **size}
    write_video(tmp_path / "video.mp4", np.full((33, 32, 32, 3), 40, np.uint8), settings)
    return tmp_path / "video.mp4"


def test_strips_show_what_was_given_above_what_was_made(
    tmp_path, drawn, monkeypatch, made_from_a_clip
):
    monkeypatch.setattr("pusa.figures.strips.COLUMNS", 3)
    clips = tmp_path / "clips"
    plot_strips([made_from_a_clip], tmp_path / "out.png", title="Title", dataset=clips)
    found = images(drawn[0])
    assert [bordered for _, bordered in found] == [True, False, False] * 2
    assert [grey for grey, _ in found] == pytest.approx([5, 85, 165, 40, 40, 40], abs=3)
    assert [text for text in texts(drawn[0]) if text] == [
        *("Title", "a dog", "true clip", "made"),
        *("frame 1\ngiven", "frame 17", "frame 33"),
    ]


def test_strips_of_a_clip_that_was_replaced(tmp_path, made_from_a_clip):
    grey_ramp(tmp_path / "clips/b/x.mp4", 39, None)
    with pytest.raises(ValueError, match=r"video\.mp4 was made from a clip x\.mp4 that"):
        plot_strips([made_from_a_clip], tmp_path / "out.png", title="x", dataset=tmp_path / "clips")


def test_strips_are_as_wide_as_a_page_and_inside_it(tmp_path, drawn):
    """Frames of any shape; long prompts end in an ellipsis; no text leaves the page."""
    long = "a wide green valley with a river and many small houses " * 12
    files = [
        grey_ramp(tmp_path / "wide.mp4", 9, {"prompt": long, "given": []}, 32, 96),
        grey_ramp(tmp_path / "high.mp4", 9, {"prompt": "x" * 500, "given": []}, 96, 32),
        grey_ramp(tmp_path / "empty.mp4", 9, {"prompt": "", "given": []}),
    ]
    plot_strips(files, tmp_path / "out.png", title="Strips")
    (figure,) = drawn
    assert figure.get_figwidth() == 7
    page = figure.bbox
    for text in figure.texts:
        box = text.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0, text
    headings = [text for text in texts(figure) if text.startswith(("a wide", "xxx"))]
    assert [text.count("\n") for text in headings] == [2, 2]
    assert headings[0].endswith("…")
    assert "(no prompt)" in texts(figure)
    tall = figure.axes[7].get_position()
    shape = (tall.height * figure.get_figheight()) / (tall.width * figure.get_figwidth())
    assert shape == pytest.approx(3)


@pytest.mark.parametrize(
    "prompt",
    ["costs $5 or $x_1^2$, \\frac{1}{0}", "Привет, мир", "一只猫在草地上跑", "<b>&amp;</b>"],
)
def test_prompts_are_shown_as_they_are(tmp_path, drawn, prompt):
    video = grey_ramp(tmp_path / "a.mp4", 5, {"prompt": prompt, "given": []})
    plot_strips([video], tmp_path / "out.png", title="Strips")
    (heading,) = [t for t in drawn[0].texts if t.get_text() == prompt]
    assert not heading.get_parse_math()


def test_figures_repeat_to_the_byte(tmp_path):
    video = grey_ramp(tmp_path / "a.mp4", 5, {"prompt": "a cat", "given": []})
    for name in ("one", "two"):
        plot_strips([video], tmp_path / f"{name}.png", title="Strips")
    for kind in ("png", "pdf"):
        one, two = ((tmp_path / f"{name}.{kind}").read_bytes() for name in ("one", "two"))
        assert one == two
    assert b"/FontFile2" in two  # TrueType, of type 42
    assert b"/Type3" not in two


def test_strips_of_bad_videos(tmp_path):
    out = tmp_path / "out.png"
    with pytest.raises(ValueError, match="no videos to show"):
        plot_strips([], out, title="x")
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4 is missing"):
        plot_strips([tmp_path / "gone.mp4"], out, title="x")
    foreign = grey_ramp(tmp_path / "foreign.mp4", 5, None)
    with pytest.raises(ValueError, match=r"foreign\.mp4: no 'prompt' in its settings"):
        plot_strips([foreign], out, title="x")
    old = grey_ramp(tmp_path / "old.mp4", 5, {"prompt": "a cat"})
    with pytest.raises(ValueError, match=r"old\.mp4: no 'given' in its settings"):
        plot_strips([old], out, title="x")
    good = grey_ramp(tmp_path / "good.mp4", 5, {"prompt": "a cat", "given": []})
    with pytest.raises(ValueError, match=r"out\.pdf: expected a name that ends in \.png"):
        plot_strips([good], tmp_path / "out.pdf", title="x")
    assert not list(tmp_path.glob("*.p*"))


def test_figure3(tmp_path, samples, suite, prompts, drawn):
    size = {"height": 64, "width": 64}
    folders = {BASE: samples, WAN_I2V: samples, MAIN: samples}
    plot_figure3(prompts[:2], folders, tmp_path / "figure3.png", **size)
    assert written(tmp_path / "figure3.png")
    names = ["base + VTA", "Wan-I2V", "Pusa"]
    assert [t for t in texts(drawn[0]) if t in names] == 2 * names
    assert len(drawn[0].axes) == 2 * 3 * 7
    assert [bordered for _, bordered in images(drawn[0])] == 6 * ([True] + [False] * 6)
    references = suite / "reference"
    plot_figure3(prompts[:1], folders, tmp_path / "figure3.png", references=references, **size)
    assert "true\ncontinuation" in texts(drawn[1])
    *_, note = texts(drawn[1])
    assert "the paper's is 'a man in a black suit" in note.replace("\n", " ")
    labels = ["given image", *(f"frame {n}" for n in (6, 12, 17, 22, 28, 33))]
    assert texts(drawn[1])[-8:-1] == labels


def test_figure3_takes_the_papers_prompt_if_it_is_there(tmp_path, samples, prompts, drawn):
    subjects = [p for p in prompts if p.kind == "subject"]
    assert first_subjects(prompts) == subjects[:2]
    papers = replace(
        subjects[0], prompt="A man in a black suit and a sombrero, shouting loudly", index=99
    )
    assert first_subjects([*prompts, papers]) == [papers, subjects[0]]
    papers = replace(papers, index=subjects[0].index)  # of which there is a video
    plot_figure3([papers], {MAIN: samples}, tmp_path / "figure3.png", height=64, width=64)
    assert not any("the paper's is" in t for t in texts(drawn[0]))


def test_contact_sheet(tmp_path, samples, prompts, drawn):
    make_contact_sheet(prompts[:2], "The title", samples, tmp_path / "sheet.png")
    assert written(tmp_path / "sheet.png")
    assert [bordered for _, bordered in images(drawn[0])] == 2 * ([True] + [False] * 5)
    assert read_video(tmp_path / "sheet.mp4").shape == (9, 256, 2 * 256, 3)


def test_contact_sheet_of_many_prompts(tmp_path, prompts, drawn):
    """At most 24 of them, the first and the last among them; wide clips are made smaller."""
    many = [replace(prompts[0], index=i, prompt=f"prompt {i}") for i in range(50)]
    for prompt in many:
        settings = {"prompt": prompt.prompt, "given": []}
        grey_ramp(tmp_path / prompt.video_name(0), 5, settings, 32, 512)
    make_contact_sheet(many, "The title", tmp_path, tmp_path / "sheet.png")
    shown = [text for text in texts(drawn[0]) if text.startswith("prompt")]
    assert len(shown) == len(set(shown)) == 24
    assert (shown[0], shown[-1]) == ("prompt 0", "prompt 49")
    assert read_video(tmp_path / "sheet.mp4").shape == (5, 4 * 16, 6 * 256, 3)
