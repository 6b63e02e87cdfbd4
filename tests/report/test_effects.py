from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pusa.experiments import main_setting, read_experiments
from pusa.report.claims import Effect, read_claims
from pusa.report.effects import (
    compare_models,
    measure_effects,
    validation_losses,
    write_effects,
)
from pusa.report.study import Study
from tests.scores import score_table

CONFIG = Path(__file__).parents[2] / "config"
SHEET = read_experiments(CONFIG / "demo_experiments.tsv", seed=0)
MAIN = main_setting(SHEET)
CONTROL = replace(MAIN, model="control")
BASE = SHEET.loc[SHEET["model"] == "base", "setting"].iloc[0]
OURS = read_claims(CONFIG / "claims.yaml")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("pusa.score.intervals.RESAMPLES", 200)


def measure(scores, subset=None, **compare):
    """The table of one effect."""
    effect = Effect(effect="It works", compare=compare or {"i2v_subject": "ours > base"})
    claims = OURS.model_copy(update={"effects": [effect]})
    return measure_effects(claims, Study(SHEET, scores, subset))


# The effects that are stated

OBJECTIVE = "the paper's objective against that of the authors' code"


@pytest.mark.parametrize(
    ("sheet", "missing"),
    [
        ("miniature_experiments", []),
        ("experiments", [OBJECTIVE]),
        ("wan1.3b_experiments", [OBJECTIVE]),
        ("demo_experiments", [OBJECTIVE]),
        (
            "released_experiments",
            [
                OBJECTIVE,
                "vectorized timesteps make the difference (control has one per clip)",
                "more iterations help",
                "then a plateau",
                "a higher rank helps",
            ],
        ),
    ],
)
def test_one_thing_varies_at_a_time(sheet, missing):
    """But for what has none of the LoRA's; and the main setting comes first."""
    experiments = read_experiments(CONFIG / f"{sheet}.tsv", seed=0)
    found = []
    for effect in OURS.effects:
        for _, c in effect.comparisons:
            pair = [OURS.find(name, experiments) for name in (c.right, c.left)]
            if None in pair:
                assert effect.effect in missing
                continue
            before, after = (row["setting"] for row in pair)
            found.append((before, after))
            assert before.task == after.task
            fields = asdict(before).items() ^ asdict(after).items()
            assert len(fields) == 2 or before.model in ("base", "still")
    assert found[0] == (replace(BASE), main_setting(experiments))


# Measuring


@pytest.mark.parametrize(
    ("comparison", "gain", "verdict"),
    [
        ("ours > base", 0.1, "holds"),
        ("ours > base", -0.1, "does not hold"),
        ("ours > base", 0.0, "not decided"),
        ("ours < base", -0.1, "holds"),
        ("ours > base - 5", 0.0, "holds"),
        ("ours = base - 5 + 5", 0.0, "holds"),
        ("ours = base - 5 + 5", 0.19, "does not hold"),  # a gain is no plateau
    ],
)
def test_verdict(comparison, gain, verdict):
    rng = np.random.default_rng(0)
    tables = {
        setting: score_table(lambda *_: shift + 0.02 * rng.normal(), counts=(6, 2, 2))  # noqa: B023
        for setting, shift in ((BASE, 0.5), (MAIN, 0.5 + gain))
    }
    (row,) = measure(tables, i2v_subject=comparison).to_dict("records")
    assert row["verdict"] == verdict
    assert row["difference"] == pytest.approx(100 * gain, abs=3)
    assert row["low"] < row["difference"] < row["high"]
    assert row["value_after"] - row["value_before"] == pytest.approx(row["difference"])
    assert (row["before"], row["after"]) == (BASE.label, MAIN.label)
    assert (row["seeds"], row["scorer"]) == (1, "weight_free")


def test_measures_are_per_cent_and_decibels():
    measures = {"i2v_subject": 0.75, "reference_psnr": 20.0}
    tables = {
        BASE: score_table(also=["reference_psnr"]),
        MAIN: score_table(lambda i, s, name: measures.get(name, 0.5), also=["reference_psnr"]),
    }
    names = ("i2v_subject", "reference_psnr", "total", "motion_match")
    table = measure(tables, **{name: ["ours > base", "steps_20 > ours"] for name in names})
    assert list(table["measure"]) == list(names[:3])  # what there is: without motion, or 20 steps
    columns = table[["value_before", "value_after", "difference"]]
    assert columns.iloc[0].tolist() == pytest.approx([50, 75, 25])
    assert columns.iloc[1].tolist() == pytest.approx([0.5, 20, 19.5])
    # i2v_subject is 1/2.1 of one half; 25 points of the range 14.62..100.
    assert columns.iloc[2, 2] == pytest.approx(25 / (1 - 0.1462) / 2.1 / 2)


def test_seeds_are_averaged_and_their_spread_given():
    tables = {BASE: score_table(0.5)}
    tables |= {replace(MAIN, seed=s): score_table(0.5 + 0.1 * s) for s in (1, 2, 3)}
    tables |= {replace(CONTROL, seed=s): score_table(0.4 + 0.1 * s) for s in (1, 2, 3)}
    (row, paired) = measure(tables, i2v_subject=["ours > base", "ours > control"]).to_dict(
        "records"
    )
    assert row["difference"] == pytest.approx(20)
    assert row["seed_sd"] == pytest.approx(10)  # of 10, 20 and 30
    assert row["seeds"] == 3
    assert (row["value_before"], row["value_after"]) == pytest.approx((50, 70))
    assert paired["difference"] == pytest.approx(10)
    assert paired["seed_sd"] == pytest.approx(0, abs=1e-9)  # each seed against the same one's


