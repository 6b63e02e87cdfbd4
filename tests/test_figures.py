from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pusa.aggregate import NAMES
from pusa.experiments import Setting, read_experiments
from pusa.figures import make_contact_sheet, plot_figure3, plot_losses, plot_scores
from pusa.video import read_video, write_video

CONFIG = Path(__file__).parents[1] / "config"
MAIN = Setting(model="pusa", task="i2v", steps=10, rank=64, iteration=300, alpha=1.4, seed=0)
BASE = Setting(model="base", task="i2v", steps=10)


def not_blank(file):
    pixels = np.asarray(Image.open(file).convert("RGB"))
    return pixels.std() > 5


@pytest.fixture
def samples(tmp_path, suite, prompts):
    """A video for every subject prompt."""
    for prompt in prompts[:2]:
        clip = read_video(suite / "reference" / f"{prompt.index:04d}.mp4")[:9]
        write_video(tmp_path / prompt.video_name(0), clip)
    return tmp_path


def test_losses(tmp_path):
    run = tmp_path / "pusa-rank2-seed0"
    run.mkdir()
    (run / "training.csv").write_text("iteration,loss\n1,1.0\n2,0.8\n")
    rows = [f"{i},{n},{1 - i / 10}" for i in (0, 2) for n in
            ("asynchronous", "image_to_video", "synchronous")]  # fmt: skip
    (run / "validation.csv").write_text("\n".join(["iteration,loss,value", *rows]) + "\n")
    plot_losses([run], tmp_path / "losses.png")
    assert not_blank(tmp_path / "losses.png")


def test_scores(tmp_path):
    sheet = read_experiments(CONFIG / "demo_experiments.tsv", seed=0)
    scores = {
        s.name: pd.DataFrame([{"file": "a", "dimension": n, "value": 0.5} for n in NAMES])
        for s in sheet["setting"]
    }
    published = pd.read_csv(CONFIG / "published" / "table2.csv", dtype={"alpha": str})
    plot_scores(sheet, scores, published, MAIN, tmp_path / "scores.png")
    assert not_blank(tmp_path / "scores.png")


@pytest.mark.parametrize("with_references", [False, True])
def test_figure3(tmp_path, samples, suite, prompts, with_references):
    options = {"references": suite / "reference"} if with_references else {}
    plot_figure3(
        prompts[:2],
        {BASE: samples, MAIN: samples},
        tmp_path / "figure3.png",
        height=64,
        width=64,
        **options,
    )
    assert not_blank(tmp_path / "figure3.png")


def test_contact_sheet(tmp_path, samples, prompts):
    make_contact_sheet(prompts[:2], MAIN, samples, tmp_path / "sheet.png")
    assert not_blank(tmp_path / "sheet.png")
    grid = read_video(tmp_path / "sheet.mp4")
    assert len(grid) == 9
    assert grid.shape[2] > grid.shape[1] >= 64
