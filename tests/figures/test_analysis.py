import json

import numpy as np
import pandas as pd
import pytest

from pusa.digests import write_record
from pusa.figures.analysis import plot_attention, plot_drift, short_name
from tests.drawing import record_figures, texts, written


@pytest.fixture
def drawn(monkeypatch):
    return record_figures(monkeypatch)


def write_attention(folder, label, first, frames=9, steps=(0, 3), block=2, as_authors=False):
    """Maps in which every query gives ``first`` to frame 0 and shares the rest evenly."""
    weights = np.full((frames, frames), (1 - first) / (frames - 1))
    weights[:, 0] = first
    queries, keys = np.indices(weights.shape)
    maps = [
        pd.DataFrame({"step": step, "query": queries.ravel(), "key": keys.ravel()}).assign(
            weight=weights.ravel()
        )
        for step in steps
    ]
    file = folder / f"{label}.csv"
    pd.concat(maps).to_csv(file, index=False)
    about = {"label": label, "steps_total": 10, "block": block, "as_authors": as_authors}
    write_record([file], about)
    return file


def write_drift(folder, label, changes):
    """Changes by parameter, with the kind and block that its name tells."""
    rows = []
    for parameter, change in changes.items():
        words = parameter.split(".")
        inside = words[0] == "blocks"
        kinds = {"attn1": "self-attention", "ffn": "feed-forward", "image_embedder": "image"}
        kind = kinds.get(words[2] if inside else words[1], "embedding")
        rows.append((parameter, kind, int(words[1]) if inside else None, change))
    columns = ["parameter", "module", "block", "relative_change"]
    file = folder / f"{label}.csv"
    pd.DataFrame(rows, columns=columns).astype({"block": "Int64"}).to_csv(file, index=False)
    write_record([file], {"label": label})
    return file


def test_attention(tmp_path, drawn):
    files = [
        write_attention(tmp_path, "base", first=0.05),
        write_attention(tmp_path, "mine", first=0.5),
    ]
    plot_attention(files, tmp_path / "figure4.png", note="Noted.")
    assert written(tmp_path / "figure4.png")
    (figure,) = drawn
    maps = [axis.images[0] for axis in figure.axes if axis.images]
    assert len(maps) == 4
    assert {m.norm.vmax for m in maps} == {0.5}  # one scale for all
    np.testing.assert_allclose(maps[2].get_array()[:, 0], 0.5)
    assert maps[2].get_array()[3, 4] == pytest.approx(0.5 / 8)
    (mass,) = [axis for axis in figure.axes if len(axis.lines) == 3]
    curves = {line.get_label(): list(line.get_ydata()) for line in mass.lines}
    assert curves == {
        "base + VTA": pytest.approx([0.05, 0.05]),
        "mine": pytest.approx([0.5, 0.5]),
        "uniform, 1/9": pytest.approx([1 / 9, 1 / 9]),
    }
    assert list(mass.lines[0].get_xdata()) == [0, 3]
    assert any(text.startswith("Self-attention of block 2,") for text in texts(figure))
    assert any("averaged over heads and tokens after the softmax" in t for t in texts(figure))
    assert any(text.endswith("Noted.") for text in texts(figure))


def test_attention_as_authors(tmp_path, drawn):
    """The figure says so, and is not of both kinds."""
    authors = write_attention(tmp_path, "authors", first=0.1, as_authors=True)
    plot_attention([authors], tmp_path / "figure4.png")
    assert any("averaged before the softmax, as the authors do" in t for t in texts(drawn[0]))
    exact = write_attention(tmp_path, "exact", first=0.1)
    with pytest.raises(ValueError, match=r"authors\.csv has tokens .*exact\.csv has weights"):
        plot_attention([exact, authors], tmp_path / "both.png")