def test_settings_are_compared_on_the_prompts_of_both():
    value = lambda i, s, name: 0.5 + (0.1 if i % 2 == 0 else 0.4)  # noqa: E731
    base = score_table(0.5, counts=(6, 6, 6))
    tables = {MAIN: score_table(value, counts=(6, 6, 6)), BASE: base[base["index"] % 2 == 0]}
    counts = {"subject": 3, "background": 3, "camera": 3}
    assert measure(tables, counts)["difference"][0] == pytest.approx(10)
    with pytest.raises(ValueError, match="9 are on one side only"):
        measure(tables)


def test_nothing_to_measure():
    with pytest.raises(ValueError, match=r"found no scores of two rows .* that an effect compares"):
        measure({MAIN: score_table()})


def test_models_stand_beside_what_no_model_makes():
    """Trained ones at the main setting alone, means over seeds, of what all were measured by."""
    still = next(s for s in SHEET["setting"] if s.model == "still")
    text = next(s for s in SHEET["setting"] if s.task == "t2v")
    scores = {
        BASE: score_table(0.2),
        still: score_table(0.8),
        MAIN: score_table(0.5),
        replace(MAIN, seed=1): score_table(0.7),
        replace(MAIN, alpha=2.0): score_table(0.9),
        CONTROL: score_table(0.3),
        text: score_table(0.9),
    }
    table = compare_models(Study(SHEET, scores, None)).set_index("model")
    assert table["i2v_subject"].to_dict() == pytest.approx(
        {BASE.label: 20, "still picture": 80, MAIN.label: 60, CONTROL.label: 30}
    )
    assert "total" in table.columns
    assert "reference_psnr" not in table.columns


# Files


MODELS = pd.DataFrame([{"model": "still picture", "total": 82.151}])


@pytest.fixture
def effects():
    return measure({BASE: score_table(0.5), MAIN: score_table(0.6)})


@pytest.mark.parametrize("scorer", ["vbench", "weight_free"])
def test_titles_say_what_scores_are_not_vbench(tmp_path, effects, scorer):
    write_effects(
        effects.assign(scorer=scorer), MODELS, pd.DataFrame(), tmp_path / "effects", "A run."
    )
    note = "(weight-free scores, not VBench)"
    page, html = ((tmp_path / "effects").with_suffix(s).read_text() for s in (".md", ".html"))
    assert (note in page.splitlines()[0]) == (scorer == "weight_free")
    assert (f"{note}</title>" in html) == (scorer == "weight_free")
    assert ("stand-ins" in page) == (scorer == "weight_free")


def test_pages(tmp_path, effects):
    losses = pd.DataFrame([{"model": "pusa", "rank": 64, "iteration": 300, "synchronous": 0.12342}])
    for seeds in (1, 3):
        write_effects(
            effects.assign(seeds=seeds), MODELS, losses, tmp_path / "effects", "A small run."
        )
        back = pd.read_csv(tmp_path / "effects.csv")
        assert list(back["verdict"]) == ["holds"]
        assert back["difference"][0] == pytest.approx(10)
        for suffix in (".md", ".html"):
            text = (tmp_path / "effects").with_suffix(suffix).read_text()
            for words in (
                "A small run.",
                "0.1234",
                "It works",
                "holds",
                "Validation loss",
                "82.15",
            ):
                assert words in text
            assert ("seed sd" in text) == (seeds > 1)  # one seed has no spread


# Validation losses


def losses_of(tmp_path, *settings):
    return validation_losses(Study(SHEET, dict.fromkeys(settings, pd.DataFrame()), None), tmp_path)


def test_validation_losses_are_averaged_over_seeds(tmp_path):
    for run, value in (("rank16-seed0", 0.2), ("rank16-seed1", 0.4), ("full-seed0", 0.5)):
        file = tmp_path / f"pusa-{run}" / "validation.csv"
        file.parent.mkdir()
        file.write_text(f"iteration,loss,value\n0,synchronous,1.0\n5,synchronous,{value}\n")
    seeds = [replace(MAIN, rank=16, seed=seed) for seed in (0, 1)]
    table = losses_of(tmp_path, BASE, *seeds, replace(seeds[0], steps=2))
    assert table.to_dict("records") == [
        {"model": "pusa", "rank": 16, "iteration": 0, "synchronous": 1.0},
        {"model": "pusa", "rank": 16, "iteration": 5, "synchronous": pytest.approx(0.3)},
    ]
    full = losses_of(tmp_path, replace(MAIN, rank=None, alpha=None))
    assert full.to_dict("records")[1] == {
        "model": "pusa", "rank": "full", "iteration": 5, "synchronous": 0.5,
    }  # fmt: skip


def test_released_lora_has_no_losses(tmp_path, effects):
    losses = losses_of(tmp_path, replace(MAIN, seed=None))
    assert losses.empty
    write_effects(effects, MODELS, losses, tmp_path / "effects", "A small run.")
    assert "Validation loss" not in (tmp_path / "effects.md").read_text()
