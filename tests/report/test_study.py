import json
from dataclasses import replace

import pandas as pd
import pytest

from pusa.data.suite import read_suite
from pusa.experiments import Setting
from pusa.report.study import Study, read_study, restrict
from pusa.score.arithmetic import NAMES
from pusa.score.files import COLUMNS, write_scores

MAIN = Setting(model="pusa", task="i2v", steps=10, rank=64, iteration=300, alpha=1.4, seed=0)
BASE = Setting(model="base", task="i2v", steps=10)
KINDS = {
    "subject": ("i2v_subject", "subject_consistency", "motion_smoothness", "dynamic_degree",
                "aesthetic_quality", "imaging_quality"),
    "background": ("i2v_background", "background_consistency", "aesthetic_quality",
                   "imaging_quality"),
    "camera": ("camera_motion",),
}  # fmt: skip
SUBSET = {"subject": 1, "background": 1, "camera": 1}
TAKEN = {0, 2, 4}  # the subset's prompts of two of each kind


def scores(value=1.0, *, inside=None, samples=1, scorer="vbench"):
    """Scores of two prompts of each kind; ``inside`` is the value of those in the subset."""
    kinds = [kind for kind in KINDS for _ in range(2)]
    rows = [
        (f"{index:04d}-{sample}.mp4", index, sample, kind, dimension,
         value if inside is None or index not in TAKEN else inside, 17, scorer)
        for index, kind in enumerate(kinds)
        for sample in range(samples)
        for dimension in KINDS[kind]
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def row(setting, prompts):
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
            record = {"scorer": "vbench", "dimensions": [], "device": "cpu", "packages": {}}
            write_scores(table, record, tmp_path / f"{setting.name}.csv")
        return tmp_path

    return write


def test_settings_of_the_sheet_are_read(sheet, folder):
    tables = {BASE: scores(0.0), MAIN: scores(1.0)}
    study = read_study(sheet, folder(tables), seed=0, subset=SUBSET)
    assert list(study.experiments["setting"]) == list(study.scores) == [BASE, MAIN]
    for setting, table in tables.items():
        pd.testing.assert_frame_equal(study.scores[setting], table)
    assert (study.subset, study.allow_partial) == (SUBSET, False)


def test_settings_over_seeds_are_read(sheet, folder):
    seeds = [replace(MAIN, seed=seed) for seed in (1, 2)]
    files = folder({setting: scores() for setting in (BASE, *seeds)})
    study = read_study(sheet, files, seed=0, subset=None, effect_seeds=[1, 2])
    assert list(study.scores) == [BASE, *seeds]
    assert list(study.experiments["setting"]) == [BASE, MAIN]


def test_settings_that_were_not_run(sheet, folder):
    files = folder({MAIN: scores()})
    with pytest.raises(FileNotFoundError, match=r"score file .*base-i2v-steps10\.csv does not"):
        read_study(sheet, files, seed=0, subset=SUBSET)
    study = read_study(sheet, files, seed=0, subset=SUBSET, allow_missing=True)
    assert list(study.scores) == [MAIN]


def test_nothing_to_read(sheet, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder of scores .*none does not exist"):
        read_study(sheet, tmp_path / "none", seed=0, subset=SUBSET, allow_missing=True)
    files = folder({MAIN: scores()})  # of another seed than the sheet's
    sheet.write_text("".join(sheet.read_text().splitlines(keepends=True)[::2]))
    with pytest.raises(FileNotFoundError, match=r"no score file .*; expected such as pusa-rank64"):
        read_study(sheet, files, seed=7, subset=SUBSET, allow_missing=True)


def test_rows_on_a_subset_need_its_numbers(sheet, folder):
    files = folder({BASE: scores(), MAIN: scores()})
    with pytest.raises(ValueError, match="has rows on a subset of the prompts, but no numbers"):
        read_study(sheet, files, seed=0, subset=None)


def test_settings_must_be_made_alike(sheet, folder):
    files = folder({BASE: scores(), MAIN: scores()})
    file = files / f"{MAIN.name}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"packages": {"torch": "2.0.1"}}))
    with pytest.raises(ValueError, match=r"made with torch None, .* with 2\.0\.1; .* made alike"):
        read_study(sheet, files, seed=0, subset=SUBSET)


def test_the_file_that_lacks_a_score_is_named(sheet, folder):
    part = scores()[lambda table: table["dimension"] != "camera_motion"]
    files = folder({BASE: scores(), MAIN: part})
    with pytest.raises(ValueError, match=r"steps10\.csv: scores lack camera_motion") as caught:
        read_study(sheet, files, seed=0, subset=SUBSET)
    assert MAIN.name in str(caught.value)
    study = read_study(sheet, files, seed=0, subset=SUBSET, allow_partial=True)
    assert study.allow_partial
    assert set(study.scores[MAIN]["dimension"]) == set(NAMES) - {"camera_motion"}


def test_rows_without_a_value_are_partial(sheet, folder):
    """As `pusa.score.files.gather_scores` leaves them."""
    files = folder({BASE: scores(), MAIN: scores()})
    file = files / f"{MAIN.name}.csv"
    file.write_text(file.read_text().replace("i2v_subject,1.0,17", "i2v_subject,,0", 1))
    record = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps(record | {"missing": {"i2v_subject": 1}}))
    with pytest.raises(ValueError, match=r"value of i2v_subject of 0000-0\.mp4 is empty"):
        read_study(sheet, files, seed=0, subset=SUBSET)
    study = read_study(sheet, files, seed=0, subset=SUBSET, allow_partial=True)
    assert study.scores[MAIN]["value"].isna().sum() == 1


# Rows of the sheet


def test_rows_count_their_own_prompts():
    """One setting's videos of all prompts serve a row on all, and one on the subset."""
    study = Study(pd.DataFrame(), {MAIN: scores(0.5, inside=0.9, samples=5)}, SUBSET)
    everything, part = (study.videos(row(MAIN, prompts)) for prompts in ("all", "subset"))
    assert (everything["file"].nunique(), part["file"].nunique()) == (6 * 5, 3 * 5)
    assert set(part["value"]) == {0.9}
    assert study.videos(row(BASE, "all")) is None


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [("all", "all", 20), ("all", "subset", 40), ("subset", "all", 40)],
)
def test_differences_are_on_the_prompts_of_both(before, after, difference):
    tables = {BASE: scores(0.5), MAIN: scores(0.5, inside=0.9)}
    study = Study(pd.DataFrame(), tables, SUBSET)
    found = study.differences(row(BASE, before), row(MAIN, after))
    assert found["i2v_subject"].value == pytest.approx(difference)
    assert study.differences(row(BASE, before), row(replace(MAIN, steps=2), after)) is None