def test_attention_of_bad_files(tmp_path):
    out = tmp_path / "figure4.png"
    good = write_attention(tmp_path, "good", first=0.1)

    bad = tmp_path / "bad.csv"

    def written_as(text):
        bad.write_text(text)
        write_record([bad], json.loads((tmp_path / "good.json").read_text()))
        return [good, bad]

    def altered(**columns):
        return written_as(pd.read_csv(good).assign(**columns).to_csv(index=False))

    with pytest.raises(FileNotFoundError, match=r"gone\.json does not exist; expected beside gone"):
        plot_attention([tmp_path / "gone.csv"], out)
    with pytest.raises(ValueError, match=r"bad\.csv: weights of step 0 sum to 2 over the keys"):
        plot_attention(altered(weight=lambda t: 2 * t["weight"]), out)
    with pytest.raises(ValueError, match=r"step 0 has 81 rows; expected one for each .* 81"):
        plot_attention(altered(key=lambda t: t["key"].replace(3, 4)), out)
    with pytest.raises(
        ValueError, match=r"bad\.csv has steps \[1, 4\] of 9 latent .* \[0, 3\] of 9"
    ):
        plot_attention(altered(step=lambda t: t["step"] + 1), out)
    short = write_attention(tmp_path, "short", first=0.1, frames=3)
    with pytest.raises(ValueError, match=r"short\.csv has steps \[0, 3\] of 3 latent frames"):
        plot_attention([good, short], out)
    other = write_attention(tmp_path, "other", first=0.1, block=1)
    with pytest.raises(ValueError, match=r"other\.csv is of block 1, but .*good\.csv of block 2"):
        plot_attention([good, other], out)
    with pytest.raises(ValueError, match=r"bad\.csv: no column key, weight; expected step, query"):
        plot_attention(written_as("step,query\n0,0\n"), out)
    with pytest.raises(ValueError, match=r"bad\.csv has no rows"):
        plot_attention(written_as("step,query,key,weight\n"), out)
    with pytest.raises(ValueError, match=r"bad\.csv: cannot be read as CSV"):
        plot_attention(written_as(""), out)
    bad.write_text(other.read_text())  # exchanged with another model's
    with pytest.raises(ValueError, match=r"bad\.csv is not the table that bad\.json was written"):
        plot_attention([good, bad], out)
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ValueError, match=r"bad\.json: expected a JSON object with the key 'label'"):
        plot_attention([bad], out)
    assert not out.exists()


def test_drift(tmp_path, drawn):
    base = {f"blocks.{b}.attn1.to_q.weight": 0.1 * (b + 1) for b in range(3)}
    base |= {f"blocks.{b}.ffn.net.2.weight": 0.3 for b in range(3)}
    added = {"condition_embedder.image_embedder.norm1.weight": None}  # not in the base
    untouched = {"patch_embedding.weight": 0.0}
    files = [
        write_drift(tmp_path, "wan_i2v", base | added | untouched),
        write_drift(tmp_path, "pusa", {k: v / 100 for k, v in base.items()} | untouched),
    ]
    plot_drift(files, tmp_path / "figure5.png")
    assert written(tmp_path / "figure5.png")
    (figure,) = drawn
    modules, largest, blocks = figure.axes[:3]
    assert [label.get_text() for label in modules.get_yticklabels()] == [
        "embedding",
        "self-attention",
        "feed-forward",
    ]
    assert [text.get_text().strip() for text in modules.texts] == ["0", "0.2", "0.3"]
    names = [label.get_text() for label in largest.get_yticklabels()]
    assert len(names) == 7  # of 20 there might be; the largest on top
    assert names[-1] in {f"block {b} ffn out" for b in range(3)} | {"block 2 self-attn q"}
    np.testing.assert_allclose(blocks.lines[0].get_ydata(), [0.2, 0.25, 0.3])
    for axis, below in zip((modules, blocks), (figure.axes[3], figure.axes[5]), strict=True):
        assert axis.get_xlim() == below.get_xlim()
        assert axis.get_ylim() == below.get_ylim()
    low, high = blocks.get_ylim()
    assert low <= 0.002 and high >= 0.3  # holds the curves of both
    assert {"Wan-I2V", "Pusa"} <= set(texts(figure))


def test_drift_of_bad_files(tmp_path):
    out = tmp_path / "figure5.png"
    still = write_drift(tmp_path, "still", {"blocks.0.attn1.to_q.weight": 0.0})
    with pytest.raises(ValueError, match=r"still\.csv: no parameter has a relative change above 0"):
        plot_drift([still], out)
    still.write_text("parameter,module,block\na,norm,0\n")
    with pytest.raises(ValueError, match=r"still\.csv is not the table"):
        plot_drift([still], out)
    write_record([still], {"label": "still"})
    with pytest.raises(ValueError, match=r"still\.csv: no column relative_change"):
        plot_drift([still], out)
    still.unlink()
    with pytest.raises(FileNotFoundError, match=r"still\.csv does not exist"):
        plot_drift([still], out)


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ("blocks.39.attn1.to_q.weight", "block 39 self-attn q"),
        ("blocks.0.attn2.to_out.0.bias", "block 0 cross-attn o bias"),
        ("blocks.7.ffn.net.0.proj.weight", "block 7 ffn in"),
        ("blocks.7.scale_shift_table", "block 7 modulation"),
        ("blocks.7.attn1.norm_k.weight", "block 7 self-attn norm_k"),
        ("condition_embedder.time_embedder.linear_1.weight", "time linear_1"),
        ("condition_embedder.image_embedder.ff.net.0.proj.bias", "image ff in bias"),
        ("patch_embedding.weight", "patches"),
        ("proj_out.weight", "proj_out"),
    ],
)
def test_short_names(parameter, expected):
    assert short_name(parameter) == expected
