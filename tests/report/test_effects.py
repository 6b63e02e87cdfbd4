from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pusa.experiments import Setting
from pusa.report.effects import comparisons, measure_effects, validation_losses, write_effects
from pusa.report.study import Study
from pusa.tiny.dataset import BACKGROUND_DIMENSIONS, SUBJECT_DIMENSIONS

MAIN = Setting(model="pusa", task="i2v", steps=10, rank=64, iteration=300, alpha=1.4, seed=0)
BASE = Setting(model="base", task="i2v", steps=10)
KINDS = {
    "subject": SUBJECT_DIMENSIONS,
    "background": BACKGROUND_DIMENSIONS,
    "camera": ("camera_motion",),
}
EXTRA = ("reference_psnr", "motion_match")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("pusa.score.intervals.RESAMPLES", 500)


def scores(shift=0.0, *, noise=0.02, seed=0, per_kind=6, references=True, **shifts):
    """Per-video scores near 0.5, with an offset for all measures, or for one by its name."""
    rng = np.random.default_rng(seed)
    rows, index = [], 0
    for kind, dimensions in KINDS.items():
        for _ in range(per_kind):
            for name in (*dimensions, *(EXTRA if references else ())):
                value = 0.5 + shifts.get(name, shift) + noise * rng.normal()
                rows.append(
                    {
                        "file": f"{index:04d}-0.mp4",
                        "index": index,
                        "sample": 0,
                        "kind": kind,
                        "dimension": name,
                        "value": value,
                        "frames": 33,
                        "scorer": "weight_free",
                    }
                )
            index += 1
    return pd.DataFrame(rows)


SHEET = pd.DataFrame([{"table": "1", "group": "ours", "setting": MAIN}])


def measured(frames, subset=None):
    return measure_effects(Study(SHEET, frames, subset)).set_index(["effect", "measure"])


def row_of(table, words, measure):
    rows = [row for (effect, m), row in table.iterrows() if words in effect and m == measure]
    assert len(rows) == 1
    return rows[0]


# Comparisons


def test_only_what_exists_is_compared():
    assert {(c.before, c.after) for c in comparisons([MAIN, BASE], MAIN)} == {(BASE, MAIN)}
    assert comparisons([MAIN], MAIN) == []


def test_one_thing_varies_at_a_time():
    variants = {
        "control": replace(MAIN, model="control"),
        "iteration": replace(MAIN, iteration=50),
        "late": replace(MAIN, iteration=400),
        "rank": replace(MAIN, rank=16, iteration=250),
        "rank_high": replace(MAIN, iteration=250),
        "steps": replace(MAIN, steps=2),
        "more_steps": replace(MAIN, steps=20),
        "alpha": replace(MAIN, alpha=1.0),
    }
    pairs = {
        effect: (before, after)
        for effect, before, after in (
            (c.effect, c.before, c.after) for c in comparisons([MAIN, *variants.values()], MAIN)
        )
    }
    assert pairs == {
        "vectorized timesteps make the difference (control has one per clip)": (
            variants["control"],
            MAIN,
        ),
        "more iterations help": (variants["iteration"], MAIN),
        "then a plateau": (MAIN, variants["late"]),
        "a higher rank helps": (variants["rank"], variants["rank_high"]),
        "10 steps beat 2": (variants["steps"], MAIN),
        "20 steps add little to 10": (MAIN, variants["more_steps"]),
        "alpha 1.4 beats 1": (variants["alpha"], MAIN),
        "a higher alpha is more consistent": (variants["alpha"], MAIN),
        "a higher alpha moves less": (variants["alpha"], MAIN),
    }


def test_full_training_varies_iterations_and_steps():
    main = replace(MAIN, rank=None, alpha=None)
    variants = (
        replace(main, iteration=50),
        replace(main, iteration=100),
        replace(main, iteration=400),
        replace(main, steps=2),
    )
    found = {c.effect for c in comparisons([BASE, main, *variants], main) if c.before != BASE}
    assert found == {"more iterations help", "then a plateau", "10 steps beat 2"}


def test_released_lora_varies_alpha_and_steps():
    main = replace(MAIN, seed=None)
    found = comparisons([BASE, main, replace(main, alpha=2.0), replace(main, steps=20)], main)
    assert {c.effect for c in found if c.before != BASE} == {
        "20 steps add little to 10",
        "alpha 1.4 beats 2",
        "a higher alpha is more consistent",
        "a higher alpha moves less",
    }


# Verdicts


