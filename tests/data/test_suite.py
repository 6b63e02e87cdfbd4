import json
import os
import shutil
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image

from pusa.data.suite import (
    INFO_FILE,
    SuitePrompt,
    check_motions,
    choose_subset,
    count_prompts,
    read_prompts,
    read_suite,
)


def entry(prompt="a red circle", dimensions=("i2v_subject",), image="a.jpg"):
    return {"prompt_en": prompt, "dimension": list(dimensions), "image_name": image}


@pytest.fixture
def build(tmp_path):
    """A function that writes a suite with these entries and image folders."""

    def write(entries, ratios=("1-1",)):
        for ratio in ratios:
            width, height = map(int, ratio.split("-"))
            folder = tmp_path / "crop" / ratio
            folder.mkdir(parents=True)
            for name in {e["image_name"] for e in entries if e.get("image_name")}:
                Image.new("RGB", (20 * width, 20 * height), (200, 60, 20)).save(folder / name)
        (tmp_path / INFO_FILE).write_text(json.dumps(entries))
        return tmp_path

    return write


def test_prompts_in_order(build):
    folder = build([entry("one"), entry("two", ("i2v_background",), "b.jpg")])
    prompts = read_suite(folder, height=64, width=64)
    assert [(p.index, p.prompt, p.dimensions, p.image.name) for p in prompts] == [
        (0, "one", ("i2v_subject",), "a.jpg"),
        (1, "two", ("i2v_background",), "b.jpg"),
    ]


@pytest.mark.parametrize(
    ("dimensions", "kind"),
    [
        (("i2v_subject", "aesthetic_quality"), "subject"),
        (("i2v_background", "imaging_quality"), "background"),
        (("camera_motion",), "camera"),
        (("camera_motion", "i2v_subject"), "camera"),
    ],
)
def test_kind(tmp_path, dimensions, kind):
    assert SuitePrompt(0, "a", dimensions, tmp_path).kind == kind


@pytest.mark.parametrize(
    ("text", "motion"),
    [
        ("a wall with dots, camera pans left", "pans left"),
        ("a close up, of a cup, on a table, camera zooms out", "zooms out"),
        ("a red circle stays still over clouds, camera static", "static"),
        ("camera zooms in on a lake", "zooms in"),
        # VBench takes the first of its list, wherever it stands.
        ("a surveillance camera pans right over a yard, camera tilts up", "pans right"),
        ("a man pans left", None),
        ("a dog, camera rolls", None),
    ],
)
def test_camera_motion(tmp_path, text, motion):
    prompt = SuitePrompt(3, text, ("camera_motion",), tmp_path)
    assert prompt.camera_motion == motion
    if motion is None:
        with pytest.raises(
            ValueError, match=f"prompt 3 '{text}' names no camera motion; .* of: camera pans left"
        ):
            check_motions([prompt])
    else:
        check_motions([prompt])


def test_other_prompts_need_no_motion(tmp_path):
    check_motions([SuitePrompt(0, "a dog", ("i2v_subject",), tmp_path)])


@pytest.mark.parametrize(
    ("height", "width", "ratio"),
    [(480, 832, "7-4"), (720, 1280, "16-9"), (64, 64, "1-1"), (500, 800, "8-5"), (90, 60, "1-1")],
)
def test_nearest_ratio(build, height, width, ratio):
    folder = build([entry()], ("1-1", "8-5", "7-4", "16-9"))
    (prompt,) = read_suite(folder, height=height, width=width)
    assert prompt.image.parent.name == ratio


def test_counts_take_prompts_from_all_over_each_kind(suite):
    """Of two subject, two background and nine camera prompts."""
    counts = {"subject": 1, "background": 2, "camera": 3}
    prompts = read_suite(suite, height=64, width=64, counts=counts)
    assert [p.index for p in prompts] == [0, 2, 3, 4, 8, 12]
    assert [p.kind for p in prompts] == ["subject"] + ["background"] * 2 + ["camera"] * 3


KINDS = ["subject", "camera", "camera", "background", "camera", "subject", "camera"]


@pytest.mark.parametrize(
    ("counts", "places"),
    [
        ((2, 1, 4), [0, 5, 3, 1, 2, 4, 6]),
        ((1, 1, 2), [0, 3, 1, 4]),
        ((1, 0, 3), [0, 1, 2, 4]),
        ((0, 0, 0), []),
    ],
)
def test_subset_of_mixed_kinds(counts, places):
    counts = dict(zip(("subject", "background", "camera"), counts, strict=True))
    assert choose_subset(KINDS, counts) == places


@pytest.mark.parametrize("wanted", [1, 7, 50, 245, 246])
def test_subset_is_spread_evenly(wanted):
    counts = {"subject": wanted, "background": 0, "camera": 0}
    chosen = choose_subset(["subject"] * 246, counts)
    gaps = np.diff(chosen)
    assert len({*chosen}) == wanted
    assert chosen[0] == 0
    assert all(gaps <= 2 * gaps.min(initial=246))


def test_smaller_subset_is_part_of_a_larger_one():
    """Or videos and scores would be lost where a subset grows."""
    kinds = ["subject"] * 246 + ["background"] * 109 + ["camera"] * 763
    before = set()
    for n in range(2, 110):
        chosen = set(choose_subset(kinds, {"subject": 2 * n, "background": n, "camera": 7 * n}))
        assert before < chosen
        before = chosen


