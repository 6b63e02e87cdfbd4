import pytest
from typer.testing import CliRunner

from pusa.cli import app
from pusa.dataset import Clip
from pusa.sample_task import choose_clips, task_requests
from pusa.suite import is_complete, read_manifests
from pusa.video import read_settings, video_shape


def names(clips) -> list[str]:
    return [clip.path.stem for clip in clips]


def test_clips_are_spread_evenly(dataset):  # six of them
    assert names(choose_clips(dataset, 3)) == ["video_000001", "video_000003", "video_000005"]
    assert names(choose_clips(dataset, 2, held_out=2)) == ["video_000005", "video_000006"]
    assert names(choose_clips(dataset, 2, held_out=4)) == ["video_000003", "video_000005"]


@pytest.mark.parametrize(
    ("count", "held_out", "message"),
    [
        (7, None, "has 6 clips to choose from, expected 7"),
        (3, 2, "has 2 clips to choose from, expected 3"),
        (1, 32, "has 6 clips, expected the 32 held out"),
    ],
)
def test_too_few_clips(dataset, count, held_out, message):
    with pytest.raises(ValueError, match=message):
        choose_clips(dataset, count, held_out=held_out)


def test_requests_take_a_clips_own_frames_and_caption(tmp_path):
    clips = [Clip(tmp_path / "a.mp4", "a dog"), Clip(tmp_path / "b.mp4", "a cat")]
    first, second = task_requests("start_end_noise", clips, 81)
    assert [first.name, first.prompt] == ["0001", "a dog"]
    assert [second.name, second.prompt] == ["0002", "a cat"]
    start, end = second.placements
    assert (start.file, start.source, start.first, start.last) == (tmp_path / "b.mp4", 1, 1, 1)
    assert (end.file, end.source, end.first, end.last) == (tmp_path / "b.mp4", 81, 81, 81)
    assert [start.multipliers, end.multipliers] == [(0.3,), (0.7,)]


def command(dataset, model, manifest, *, task="start_last_four", frames=9):
    size = ["--frames", frames, "--height", 64, "--width", 64]
    words = ["sample-task", task, dataset, model, manifest, "--clips", 2, "--steps", 1, *size]
    return CliRunner().invoke(app, [*map(str, words), "--held-out", "4", "--device", "cpu"])


def test_a_job_makes_its_videos_and_goes_on_after_an_interruption(tmp_path, dataset, model):
    manifest = tmp_path / "task/videos.csv"
    done = command(dataset, model, manifest)
    assert done.exit_code == 0, done.exception

    captions = [clip.caption for clip in choose_clips(dataset, 2, held_out=4)]
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
    assert command(dataset, model, manifest).exit_code == 0
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == content


def test_a_clip_too_short_for_the_task_is_refused_first(tmp_path, dataset, model):
    done = command(dataset, model, tmp_path / "videos.csv", task="completion")
    assert "task completion takes clips of at least 25 frames, found 9" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_an_unknown_task_is_a_usage_error(tmp_path, dataset, model):
    done = command(dataset, model, tmp_path / "videos.csv", task="inpainting")
    assert done.exit_code == 2
    assert "start_end_noise" in done.output