@pytest.mark.parametrize(
    ("gain", "verdict"), [(0.1, "holds"), (-0.1, "does not hold"), (0.0, "not decided")]
)
def test_rise(gain, verdict):
    table = measured({BASE: scores(seed=1), MAIN: scores(gain, seed=7)})
    row = row_of(table, "follows the image", "i2v_subject")
    assert row["verdict"] == verdict
    assert row["difference"] == pytest.approx(100 * gain, abs=3)
    assert row["low"] < row["difference"] < row["high"]
    assert row["value_after"] - row["value_before"] == pytest.approx(row["difference"])


def test_values_are_means_in_per_cent_and_dimensions_apart():
    before, after = scores(noise=0), scores(noise=0, i2v_subject=0.25, reference_psnr=20.0)
    table = measured({BASE: before, MAIN: after})
    row = row_of(table, "follows the image", "i2v_subject")
    assert (row["value_before"], row["value_after"]) == pytest.approx((50, 75))
    assert (row["low"], row["high"]) == pytest.approx((25, 25))
    psnr = row_of(table, "follows the image", "reference_psnr")  # dB, not per cent
    assert (psnr["value_before"], psnr["value_after"]) == pytest.approx((0.5, 20.5))
    background = row_of(table, "follows the image", "i2v_background")
    assert background["difference"] == pytest.approx(0)
    total = row_of(table, "scores higher", "total")
    # i2v_subject is 1/2.1 of one half; 25 points of the range 14.62..100.
    assert total["difference"] == pytest.approx(25 / (1 - 0.1462) / 2.1 / 2)


def test_pairing_by_prompt_removes_what_prompts_differ_in():
    hard = scores(noise=0.3, seed=1)
    easier = hard.assign(value=hard["value"] + 0.01)
    row = row_of(measured({BASE: hard, MAIN: easier}), "follows", "i2v_subject")
    assert (row["low"], row["high"]) == pytest.approx((1, 1))
    assert row["verdict"] == "holds"


def test_fall():
    low, high = replace(MAIN, alpha=1.0), MAIN
    for shift, verdict in ((-0.2, "holds"), (0.2, "does not hold")):
        table = measured({low: scores(seed=1), high: scores(dynamic_degree=shift, seed=2)})
        assert row_of(table, "moves less", "dynamic_degree")["verdict"] == verdict


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.0, "holds"), (-0.01, "holds"), (-0.05, "does not hold")]
)
def test_hold_has_a_tolerance(shift, verdict):
    """A loss of image quality under 2 per cent counts as none."""
    frames = {
        replace(BASE, task="t2v"): scores(noise=0.001, seed=1),
        replace(MAIN, task="t2v"): scores(noise=0.001, seed=2, imaging_quality=shift),
    }
    row = row_of(measured(frames), "text-to-video is kept: quality", "imaging_quality")
    assert row["verdict"] == verdict


def test_without_references_their_measures_are_left_out():
    table = measured({BASE: scores(references=False), MAIN: scores(0.1, references=False)})
    found = {measure for _, measure in table.index}
    assert found == {"i2v_subject", "i2v_background", "total"}


def test_seeds_are_averaged_and_their_spread_given():
    frames = {BASE: scores(noise=0)}
    frames |= {replace(MAIN, seed=s): scores(0.1 * s, noise=0) for s in (1, 2, 3)}
    row = row_of(measured(frames), "follows", "i2v_subject")
    assert row["difference"] == pytest.approx(20)
    assert row["seed_sd"] == pytest.approx(10)  # of 10, 20 and 30
    assert row["seeds"] == 3
    assert (row["value_before"], row["value_after"]) == pytest.approx((50, 70))


def test_seeds_are_samples_of_the_same_prompts():
    """What only seeds differ in does not widen the interval: prompts are what is resampled."""
    frames = {BASE: scores(noise=0)}
    frames |= {replace(MAIN, seed=s): scores(0.1 * s, noise=0) for s in (1, 2, 3)}
    row = row_of(measured(frames), "follows", "i2v_subject")
    assert (row["low"], row["high"]) == pytest.approx((20, 20))


def test_seeds_are_paired():
    """Each seed's LoRA against the same seed's control."""
    frames = {replace(MAIN, model="control", seed=s): scores(0.1 * s, noise=0) for s in (1, 2)}
    frames |= {replace(MAIN, seed=s): scores(0.1 * s + 0.05, noise=0) for s in (1, 2)}
    row = row_of(measured(frames), "one per clip", "i2v_subject")
    assert row["difference"] == pytest.approx(5)
    assert row["seed_sd"] == pytest.approx(0, abs=1e-9)


def test_two_runs_agree():
    frames = {BASE: scores(seed=1), MAIN: scores(0.01, seed=2)}
    pd.testing.assert_frame_equal(measured(frames), measured(frames))


