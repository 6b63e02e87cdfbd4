import numpy as np
import pandas as pd
import pytest

from pusa.dataset import read_clip, read_metadata
from pusa.video import read_video, write_video


def write_metadata(folder, rows, columns=("file_name", "text")):
    (folder / "train").mkdir(exist_ok=True)
    for row in rows:
        (folder / row[0]).touch()
    pd.DataFrame(rows, columns=list(columns)).to_csv(folder / "metadata.csv", index=False)


@pytest.fixture
def clip(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mp4", frames)
    return tmp_path / "a.mp4"


def test_rows_in_order(tmp_path):
    rows = [("train/b.mp4", 'a "quoted", caption'), ("train/a.mp4", "NA")]
    write_metadata(tmp_path, rows)
    clips = read_metadata(tmp_path)
    assert [(c.path, c.caption) for c in clips] == [(tmp_path / f, t) for f, t in rows]


def test_rendered_dataset_is_readable(dataset):
    clips = read_metadata(dataset)
    assert len(clips) == 6
    assert read_clip(clips[0].path, frames=33, height=64, width=64).shape == (33, 64, 64, 3)


def test_missing_metadata(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metadata\.csv does not exist; expected a CSV"):
        read_metadata(tmp_path)


@pytest.mark.parametrize("column", ["file_name", "text"])
def test_missing_column(tmp_path, column):
    names = [c if c != column else "other" for c in ("file_name", "text")]
    write_metadata(tmp_path, [("train/a.mp4", "caption")], names)
    with pytest.raises(ValueError, match=f"column '{column}' is missing; found .*other"):
        read_metadata(tmp_path)


@pytest.mark.parametrize("caption", ["", "  "])
def test_empty_caption(tmp_path, caption):
    write_metadata(tmp_path, [("train/a.mp4", "caption"), ("train/b.mp4", caption)])
    with pytest.raises(ValueError, match=r"line 3: the caption of 'train/b\.mp4' is empty"):
        read_metadata(tmp_path)


def test_missing_file(tmp_path):
    write_metadata(tmp_path, [("train/a.mp4", "one"), ("train/b.mp4", "two")])
    (tmp_path / "train" / "b.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"line 3: .*b\.mp4 does not exist"):
        read_metadata(tmp_path)


def test_no_rows(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(ValueError, match="no clips; expected at least one row"):
        read_metadata(tmp_path)


def test_empty_metadata_is_named(tmp_path):
    (tmp_path / "metadata.csv").touch()
    with pytest.raises(ValueError, match=r"metadata\.csv"):
        read_metadata(tmp_path)


def test_first_frames(clip):
    taken = read_clip(clip, frames=5, height=32, width=48)
    assert np.array_equal(taken, read_video(clip)[:5])


def test_short_clip(clip):
    with pytest.raises(ValueError, match=r"a\.mp4: 9 frames, expected at least 13"):
        read_clip(clip, frames=13, height=32, width=48)


def test_clip_of_another_size(clip):
    with pytest.raises(ValueError, match=r"a\.mp4: 48x32 pixels, expected 64x32"):
        read_clip(clip, frames=9, height=32, width=64)


def test_unreadable_clip(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"a\.mp4: cannot be read as a video"):
        read_clip(tmp_path / "a.mp4", frames=9, height=32, width=48)


def test_frames_not_of_the_form_4k_plus_1(clip):
    with pytest.raises(ValueError, match="4k\\+1, found 8"):
        read_clip(clip, frames=8, height=32, width=48)
