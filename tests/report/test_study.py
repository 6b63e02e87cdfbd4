import json
from dataclasses import replace

import pandas as pd
import pytest

from pusa.data.suite import read_suite
from pusa.experiments import Setting
from pusa.report.study import Study, read_study, restrict
from pusa.score.files import write_scores
from tests.scores import score_table

MAIN = Setting(model="pusa", task="i2v", steps=10, rank=64, iteration=300, alpha=1.4, seed=0)
BASE = Setting(model="base", task="i2v", steps=10)
SEEDS = [replace(MAIN, seed=seed) for seed in (1, 2, 3)]
SUBSET = {"subject": 1, "background": 1, "camera": 1}
TAKEN = {0, 2, 4}  # the subset's prompts of two of each kind


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("pusa.score.intervals.RESAMPLES", 200)


def scores(value, inside=None, samples=1):
    """Scores of two prompts of each kind; ``inside`` is the value of those in the subset."""
    inside = value if inside is None else inside
    return score_table(lambda i, s, name: inside if i in TAKEN else value, samples=samples)


def row(setting, prompts="all"):
    return {"setting": setting, "prompts": prompts}


# Reading


@pytest.fixture
def sheet(tmp_path):
    """The main setting on all prompts, the base on the subset."""
    file = tmp_path / "experiments.tsv"
    file.write_text(
        "table\tgroup\tpublished\tprompts\tmodel\ttask\trank\titeration\talpha\tsteps\n"
        "1\tbaseline\t\tsubset\tbase\ti2v\t\t\t\t10\n"
        "1\tours\tOurs\tall\tpusa\ti2v\t64\t300\t1.4\t10\n"
    )
    return file


@pytest.fixture
def folder(tmp_path):
    """A function that writes score files of settings, which `read_study` takes."""

    def write(tables):
        for setting, table in tables.items():
            record = {"scorer": "weight_free", "dimensions": [], "device": "cpu", "packages": {}}
            write_scores(table, record, tmp_path / f"{setting.name}.csv")
        return tmp_path

    return write


def test_settings_of_the_sheet_are_read(sheet, folder):
    tables = {BASE: scores(0.0), MAIN: scores(1.0)}
    files = folder(tables | {SEEDS[0]: scores(1.0)})
    study = read_study(sheet, files, seeds=[0], subset=SUBSET)
    assert list(study.experiments["setting"]) == list(study.scores) == [BASE, MAIN]
    for setting, table in tables.items():
        pd.testing.assert_frame_equal(study.scores[setting], table)
    assert study.subset == SUBSET


def test_settings_of_several_seeds_are_read_where_they_were_run(sheet, folder):
    files = folder({setting: scores(1.0) for setting in (BASE, *SEEDS)})
    study = read_study(sheet, files, seeds=[1, 2, 7], subset=SUBSET)
    assert list(study.scores) == [BASE, *SEEDS[:2]]


def test_scores_of_another_training_seed_are_named(sheet, folder):
    place = folder({BASE: scores(1.0), SEEDS[0]: scores(1.0)})
    message = rf"{place} has no scores of training seed None, but such as {SEEDS[0].name}.csv"
    with pytest.raises(ValueError, match=message):
        read_study(sheet, place, seeds=[None], subset=SUBSET)


def test_nothing_to_read(sheet, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder of scores .*none does not exist"):
        read_study(sheet, tmp_path / "none", seeds=[0], subset=SUBSET)
    with pytest.raises(FileNotFoundError, match=r"no score file .*; expected such as base-i2v"):
        read_study(sheet, folder({MAIN: scores(1.0)}), seeds=[7], subset=SUBSET)


def test_rows_on_a_subset_need_its_numbers(sheet, folder):
    files = folder({BASE: scores(1.0), MAIN: scores(1.0)})
    with pytest.raises(ValueError, match="has rows on a subset of the prompts, but no numbers"):
        read_study(sheet, files, seeds=[0], subset=None)


def test_settings_must_be_made_alike(sheet, folder):
    files = folder({BASE: scores(1.0), MAIN: scores(1.0)})
    file = files / f"{MAIN.name}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"packages": {"torch": "2.0.1"}}))
    with pytest.raises(ValueError, match=r"made with torch None, .* with 2\.0\.1; .* made alike"):
        read_study(sheet, files, seeds=[0], subset=SUBSET)


def test_the_file_that_lacks_a_score_is_named(sheet, folder):
    part = scores(1.0)[lambda table: table["dimension"] != "camera_motion"]
    files = folder({BASE: scores(1.0), MAIN: part})
    with pytest.raises(ValueError, match=rf"{MAIN.name}\.csv: scores lack camera_motion"):
        read_study(sheet, files, seeds=[0], subset=SUBSET)


# Rows of the sheet


def test_rows_count_their_own_prompts():
    """One setting's videos of all prompts serve a row on all, and one on the subset."""
    study = Study(pd.DataFrame(), {MAIN: scores(0.5, inside=0.9, samples=5)}, SUBSET)
    everything, part = (study.videos(row(MAIN, prompts)) for prompts in ("all", "subset"))
    assert (everything["file"].nunique(), part["file"].nunique()) == (6 * 5, 3 * 5)
    assert set(part["value"]) == {0.9}
    assert study.videos(row(BASE)) is None


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [("all", "all", 20), ("all", "subset", 40), ("subset", "all", 40)],
)
def test_differences_are_on_the_prompts_of_both(before, after, difference):
    tables = {BASE: scores(0.5), MAIN: scores(0.5, inside=0.9)}
    study = Study(pd.DataFrame(), tables, SUBSET)
    found = study.differences(row(BASE, before), row(MAIN, after))
    assert found["i2v_subject"].value == pytest.approx(difference)
    assert study.differences(row(BASE), row(replace(MAIN, steps=2), after)) is None