def test_settings_of_different_prompts_are_not_compared():
    before, after = scores(seed=1), scores(0.1, seed=2)
    before = before[before["index"] != 0]
    after = after[after["index"] != 5]
    with pytest.raises(ValueError, match="2 are on one side only, such as subject prompt 0"):
        measured({BASE: before, MAIN: after})


def test_settings_sampled_on_all_prompts_are_compared_on_the_subset():
    everything = scores(noise=0)  # six prompts of each kind; every second is in the subset
    outside = everything["index"] % 2 == 1
    main = everything.assign(value=everything["value"] + 0.1 + 0.3 * outside)
    base = everything[~outside]
    counts = {"subject": 3, "background": 3, "camera": 3}
    table = measured({MAIN: main, BASE: base}, counts)
    assert row_of(table, "follows", "i2v_subject")["difference"] == pytest.approx(10)


def test_missing_video_is_named():
    before, after = scores(seed=1), scores(0.1, seed=2)
    both = [v[(v["index"] != 2) | (v["dimension"] != "i2v_subject")] for v in (before, after)]
    with pytest.raises(ValueError, match="such as i2v_subject of prompt 2, sample 0"):
        measured({BASE: both[0], MAIN: both[1]})


# Files


@pytest.mark.parametrize("scorer", ["vbench", "weight_free"])
def test_titles_say_what_scores_are_not_vbench(tmp_path, scorer):
    frames = {BASE: scores(seed=1), MAIN: scores(0.1, seed=2)}
    result = measured({s: t.assign(scorer=scorer) for s, t in frames.items()}).reset_index()
    write_effects(result, pd.DataFrame(), tmp_path / "effects", "A small run.")
    note = "(weight-free scores, not VBench)"
    page, html = ((tmp_path / "effects").with_suffix(s).read_text() for s in (".md", ".html"))
    assert (note in page.splitlines()[0]) == (scorer == "weight_free")
    assert (f"{note}</title>" in html) == (scorer == "weight_free")
    assert ("stand-ins" in page) == (scorer == "weight_free")


def test_pages(tmp_path):
    result = measured({BASE: scores(seed=1), MAIN: scores(0.1, seed=2)}).reset_index()
    losses = pd.DataFrame([{"model": "pusa", "rank": 64, "iteration": 300, "synchronous": 0.12342}])
    write_effects(result, losses, tmp_path / "effects", "A small run.")
    back = pd.read_csv(tmp_path / "effects.csv")
    assert list(back["verdict"]) == list(result["verdict"])
    assert back["difference"].to_numpy() == pytest.approx(result["difference"], abs=1e-4)
    for suffix in (".md", ".html"):
        text = (tmp_path / "effects").with_suffix(suffix).read_text()
        for words in (
            "A small run.",
            "0.1234",
            "follows the image better than base + VTA",
            "holds",
        ):
            assert words in text
        assert "seed sd" not in text  # one seed has no spread


def test_validation_losses_are_averaged_over_seeds(tmp_path):
    for seed, value in ((0, 0.2), (1, 0.4)):
        file = tmp_path / f"pusa-rank16-seed{seed}" / "validation.csv"
        file.parent.mkdir()
        file.write_text(f"iteration,loss,value\n0,synchronous,1.0\n5,synchronous,{value}\n")
    seeds = [replace(MAIN, rank=16, seed=seed) for seed in (0, 1)]
    scores = {s: pd.DataFrame() for s in (BASE, *seeds, replace(seeds[0], steps=2))}
    table = validation_losses(Study(SHEET, scores, None), tmp_path)
    assert table.to_dict("records") == [
        {"model": "pusa", "rank": 16, "iteration": 0, "synchronous": 1.0},
        {"model": "pusa", "rank": 16, "iteration": 5, "synchronous": pytest.approx(0.3)},
    ]


def test_validation_losses_of_full_training(tmp_path):
    file = tmp_path / "pusa-full-seed0" / "validation.csv"
    file.parent.mkdir()
    file.write_text("iteration,loss,value\n5,synchronous,0.2\n")
    study = Study(SHEET, {replace(MAIN, rank=None, alpha=None): pd.DataFrame()}, None)
    assert validation_losses(study, tmp_path).to_dict("records") == [
        {"model": "pusa", "rank": "full", "iteration": 5, "synchronous": 0.2}
    ]


def test_released_lora_has_no_losses(tmp_path):
    released = replace(MAIN, seed=None)
    losses = validation_losses(Study(SHEET, {released: pd.DataFrame()}, None), tmp_path)
    assert losses.empty
    result = measured({BASE: scores(seed=1), MAIN: scores(0.1, seed=2)}).reset_index()
    write_effects(result, losses, tmp_path / "effects", "A small run.")
    assert "Validation loss" not in (tmp_path / "effects.md").read_text()
