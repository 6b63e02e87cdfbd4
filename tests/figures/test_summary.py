from pathlib import Path

import pandas as pd
import pytest

from pusa.experiments import Setting
from pusa.figures.summary import plot_figure1
from pusa.report.tables import read_published
from tests.drawing import record_figures, texts, written

PUBLISHED = read_published(Path(__file__).parents[2] / "config/published/table1.csv")
MAIN = Setting(model="pusa", task="i2v", steps=10, rank=64, iteration=300, alpha=1.4, seed=0)
WAN_I2V = Setting(model="wan_i2v", task="i2v", steps=50)


@pytest.fixture
def drawn(monkeypatch):
    return record_figures(monkeypatch)


def table1(scorer, **totals):
    """The published rows, and ours with intervals of one point to both sides."""
    models = {"pusa": MAIN.label, "wan_i2v": WAN_I2V.label}
    here = [
        {"model": models[model], "total": total, "total_low": total - 1, "total_high": total + 1}
        for model, total in totals.items()
    ]
    here = pd.DataFrame(here).assign(source="here", scorer=scorer)
    return pd.concat([PUBLISHED.assign(source="published"), here])


def costs(**rows):
    """Hours, GPU-hours and dollars by stage."""
    columns = ["stage", "hours", "gpu_hours", "usd"]
    main = {f"train: {MAIN.run}": rows.pop("main")} if "main" in rows else {}
    return pd.DataFrame([(stage, *row) for stage, row in (main | rows).items()], columns=columns)


def labels(axis):
    return [text.get_text() for text in axis.texts]


def test_figure1_of_the_embedded_scale(tmp_path, drawn):
    took = costs(main=(0.1, 0, None), train_tiny_baseline=(0.25, 0, None), total=(1, 0, None))
    scores = table1("weight_free", wan_i2v=71.0, pusa=74.5)
    out = tmp_path / "figure1.png"
    plot_figure1(scores, took, out, main=MAIN, baseline=WAN_I2V, clips=60, note="33 frames.")
    assert written(out)
    axes = drawn[0].axes
    assert [labels(axis) for axis in axes[:4]] == [
        ["86.86", "87.32"],
        ["≥ 10M", "4K"],
        ["≥ 100K", "500"],
        ["50", "10"],
    ]
    assert [labels(axis) for axis in axes[4:8]] == [
        ["71.00", "74.50"],
        ["60", "60"],
        ["15.0", "6.0"],
        ["50", "10"],
    ]
    assert axes[4].get_title() == "weight-free scores,\nnot VBench"
    assert axes[6].get_title() == "training, minutes\nwithout a GPU"
    interval = axes[4].collections[0].get_segments()[0]
    assert interval[:, 1].tolist() == [70.0, 72.0]
    (note,) = [text for text in texts(drawn[0]) if text.endswith("33 frames.")]
    assert "in its manner" in note
    cells = {key: cell.get_text().get_text() for key, cell in axes[8].tables[0].get_celld().items()}
    assert [cells[1, i] for i in range(5)] == ["✓"] + ["\N{EN DASH}"] * 4
    assert [cells[2, i] for i in range(5)] == ["✓"] * 5


@pytest.mark.parametrize(
    ("row", "title", "label"),
    [
        ((30, 240, 480.0), "training cost, $", "480"),
        ((30, 240, None), "training, GPU-hours", "240.0"),
    ],
)
def test_figure1_of_the_papers_scale(tmp_path, drawn, row, title, label):
    """Wan-I2V is downloaded: scored, but not trained here."""
    scores = table1("vbench", wan_i2v=86.0, pusa=87.0)
    out = tmp_path / "figure1.png"
    plot_figure1(scores, costs(main=row), out, main=MAIN, baseline=WAN_I2V, clips=3860)
    axes = drawn[0].axes
    assert axes[4].get_title() == "VBench-I2V total"
    assert axes[6].get_title() == title
    absent = "not in\nthis run"
    assert [labels(axis) for axis in axes[4:8]] == [
        ["86.00", "87.00"],
        [absent, "3,860"],
        [absent, label],
        ["50", "10"],
    ]


def test_figure1_of_a_released_lora_without_a_baseline(tmp_path, drawn):
    scores, took = table1("vbench", pusa=87.0), costs(total=(1, 8, None))
    plot_figure1(scores, took, tmp_path / "figure1.png", main=MAIN, baseline=None)
    absent = "not in\nthis run"
    assert [labels(axis) for axis in drawn[0].axes[4:8]] == [
        [absent, "87.00"],
        [absent, absent],
        [absent, absent],
        [absent, "10"],
    ]


def test_figure1_without_the_published_rows(tmp_path):
    scores = table1("vbench", pusa=87.0)
    with pytest.raises(ValueError, match="no published rows Wan-I2V and Ours"):
        plot_figure1(
            scores[scores["model"] != "Ours"],
            costs(main=(1, 8, None)),
            tmp_path / "figure1.png",
            main=MAIN,
            baseline=None,
        )
