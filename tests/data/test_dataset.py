import numpy as np
import pandas as pd
import pytest
import torch

from pusa.data.dataset import TENSORS, open_tensors, read_metadata
from pusa.data.video import read_clip, write_video


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


def test_files_are_found_in_train(tmp_path):
    """The released dataset's trainer looks for every file there."""
    write_metadata(tmp_path, [("train/a.mp4", "one")])
    (tmp_path / "metadata.csv").write_text("file_name,text\na.mp4,one\n")
    assert [clip.path for clip in read_metadata(tmp_path)] == [tmp_path / "train" / "a.mp4"]


def test_tensors_without_videos(tmp_path):
    write_metadata(tmp_path, [("train/a.mp4", "one")])
    with pytest.raises(FileNotFoundError, match=r"line 2: .*a\.mp4\.tensors\.pth does not exist"):
        read_metadata(tmp_path, suffix=TENSORS)
    (tmp_path / "train" / "a.mp4").rename(tmp_path / "train" / "a.mp4.tensors.pth")
    (clip,) = read_metadata(tmp_path, suffix=TENSORS)
    assert clip.path == tmp_path / "train" / "a.mp4.tensors.pth"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (b'a.mp4,"one\ntwo"\nb.mp4, \n', r"line 4: the caption of 'b\.mp4' is empty"),
        (b"a.mp4,one\n\n./a.mp4,two\n", r"line 4: '\./a\.mp4' is named in line 2 already"),
        (b"a.mp4,one\nb.mp4,tw\xe9\n", "line 3: byte 33 of the file, 0xe9, is not UTF-8"),
        (b"a.mp4,one, two\n", "line 2: 3 columns, expected 2 as in line 1"),
        (b"a.mp4\n", "line 2: 1 columns, expected 2 as in line 1"),
        (b'a.mp4,"one\nb.mp4,two\n', "line 3: not CSV"),
        (b"../a.mp4,one\n", r"line 2: '\.\./a\.mp4' leaves the folder; expected a path below"),
        (b"b/../../a.mp4,one\n", "line 2: .* leaves the folder"),
        (b"/a.mp4,one\n", "line 2: '/a.mp4' leaves the folder"),
    ],
    ids=["empty", "twice", "utf-8", "long", "short", "quote", "above", "below", "absolute"],
)
def test_bad_rows_are_named(tmp_path, rows, message):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "metadata.csv").write_bytes(b"file_name,text\n" + rows)
    with pytest.raises(ValueError, match=rf"metadata\.csv, {message}"):
        read_metadata(tmp_path)


def test_metadata_of_a_spreadsheet(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "metadata.csv").write_text("file_name,text\r\na.mp4,é\r\n", encoding="utf-8-sig")
    assert [clip.caption for clip in read_metadata(tmp_path)] == ["é"]


def test_no_rows(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(ValueError, match="no clips; expected at least one row"):
        read_metadata(tmp_path)


def test_empty_metadata_is_named(tmp_path):
    (tmp_path / "metadata.csv").touch()
    with pytest.raises(ValueError, match=r"metadata\.csv"):
        read_metadata(tmp_path)


# Pre-encoded clips

SHAPES = {"latents": (16, 3, 4, 6), "context": (1, 5, 8)}


def tensors(**other):
    latents, context = (torch.rand(shape).bfloat16() for shape in SHAPES.values())
    return {"latents": latents, "prompt_emb": {"context": context}, "image_emb": {}} | other


def test_tensors_are_opened(tmp_path):
    data = tensors()
    torch.save(data, tmp_path / "a.pth")
    latents, context = open_tensors(tmp_path / "a.pth", **SHAPES)
    assert torch.equal(latents, data["latents"])
    assert torch.equal(context, data["prompt_emb"]["context"])
    assert latents.dtype == torch.bfloat16


def test_tensors_of_a_gpu_are_opened(tmp_path, monkeypatch):
    data = tensors()
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(data, tmp_path / "a.pth")
    assert b"cuda:0" in (tmp_path / "a.pth").read_bytes()
    latents, _ = open_tensors(tmp_path / "a.pth", **SHAPES)
    assert torch.equal(latents, data["latents"])


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tensors(latents=torch.rand(16, 2, 4, 6)), r"latents of shape \(16, 2, 4, 6\), expected"),
        (
            tensors(prompt_emb={"context": torch.rand(1, 4, 8)}),
            r"prompt_emb\.context of shape \(1, 4, 8\), expected \(1, 5, 8\)",
        ),
        (tensors(prompt_emb={}), r"no prompt_emb\.context; expected floating point"),
        (tensors(latents=torch.ones(16, 3, 4, 6, dtype=int)), "no latents; expected floating"),
        ([1, 2], "no latents; expected floating point numbers"),
        (
            tensors(image_emb=Evil()),
            "its pickle asks for print, and only tensors are read",
        ),
        (tensors(image_emb=np.zeros(3)), r"its pickle asks for numpy\."),
    ],
    ids=["latents", "context", "missing", "integers", "list", "code", "numpy"],
)
def test_other_tensors_are_refused(tmp_path, capsys, data, message):
    torch.save(data, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"a\.pth: .*{message}"):
        open_tensors(tmp_path / "a.pth", **SHAPES)
    assert capsys.readouterr().out == ""


def test_damaged_tensors_are_refused(tmp_path):
    torch.save(tensors(), tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.pth: cut off, or not a zip file"):
        open_tensors(tmp_path / "cut.pth", **SHAPES)
    (tmp_path / "bad.pth").write_bytes(whole[:70] + b"\xff" * 60 + whole[130:])
    with pytest.raises(ValueError, match=r"bad\.pth: not read: damaged"):
        open_tensors(tmp_path / "bad.pth", **SHAPES)
