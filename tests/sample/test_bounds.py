"""What no model makes, on the tiny world's suite, which has true continuations."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from pusa.config import Size
from pusa.data.image import load_image
from pusa.data.suite import read_suite
from pusa.data.video import read_settings, read_video
from pusa.sample.bounds import sample_bound
from pusa.tiny.dataset import write_suite

SIZE = Size(frames=33, height=64, width=64)
MODEL = "pusa/tiny/model"


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bounds") / "suite"
    write_suite(folder, subject=2, background=1, camera=2)
    return folder


@pytest.fixture
def make(suite, tmp_path):
    def make(bound, prompts=None, **options):
        prompts = prompts or read_suite(suite, height=64, width=64)
        out = tmp_path / bound
        table = sample_bound(
            bound, suite, prompts, SIZE, samples=1, model=MODEL, out=out, device="cpu", **options
        )
        return prompts, [read_video(out / file) for file in table["file"]], out

    return make


def psnr(clip, truth):
    return peak_signal_noise_ratio(truth, clip)


def test_still_is_the_image_in_every_frame(make):
    prompts, clips, _ = make("still")
    for prompt, clip in zip(prompts, clips, strict=True):
        assert len(clip) == 33
        assert np.abs(clip.astype(int) - clip[:1]).max() < 12  # what h264 adds
        # h264 keeps a quarter of the colours.
        assert psnr(clip[0], load_image(prompt.image, height=64, width=64)) > 30


def test_truth_is_the_suites_and_better_bare_than_through_the_vae(make, suite):
    prompts, clips, _ = make("truth")
    _, through, _ = make("truth_vae")
    for prompt, clip, coded in zip(prompts, clips, through, strict=True):
        truth = read_video(suite / "reference" / prompt.reference_name)
        assert psnr(clip, truth) > 38
        assert 25 < psnr(coded, truth) < psnr(clip, truth)


def test_shuffled_is_of_the_next_prompt_with_another_image(make, suite):
    """The two camera prompts share an image, so both take the first subject's."""
    prompts, clips, _ = make("shuffled")
    for index, clip in zip((1, 2, 3, 0, 0), clips, strict=True):
        truth = read_video(suite / "reference" / prompts[index].reference_name)
        assert psnr(clip, truth) > 38


def test_a_subset_is_shuffled_as_the_whole_suite_is(make):
    prompts, clips, _ = make("shuffled")
    _, (alone,), _ = make("shuffled", prompts[1:2])
    assert np.array_equal(alone, clips[1])


def test_records_say_what_was_shown(make):
    prompts, _, out = make("truth_vae")
    record = read_settings(out / prompts[0].video_name(0))
    assert record["bound"] == "truth_vae"
    assert record["prompt"] == prompts[0].prompt
    assert record["conditions"][0]["file"] == "0000.mp4"
    assert "steps" not in record


def test_one_image_cannot_be_shuffled(tmp_path):
    write_suite(tmp_path / "suite", subject=0, background=0, camera=2)
    prompts = read_suite(tmp_path / "suite", height=64, width=64)
    with pytest.raises(ValueError, match="all prompts have one image, expected another"):
        sample_bound(
            "shuffled", tmp_path / "suite", prompts, SIZE, samples=1, model=MODEL,
            out=tmp_path / "out", device="cpu",
        )  # fmt: skip


def test_a_suite_without_true_continuations(make, suite, tmp_path):
    (suite / "reference" / "0001.mp4").rename(tmp_path / "elsewhere.mp4")
    with pytest.raises(FileNotFoundError, match=r"reference/0001\.mp4"):
        make("truth")
    (tmp_path / "elsewhere.mp4").rename(suite / "reference" / "0001.mp4")
