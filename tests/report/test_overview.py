import json
import math
from dataclasses import replace

import pandas as pd
import pytest

from pusa.report.claims import read_claims
from pusa.report.overview import (
    SURPASSES,
    Run,
    compare_totals,
    describe_result,
    describe_setup,
    read_run,
    write_overview,
)
from tests.mini import ROOT

NAN = math.nan
SCALE = "This run: a model, 12 prompts."


def scores(total, low=NAN, high=NAN):
    return {"total": total, "total_low": low, "total_high": high}


TABLE1 = [
    {"model": "Magi-1", "group": "open", "source": "published", **scores(89.28)},
    {"model": "Wan-I2V", "group": "baseline", "source": "published", **scores(86.86)},
    {"model": "Wan-I2V", "group": "baseline", "source": "here", **scores(NAN)},
    {"model": "base", "group": "baseline", "source": "here", **scores(50.4, 45.1, 55.2)},
    {"group": "baseline", "source": "here - main", **scores(-2.35, -6.85, 2.7)},
    {"model": "Ours", "group": "ours", "source": "published", **scores(87.32)},
    {"model": "pusa", "group": "ours", "source": "here", **scores(52.75, 48.0, 57.0)},
]
PLACE = {"group": "steps", "rank": 512, "iteration": 900, "alpha": 1.4, "steps": 10}
TABLE2 = [
    {**PLACE, "source": "published", **scores(87.69)},
    {**PLACE, "rank": NAN, "iteration": 144, "source": "here", **scores(52.75, 48.0, 57.0)},
    {**PLACE, "steps": 20, "source": "published", **scores(87.84)},
    {**PLACE, "steps": 20, "source": "here", **scores(NAN)},
]
EFFECTS = [
    ("base", "pusa", "i2v_subject", 36.16, 57.02, 20.86, 9.93, 30.10, "holds"),
    ("base", "pusa", "total", 50.40, 52.75, 2.35, -2.70, 6.85, "not decided"),
    ("base, text", "pusa, text", "total", 1.0, 2.0, 1.0, 0.5, 1.5, "holds"),
]
EFFECT_COLUMNS = [
    *("before", "after", "measure", "value_before", "value_after", "difference"),
    *("low", "high", "verdict"),
]
CLAIMS = {
    "number": [1, 1, 2, 3],
    "claim": ["<b>best</b>", "<b>best</b>", "follows", "kept"],
    "column": ["i2v_subject", "total", "i2v_subject", "total"],
    "comparison": ["ours > wan_i2v", "ours > wan_i2v", "ours > base", "ours > base"],
    "difference": [1.5, NAN, 20.86, 2.35],
    "low": [0.5, NAN, 9.93, -2.7],
    "high": [2.5, NAN, 30.1, 6.85],
    "here": ["holds", "not run", "holds", "not decided"],
    "source": ["Table 1", "Table 1", "Figure 3", "Figure 13"],
    "claim_published": ["holds", "holds", "no published number", "holds"],
    "claim_here": ["not run", "not run", "holds", "not run"],
}
COSTS = {
    "stage": ["train: pusa", "train", "total"],
    "jobs": [1, 2, 1200],
    "hours": [1.5, 2.0, 1234.5],
    "gpu_hours": [12.0, 16.0, 9876.0],
    "usd": [24.0, 32.0, 19752.0],
}
PROVENANCE = {
    "config": {
        "clip": {"frames": 81, "height": 480, "width": 832},
        "sample": {"guidance_scale": 3.0, "shift": 5.0},
        "model": {"path": "models/wan"},
        "lora": {"source": "trained"},
        "train": {"method": "lora"},
        "dataset": {"path": "data/pusa"},
    },
    "repository": {"commit": "abc123", "modified": True},
    "seeds": {"sampling": 0, "training": 7},
    "training": {"a": {"rank": 256, "iterations": [750]}, "b": {"rank": 512, "iterations": [1200]}},
    "times": {"start": "2025-01-01", "end": "2025-01-02"},
    "devices": {"sampling": ["H100"], "scoring": ["H100", "A100"]},
    "scoring": {"base": {"scorer": "weight_free"}, "pusa": {"scorer": "weight_free"}},
    "packages": {"torch": "2.13.0", "numpy": "2.4"},
}


@pytest.fixture
def run():
    return Run(
        table1=pd.DataFrame(TABLE1),
        table2=pd.DataFrame(TABLE2),
        claims=pd.DataFrame(CLAIMS),
        effects=pd.DataFrame(EFFECTS, columns=EFFECT_COLUMNS).assign(scorer="weight_free"),
        costs=pd.DataFrame(COSTS),
        provenance={**PROVENANCE},
    )


def test_totals_stand_beside_the_published_ones(run):
    table, missing = compare_totals(run.table1, run.table2)
    assert missing == 2  # Wan-I2V and 20 steps
    assert table.map(str).drop(columns="table").to_numpy().tolist() == [
        ["", "", "base", "50.40 [45.10, 55.20]", "-2.35 [-6.85, +2.70]"],
        ["Ours", "87.32", "pusa", "52.75 [48.00, 57.00]", ""],
        [
            "rank 512, iteration 900, alpha 1.4, 10 steps",
            "87.69",
            "iteration 144, alpha 1.4, 10 steps",
            "52.75 [48.00, 57.00]",
            "",
        ],
    ]
    assert list(table["table"]) == ["1", "1", "2 (b)"]