def test_settings_on_other_videos_are_not_compared():
    tables = {MAIN: scores(0.9), BASE: scores(0.5, samples=2)}
    with pytest.raises(ValueError, match="must have the same videos"):
        Study(pd.DataFrame(), tables, None).differences(row(BASE), row(MAIN))


def test_what_was_not_trained_stands_beside_every_seed():
    """Seeds are more samples: what only they differ in does not widen an interval over prompts."""
    tables = {BASE: scores(0.5, samples=2)}
    tables |= {s: scores(0.5 + 0.1 * s.seed, samples=2) for s in SEEDS}
    study = Study(pd.DataFrame(), tables, None)
    befores, afters = zip(*study.pairs(row(BASE), row(MAIN)), strict=True)
    assert all(before is tables[BASE] for before in befores)
    assert all(after is tables[s] for after, s in zip(afters, SEEDS, strict=True))
    (found,) = study.differences(row(BASE), row(MAIN), ["i2v_subject"]).values()
    assert (found.value, found.low, found.high) == pytest.approx((20, 20, 20))


def test_a_seed_stands_beside_the_same_seed_of_another_row():
    controls = [replace(s, model="control") for s in SEEDS]
    tables = {s: scores(0.1 * s.seed) for s in controls[::-1]}
    tables |= {s: scores(0.1 * s.seed + 0.05) for s in SEEDS[1:]}
    study = Study(pd.DataFrame(), tables, None)
    pairs = study.pairs(row(controls[0]), row(MAIN))
    assert len(pairs) == 2  # seed 1 of one was not run
    for before, after in pairs:
        assert after["value"].iloc[0] - before["value"].iloc[0] == pytest.approx(0.05)


def test_scorer():
    mixed = {MAIN: score_table(scorer="weight_free"), BASE: score_table(scorer="vbench")}
    assert Study(pd.DataFrame(), {MAIN: mixed[MAIN]}, None).scorer == "weight_free"
    assert Study(pd.DataFrame(), {}, None).scorer == ""
    message = f"{BASE.name} by vbench, {MAIN.name} by weight_free; expected one scorer"
    with pytest.raises(ValueError, match=message):
        Study(pd.DataFrame(), mixed, None).scorer  # noqa: B018


# Subsets of the prompts


def test_subset_is_that_of_sampling(suite, prompts):
    """Of videos in no order, with two samples and two measures each."""
    rows = [
        {"file": p.video_name(s), "index": p.index, "kind": p.kind, "dimension": d, "value": 0.5}
        for p in prompts
        for s in range(2)
        for d in ("motion_match", "reference_psnr")
    ]
    measured = pd.DataFrame(rows).sample(frac=1, random_state=0)
    counts = {"subject": 1, "background": 2, "camera": 3}
    sampled = read_suite(suite, height=64, width=64, counts=counts)
    part = restrict(measured, counts)
    assert set(part["index"]) == {p.index for p in sampled}
    assert len(part) == 4 * len(sampled)  # whole videos, with all their measures
    assert restrict(part, counts).equals(part)
    assert restrict(measured, None) is measured


def test_a_subset_of_more_than_was_sampled():
    study = Study(pd.DataFrame(), {MAIN: scores(0.5)}, SUBSET | {"subject": 3})
    message = f"scores of {MAIN.name}: 2 subject prompts, but 3 were asked for"
    with pytest.raises(ValueError, match=message):
        study.videos(row(MAIN, "subset"))


def test_scores_of_settings_that_were_exchanged(sheet, folder, tmp_path):
    files = folder({MAIN: scores(1.0), BASE: scores(0.0)})
    for suffix in (".csv", ".json"):
        names = [files / f"{setting.name}{suffix}" for setting in (MAIN, BASE)]
        names[0].rename(tmp_path / "kept")
        names[1].rename(names[0])
        (tmp_path / "kept").rename(names[1])
    with pytest.raises(ValueError, match=r"\.csv was cut, edited or exchanged.*; delete it"):
        read_study(sheet, files, seeds=[0], subset=SUBSET)
