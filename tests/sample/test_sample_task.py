import re
import shutil

import pytest
from pusa.sample.sample_task import choose_clips, held_out_clips, task_requests
from typer.testing import CliRunner

from pusa.cli import app
from pusa.clip import ClipSize
from pusa.data.cache import cache_latents
from pusa.data.dataset import Clip, read_metadata
from pusa.data.suite import is_complete, read_manifests
from pusa.data.video import read_settings, video_shape
from pusa.sample import pipeline


def names(clips) -> list[str]:
    return [clip.path.stem for clip in clips]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory, dataset):
    """The dataset of six clips, of which the last cannot be read."""
    copy = shutil.copytree(dataset, tmp_path_factory.mktemp("damaged") / "dataset")
    read_metadata(copy)[-1].path.write_bytes(b"no video")
    return copy


@pytest.fixture(scope="module")
def cache(tmp_path_factory, damaged, model):
    """Of its five clips that can be used."""
    out = tmp_path_factory.mktemp("cache")
    size = ClipSize(frames=9, height=64, width=64)
    cache_latents(damaged, model, out, size=size, text_tokens=20, skip_unusable=True)
    return out


def test_clips_are_spread_evenly(dataset):  # six of them
    clips = read_metadata(dataset)
    assert names(choose_clips(clips, 3)) == ["video_000001", "video_000003", "video_000005"]
    assert names(choose_clips(clips[2:], 2)) == ["video_000003", "video_000005"]
    with pytest.raises(ValueError, match="6 clips to choose from, expected at least 7"):
        choose_clips(clips, 7)


def test_held_out_clips_are_the_last_that_can_be_used(damaged, cache):
    clips = read_metadata(damaged)
    assert held_out_clips(damaged, cache, 2) == clips[3:5]
    with pytest.raises(ValueError, match="has 5 clips, expected the 6 held out"):
        held_out_clips(damaged, cache, 6)


def test_requests_take_a_clips_own_frames_and_caption(tmp_path):
    clips = [Clip(tmp_path / "a.mp4", "a dog"), Clip(tmp_path / "b.mp4", "a cat")]
    first, second = task_requests("start_end_noise", clips, 81)
    assert [first.name, first.prompt] == ["0001", "a dog"]
    assert [second.name, second.prompt] == ["0002", "a cat"]
    start, end = second.placements
    assert (start.file, start.source, start.first, start.last) == (tmp_path / "b.mp4", 1, 1, 1)
    assert (end.file, end.source, end.first, end.last) == (tmp_path / "b.mp4", 81, 81, 81)
    assert [start.multipliers, end.multipliers] == [(0.3,), (0.7,)]


def command(dataset, model, manifest, *more, task="start_last_four", frames=9):
    size = ["--frames", frames, "--height", 64, "--width", 64]
    words = ["sample-task", task, dataset, model, manifest, "--clips", 2, "--steps", 1, *size]
    return CliRunner().invoke(app, [*map(str, [*words, *more]), "--device", "cpu"])


def test_a_job_makes_its_videos_and_goes_on_after_an_interruption(tmp_path, damaged, model, cache):
    manifest = tmp_path / "task/videos.csv"
    held_out = ("--cache", cache, "--held-out", 4)
    done = command(damaged, model, manifest, *held_out)
    assert done.exit_code == 0, done.exception

    clips = read_metadata(damaged)
    captions = [clips[1].caption, clips[3].caption]
    table, folder = read_manifests([manifest])
    assert folder == manifest.parent and is_complete(manifest)
    assert list(table["file"]) == ["0001.mp4", "0002.mp4"]
    assert list(table["prompt"]) == captions
    for name, caption in zip(table["file"], captions, strict=True):
        settings = read_settings(folder / name)
        assert settings["prompt"] == caption
        assert settings["given"] == [[1, 1, 0.0], [6, 9, 0.0]]
        assert video_shape(folder / name) == (9, 64, 64)

    # a finished video is kept, a lost one is made again
    kept, lost = folder / "0001.mp4", folder / "0002.mp4"
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    assert not is_complete(manifest)
    assert command(damaged, model, manifest, *held_out).exit_code == 0
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == content


def test_a_clip_too_short_for_the_task_is_refused_first(tmp_path, dataset, model):
    done = command(dataset, model, tmp_path / "videos.csv", task="completion")
    assert "task completion takes clips of at least 25 frames, found 9" in str(done.exception)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("negative", "message"),
    [("", "cannot be read as a video"), ("a " * 600, "negative prompt")],
    ids=["clip", "negative prompt"],
)
def test_what_cannot_be_used_is_refused_before_weights_are_loaded(
    tmp_path, dataset, damaged, model, monkeypatch, negative, message
):
    monkeypatch.setattr(pipeline, "load_pipeline", lambda *_, **__: pytest.fail("weights loaded"))
    (tmp_path / "negative.txt").write_text(negative)
    clips = dataset if negative else damaged
    more = ["--clips", 6, "--negative-prompt-file", tmp_path / "negative.txt"]
    done = command(clips, model, tmp_path / "task/videos.csv", *more)
    assert isinstance(done.exception, ValueError)
    assert re.search(message, str(done.exception))


def test_a_cache_without_a_number_of_clips_is_refused(tmp_path, dataset, model, cache):
    done = command(dataset, model, tmp_path / "videos.csv", "--cache", cache)
    assert "--cache and --held-out go together" in str(done.exception)


def test_an_unknown_task_is_a_usage_error(tmp_path, dataset, model):
    done = command(dataset, model, tmp_path / "videos.csv", task="inpainting")
    assert done.exit_code == 2
    assert "start_end_noise" in done.output
