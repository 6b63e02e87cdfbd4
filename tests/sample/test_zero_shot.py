import shutil

import pytest

from pusa.config import SampleSwitches, Weights
from pusa.data.cache import cache_latents
from pusa.data.dataset import read_metadata
from pusa.data.manifest import read_manifests
from pusa.data.video import read_settings, video_shape
from pusa.sample import generate
from pusa.sample.zero_shot import choose_clips, held_out_clips, sample_task


@pytest.fixture(scope="module")
def damaged(tmp_path_factory, dataset):
    """The dataset of six clips, of which the last cannot be read."""
    copy = shutil.copytree(dataset, tmp_path_factory.mktemp("damaged") / "dataset")
    read_metadata(copy)[-1].path.write_bytes(b"no video")
    return copy


@pytest.fixture
def sample(settings, model, tmp_path):
    """A function that samples a task in one step."""

    def call(task, clips, weights=Weights(), **changes):  # noqa: B008
        chosen = settings.part(type(settings), steps=1, **changes)
        out = tmp_path / "task"
        return sample_task(
            task,
            clips,
            chosen,
            model=model,
            weights=weights,
            out=out,
            switches=SampleSwitches(),
            device="cpu",
        )

    return call


def test_clips_are_spread_evenly(dataset):  # six of them
    clips = read_metadata(dataset)
    names = [clip.path.stem for clip in choose_clips(clips, 3)]
    assert names == ["video_000001", "video_000003", "video_000005"]
    assert choose_clips(clips[2:], 2) == [clips[2], clips[4]]
    with pytest.raises(ValueError, match="6 clips to choose from, expected at least 7"):
        choose_clips(clips, 7)


def test_held_out_clips_are_the_last_that_can_be_used(damaged, model, size, tmp_path):
    cache_latents(damaged, model, tmp_path, size=size, text_tokens=20, skip_unusable=True)
    clips = read_metadata(damaged)
    assert held_out_clips(damaged, tmp_path, 2) == clips[3:5]
    with pytest.raises(ValueError, match="has 5 clips, expected the 6 held out"):
        held_out_clips(damaged, tmp_path, 6)


def test_a_clips_own_frames_and_caption(sample, dataset, lora, tmp_path):
    """A finished video is kept, a lost one is made again, and one of other settings anew."""
    clips = read_metadata(dataset)[1:3]
    table = sample("start_last_four", clips, Weights(lora=[f"{lora}:1.4"]))
    table.to_csv(tmp_path / "task/videos.csv", index=False)
    read, folder = read_manifests([tmp_path / "task/videos.csv"])
    assert read.equals(table)
    assert list(table["file"]) == ["0001.mp4", "0002.mp4"]
    assert list(table["index"]) == [1, 2]
    assert list(table["prompt"]) == [clip.caption for clip in clips]
    for file, clip in zip(table["file"], clips, strict=True):
        found = read_settings(folder / file)
        assert (found["prompt"], found["given"]) == (clip.caption, [[1, 1, 0.0], [6, 9, 0.0]])
        assert [(c["file"], c["source"]) for c in found["conditions"]] == [
            (clip.path.name, 1),
            (clip.path.name, 6),
        ]
        assert video_shape(folder / file) == (9, 64, 64)

    kept, lost = folder / "0001.mp4", folder / "0002.mp4"
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    sample("start_last_four", clips, Weights(lora=[f"{lora}:1.4"]))
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == content
    sample("start_last_four", clips, Weights(lora=[lora]))
    assert kept.stat().st_mtime_ns != before


def test_what_cannot_be_used_is_refused_before_weights_are_loaded(
    sample, dataset, damaged, tmp_path, monkeypatch
):
    monkeypatch.setattr(generate, "load_pipeline", lambda *_: pytest.fail("weights loaded"))
    clips = read_metadata(dataset)
    with pytest.raises(ValueError, match="completion takes clips of at least 25 frames, found 9"):
        sample("completion", clips)
    with pytest.raises(ValueError, match="cannot be read as a video"):
        sample("start_end", read_metadata(damaged))
    with pytest.raises(ValueError, match="negative prompt has"):
        sample("start_end", clips, negative_prompt="a " * 600)
    assert not list(tmp_path.iterdir())