def test_subset_of_a_subset_is_itself():
    counts = {"subject": 1, "background": 1, "camera": 2}
    kinds = [KINDS[i] for i in choose_subset(KINDS, counts)]
    assert choose_subset(kinds, counts) == list(range(4))


def test_prompts_are_counted_without_images(suite, tmp_path):
    assert count_prompts(suite) == {"subject": 2, "background": 2, "camera": 9}
    shutil.copy(suite / INFO_FILE, tmp_path)
    assert count_prompts(tmp_path) == count_prompts(suite)


def test_count_of_a_missing_list(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{INFO_FILE} does not exist"):
        count_prompts(tmp_path)


def test_too_many_are_asked_for(suite):
    counts = {"subject": 1, "background": 3, "camera": 3}
    with pytest.raises(
        ValueError, match=r"full_info\.json: 2 background prompts, but 3 were asked"
    ):
        read_suite(suite, height=64, width=64, counts=counts)


def test_images_of_prompts_not_taken_need_not_exist(build):
    folder = build([entry("one"), entry("two", image="b.jpg")])
    (folder / "crop" / "1-1" / "b.jpg").unlink()
    counts = {"subject": 1, "background": 0, "camera": 0}
    assert len(read_suite(folder, height=64, width=64, counts=counts)) == 1


HOSTILE = ["../../etc/passwd", "a/b\\c", "x" * 400, "nul\0byte", ".", "-rf *", "naïve ✨\nline"]


def test_video_names_are_safe_for_any_prompt(build, tmp_path):
    folder = build([entry(prompt) for prompt in HOSTILE])
    prompts = read_suite(folder, height=64, width=64)
    assert [p.prompt for p in prompts] == HOSTILE
    names = [p.video_name(sample) for p in prompts for sample in range(2)]
    assert len(set(names)) == len(names)
    for name in names:
        assert name == os.path.basename(name)
        assert set(name) <= set("0123456789-.mp")
        (tmp_path / name).touch()


# Errors


def test_missing_list(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{INFO_FILE} does not exist"):
        read_suite(tmp_path, height=64, width=64)


def test_missing_image_folder(build):
    folder = build([entry()])
    shutil.rmtree(folder / "crop")
    with pytest.raises(FileNotFoundError, match="crop has no image folder"):
        read_suite(folder, height=64, width=64)


def test_missing_image(build):
    folder = build([entry()])
    (folder / "crop" / "1-1" / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"image .*a\.jpg does not exist"):
        read_suite(folder, height=64, width=64)


@pytest.mark.parametrize("content", [b"<html>not found</html>", b""])
def test_not_an_image(build, content):
    folder = build([entry()])
    (folder / "crop" / "1-1" / "a.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.jpg is not a readable image"):
        read_suite(folder, height=64, width=64)


@pytest.mark.parametrize("key", ["prompt_en", "dimension", "image_name"])
@pytest.mark.parametrize("absent", [True, False])
def test_entry_without_a_field(build, key, absent):
    broken = entry()
    if absent:
        del broken[key]
    else:
        broken[key] = type(broken[key])()
    folder = build([entry(), broken])
    with pytest.raises(ValueError, match=f"entry 1 has no '{key}'"):
        read_suite(folder, height=64, width=64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"prompt_en"', "cannot be read as JSON"),
        ("{}", "expected a list of prompts"),
        ("[]", "expected a list of prompts"),
        ("[1]", "entry 0 has no 'prompt_en'"),
        ([entry() | {"prompt_en": 3}], "prompt_en of entry 0 is 3, not text"),
        ([entry() | {"dimension": "camera_motion"}], "'camera_motion', not a list"),
    ],
)
def test_lists_that_are_none(tmp_path, content, message):
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / INFO_FILE).write_text(text)
    with pytest.raises(ValueError, match=f"{INFO_FILE}: .*{message}"):
        read_prompts(tmp_path)


def test_a_downloaded_list_that_was_changed(tmp_path):
    (tmp_path / INFO_FILE).write_text(json.dumps([entry()]))
    digest = sha256((tmp_path / INFO_FILE).read_bytes()).hexdigest()
    record = {"files": {INFO_FILE: {"size": 1, "sha256": digest}}}
    (tmp_path / "download.json").write_text(json.dumps(record))
    assert len(read_prompts(tmp_path)) == 1
    (tmp_path / INFO_FILE).write_text(json.dumps([entry(prompt="a blue circle")]))
    with pytest.raises(ValueError, match=f"expected SHA-256 {digest}, as download.json says"):
        read_prompts(tmp_path)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "a/b.png", ".."])
def test_an_image_outside_of_the_suite(tmp_path, name):
    (tmp_path / INFO_FILE).write_text(json.dumps([entry(image=name)]))
    with pytest.raises(ValueError, match=r"image_name of entry 0 is .*, expected a file's name"):
        read_prompts(tmp_path)


def test_a_blank_prompt(build):
    with pytest.raises(ValueError, match="the prompt of entry 0 is blank"):
        read_prompts(build([entry(prompt=" ")]))


@pytest.mark.parametrize("content", ["[]", "{}", '{"files": []}', "{"])
def test_a_damaged_record_of_the_download(build, content):
    folder = build([entry()])
    (folder / "download.json").write_text(content)
    with pytest.raises(ValueError, match=r"download\.json is damaged; delete it"):
        read_prompts(folder)
