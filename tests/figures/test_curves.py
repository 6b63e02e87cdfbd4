import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pusa.experiments import read_experiments
from pusa.figures.curves import plot_losses, plot_scores
from pusa.figures.style import BLUE
from pusa.report.study import Study
from pusa.report.tables import read_published
from pusa.score.arithmetic import NAMES, total_scores
from pusa.score.intervals import score_intervals
from tests.drawing import record_figures, written

CONFIG = Path(__file__).parents[2] / "config"
PUBLISHED = read_published(CONFIG / "published/table2.csv")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("pusa.score.intervals.RESAMPLES", 500)


@pytest.fixture
def drawn(monkeypatch):
    return record_figures(monkeypatch)


def test_losses(tmp_path, drawn):
    """A colour for each model, the paper's the same as in every figure; a dash for each run."""
    run = tmp_path / "pusa-rank2-seed0"
    run.mkdir()
    (run / "training.csv").write_text("iteration,loss\n1,1.0\n2,0.8\n")
    rows = [f"{i},{n},{1 - i / 10}" for i in (0, 2) for n in
            ("asynchronous", "image_to_video", "synchronous")]  # fmt: skip
    (run / "validation.csv").write_text("\n".join(["iteration,loss,value", *rows]) + "\n")
    other = shutil.copytree(run, tmp_path / "pusa-rank4-seed0")
    plain = shutil.copytree(run, tmp_path / "control-rank2-seed0")
    models = {plain: "control", run: "pusa", other: "pusa"}
    plot_losses(models, tmp_path / "losses.png")
    assert written(tmp_path / "losses.png")
    for axis in drawn[0].axes:
        control, first, second = axis.lines
        assert control.get_color() != first.get_color() == second.get_color() == BLUE
        assert first.get_linestyle() != second.get_linestyle()


KINDS = ["subject", "subject", "background", "camera"]
SUBSET = {"subject": 1, "background": 1, "camera": 1}


def curves(figure):
    """Labels and totals of our curve in each panel, and the paper's totals above it."""
    papers, ours = figure.axes[:4], figure.axes[4:]
    return [
        (labels(axis), list(axis.lines[0].get_ydata()), list(above.lines[0].get_ydata()))
        for axis, above in zip(ours, papers, strict=True)
    ]


def labels(axis):
    return [label.get_text() for label in axis.get_xticklabels()]


def plot(sheet, out, *, outside=0.5, scorer="weight_free"):
    """Plot a sheet whose scores are all 0.5, but ``outside`` for the prompt beyond the subset."""
    scores = {
        s: pd.DataFrame(
            {"file": f"{i}.mp4", "index": i, "sample": 0, "kind": kind, "dimension": name,
             "value": outside if i == 1 else 0.5, "frames": 9, "scorer": scorer}
            for i, kind in enumerate(KINDS) for name in NAMES
        )
        for s in sheet["setting"]
    }  # fmt: skip
    plot_scores(Study(sheet, scores, SUBSET), PUBLISHED, out)
    assert written(out)


def test_scores(tmp_path, drawn):
    """The paper's sheet: at the main setting or beside it, ours beside the published total."""
    sheet = read_experiments(CONFIG / "experiments.tsv", seed=0)
    plot(sheet, tmp_path / "scores.png", outside=0.0)
    alpha, rank, iteration, steps = curves(drawn[0])
    assert alpha[0] == ["1", "1.4", "1.7", "2"]
    assert rank[0] == ["256", "512"]
    assert iteration[0] == ["150", "450", "750", "900", "1200"]
    assert steps[0] == ["2", "5", "10", "20"]
    assert steps[2][2] == alpha[2][1] == iteration[2][3] == 87.69
    total = total_scores(dict.fromkeys(NAMES, 50.0))["total"]  # of the subset alone
    assert alpha[1] + rank[1] + iteration[1] + steps[1] == pytest.approx([total] * 15)
    assert "not VBench" in drawn[0].get_suptitle()


def test_scores_of_vbench_share_the_papers_scale(tmp_path, drawn):
    sheet = read_experiments(CONFIG / "experiments.tsv", seed=0)
    plot(sheet, tmp_path / "scores.png", scorer="vbench")
    assert len({axis.get_ylim() for axis in drawn[0].axes}) == 1
    assert "not VBench" not in drawn[0].get_suptitle()


def test_each_curve_has_its_own_ranks_and_iterations(tmp_path, drawn):
    plot(read_experiments(CONFIG / "demo_experiments.tsv", seed=0), tmp_path / "scores.png")
    _, rank, iteration, _ = drawn[0].axes[:4]
    assert (labels(rank), labels(iteration)) == (
        ["256", "512"],
        ["150", "450", "750", "900", "1200"],
    )
    _, rank, iteration, _ = drawn[0].axes[4:]
    assert (labels(rank), labels(iteration)) == (["32", "64"], ["15", "45", "75", "90", "120"])
    papers, ours = (
        {axis.get_ylim() for axis in row} for row in (drawn[0].axes[:4], drawn[0].axes[4:])
    )
    assert len(papers) == len(ours) == 1 and papers != ours


def test_scores_have_their_intervals(tmp_path, drawn):
    sheet = read_experiments(CONFIG / "experiments.tsv", seed=0)
    sheet = sheet[(sheet["table"] == "1") | (sheet["group"] == "steps")].assign(prompts="all")
    rng = np.random.default_rng(0)
    rows = [
        {"file": f"{i}.mp4", "index": i, "sample": 0, "kind": kind, "dimension": name,
         "value": rng.uniform(), "frames": 9, "scorer": "weight_free"}
        for i, kind in enumerate(["subject", "background", "camera"] * 9) for name in NAMES
    ]  # fmt: skip
    scores = {s: pd.DataFrame(rows) for s in sheet["setting"]}
    plot_scores(Study(sheet, scores, SUBSET), PUBLISHED, tmp_path / "a.png")
    expected = score_intervals(pd.DataFrame(rows), ["total"])["total"]
    (bars,) = [c for c in drawn[0].axes[7].collections if len(c.get_segments()) == 4]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == pytest.approx(np.tile([expected.low, expected.high], (4, 1)))


def test_scores_of_a_released_lora(tmp_path, drawn):
    sheet = read_experiments(CONFIG / "released_experiments.tsv", seed=None)
    plot(sheet, tmp_path / "scores.png")
    alpha, rank, iteration, steps = (names for names, _, _ in curves(drawn[0]))
    assert (alpha, steps) == (["1", "1.4", "1.7", "2"], ["2", "5", "10", "20"])
    assert (rank, iteration) == ([], ["900"])
    assert [axis.get_visible() for axis in drawn[0].axes] == [True, False, True, True] * 2


def test_scores_of_full_training(tmp_path, drawn):
    sheet = read_experiments(CONFIG / "experiments.tsv", seed=0)
    full = [s if s.rank is None else replace(s, rank=None, alpha=None) for s in sheet["setting"]]
    repeated = pd.DataFrame({"group": sheet["group"], "setting": full}).duplicated()
    plot(sheet.assign(setting=full)[~repeated], tmp_path / "scores.png")
    found = [names for names, _, _ in curves(drawn[0])]
    assert found == [[], [], ["150", "450", "750", "900", "1200"], ["2", "5", "10", "20"]]


def test_scores_without_a_table(tmp_path):
    sheet = read_experiments(CONFIG / "experiments.tsv", seed=0)
    with pytest.raises(ValueError, match="no rows of Table 2"):
        plot(sheet[sheet["table"] == "1"], tmp_path / "scores.png")