def test_result_in_a_sentence(run):
    assert describe_result(run) == (
        "The paper's main effect holds in this run: on i2v_subject, which tells how far a video "
        "keeps to the given image, the adapted model scores 57.02 and the base 36.16, a difference "
        "of +20.86 [+9.93, +30.10], with a 95 % interval. On the total it scores 52.75 and the "
        "base 50.40, a difference of +2.35 [-2.70, +6.85] (not decided)."
    )


def test_result_beside_stillness(run):
    bound = {"model": "still picture", "group": "bounds", "source": "here"}
    below = {"model": None, "group": "bounds", "source": "here - main", **scores(29.4, 20.0, 38.0)}
    table = pd.DataFrame([*TABLE1, {**bound, **scores(82.15, 80.0, 84.3)}, below])
    said = describe_result(replace(run, table1=table))
    assert said.endswith("still, which no model makes, has a total of 82.15 [80.00, 84.30].")
    rows, _ = compare_totals(table, run.table2)
    assert "still picture" in set(rows["setting here"])


def test_bounds_of_table_2_are_not_told_twice(run):
    twice = {"group": "still picture", "source": "here", **scores(82.15)}
    below = {"group": "still picture", "source": "here - main", **scores(29.4)}
    table = pd.DataFrame([*TABLE2, twice, below])
    told, missing = compare_totals(run.table1, run.table2)
    again, missed = compare_totals(run.table1, table)
    pd.testing.assert_frame_equal(told, again)
    assert missing == missed


def test_result_that_is_not_decided_on_backgrounds_alone(run):
    run.effects.loc[0, ["measure", "verdict"]] = ["i2v_background", "not decided"]
    assert describe_result(run).startswith(
        "The paper's main effect is not decided in this run: on i2v_background, which tells how far"
    )


def test_result_of_comparable_scores(run):
    shift = {"group": "ours", "source": "here - published", **scores(-0.25, -0.5, 0.125)}
    run.table1.loc[len(run.table1)] = shift
    assert describe_result(run).endswith(
        ". Its total is 0.25 [-0.12, 0.50] points less than the published one."
    )


def test_result_against_wan_i2v(run):
    run.claims.loc[1, ["difference", "low", "high"]] = [-11.0, -14.5, -7.375]
    run.claims.loc[1, "here"] = "does not hold"
    assert describe_result(run).endswith(
        ". Its total is 11.00 [7.38, 14.50] points less than that of this run's Wan-I2V: that Pusa "
        "surpasses Wan-I2V does not hold here."
    )


def test_claims_have_the_comparison_with_wan_i2v():
    claims = read_claims(ROOT / "config/claims.yaml")
    found = {(str(c), column) for claim in claims.claims for column, c in claim.comparisons}
    assert (SURPASSES, "total") in found


def test_page(run, tmp_path):
    write_overview(run, tmp_path / "overview", SCALE)
    text = (tmp_path / "overview.md").read_text()
    assert text.startswith(
        "# Pusa V1.0, reproduced (weight-free scores, not VBench)\n\nThe paper's"
    )
    for words in (
        *(SCALE, "2 published rows were not run", "cannot be compared value by value"),
        "Of 3 claims, on the published numbers: holds 2, no published number 1; on this run's: "
        "not run 2, holds 1.",
        *("LoRA of rank 256 and 512, up to 1,200 iterations", "81 frames of 832x480"),
        *("12.0 GPU-hours, $24.00", "1,234.500", "19,752.00", "abc123 with changes"),
        *("H100, A100", "sampling 0, training 7", "torch 2.13.0"),
    ):
        assert words in text, words
    assert "numpy" not in text
    html = (tmp_path / "overview.html").read_text()
    assert "&lt;b&gt;best&lt;/b&gt;" in html and "<b>best" not in html


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        ({"source": "hub", "path": "models/i2v"}, "models/i2v"),
        (
            {"source": "tiny", "path": "results/i2v", "steps": 200},
            "trained here for 200 iterations in Wan-I2V's manner: results/i2v",
        ),
    ],
)
def test_what_ran(run, baseline, said):
    assert "Wan-I2V" not in describe_setup(run)
    run.provenance["config"] = PROVENANCE["config"] | {"baseline": baseline}
    facts = describe_setup(run)
    assert facts["Wan-I2V"] == said
    assert (facts["adapted"], facts["base"]) == ("pusa", "base")


def test_released_lora_without_a_price(run, tmp_path):
    run.provenance["config"] = PROVENANCE["config"] | {
        "lora": {"source": "released", "path": "models/released"}
    }
    run.costs["usd"] = NAN
    run.effects["scorer"] = "vbench"
    write_overview(run, tmp_path / "overview", SCALE)
    text = (tmp_path / "overview.md").read_text()
    assert "models/released" in text and "iterations |" not in text
    assert "USD" not in text and "not VBench" not in text


@pytest.fixture
def folder(run, tmp_path):
    for name in ("table1", "table2", "claims", "costs"):
        getattr(run, name).to_csv(tmp_path / f"{name}.csv", index=False)
    run.effects.to_csv(tmp_path / "effects.csv", index=False)
    (tmp_path / "provenance.json").write_text(json.dumps(run.provenance))
    return tmp_path


def test_read_run(folder, run):
    read = read_run(folder, folder / "effects.csv")
    assert describe_result(read) == describe_result(run)
    assert read.provenance == run.provenance


def test_missing_table(folder):
    for name in ("provenance.json", "effects.csv", "table1.csv"):
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{name} does not exist; expected the tables"):
            read_run(folder, folder / "effects.csv")