def test_settings_on_other_videos_are_not_compared():
    tables = {MAIN: scores(0.9), BASE: scores(0.5, samples=2)}
    rows = row(BASE, "all"), row(MAIN, "all")
    with pytest.raises(ValueError, match="must have the same videos"):
        Study(pd.DataFrame(), tables, None).differences(*rows)
    found = Study(pd.DataFrame(), tables, None, allow_partial=True).differences(*rows)
    assert found["i2v_subject"].value == pytest.approx(40)


def test_scorers_are_not_mixed():
    study = Study(pd.DataFrame(), {MAIN: scores(scorer="weight_free"), BASE: scores()}, None)
    message = f"{BASE.name} by vbench, {MAIN.name} by weight_free; expected one scorer"
    with pytest.raises(ValueError, match=message):
        study.scorer  # noqa: B018


def test_scorer():
    tables = {setting: scores(scorer="weight_free") for setting in (MAIN, BASE)}
    assert Study(pd.DataFrame(), tables, None).scorer == "weight_free"
    assert Study(pd.DataFrame(), {}, None).scorer == ""


# Subsets of the prompts


@pytest.fixture
def measured(prompts):
    """Two samples of every prompt of the suite, with two measures each, in no order."""
    rows = [
        {"file": p.video_name(s), "index": p.index, "kind": p.kind, "dimension": d, "value": 0.5}
        for p in prompts
        for s in range(2)
        for d in ("motion_match", "reference_psnr")
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def test_subset_is_that_of_sampling(suite, measured):
    counts = {"subject": 1, "background": 2, "camera": 3}
    sampled = read_suite(suite, height=64, width=64, counts=counts)
    part = restrict(measured, counts)
    assert set(part["index"]) == {p.index for p in sampled}
    assert len(part) == 4 * len(sampled)  # whole videos, with all their measures
    assert restrict(part, counts).equals(part)


def test_no_counts_are_all(measured):
    assert restrict(measured, None) is measured


def test_more_than_was_measured(measured):
    with pytest.raises(ValueError, match="2 subject prompts, but 3 were asked for"):
        restrict(measured, {"subject": 3, "background": 1, "camera": 1})
