from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pusa.experiments import (
    COLUMNS,
    Setting,
    base_setting,
    check_trained,
    main_setting,
    read_experiments,
    require_base,
    settings_over_seeds,
    unique_settings,
)

CONFIG = Path(__file__).parents[1] / "config"
MAIN = "1 ours Ours pusa i2v 64 300 1.4 10"
BASE = "1 baseline _ base i2v _ _ _ 10"
TUNED = Setting(model="pusa", task="i2v", steps=10, rank=64, iteration=300, alpha=1.4, seed=0)
PLAIN = Setting(model="base", task="i2v", steps=10)


@pytest.fixture
def read(tmp_path):
    """A function that reads a sheet of these rows; ``_`` is an empty cell."""

    def write(*rows, header=COLUMNS):
        cells = [["" if cell == "_" else cell for cell in row.split()] for row in rows]
        lines = ["\t".join(line) for line in ([*header], *cells)]
        sheet = tmp_path / "sheet.tsv"
        sheet.write_text("\n".join(lines) + "\n")
        return read_experiments(sheet, seed=3)

    return write


def test_settings(read):
    table = read(MAIN, BASE, "_ text_to_video _ pusa t2v 16 50 1.0 2")
    assert list(table["setting"]) == [
        Setting(model="pusa", task="i2v", steps=10, rank=64, iteration=300, alpha=1.4, seed=3),
        Setting(model="base", task="i2v", steps=10),
        Setting(model="pusa", task="t2v", steps=2, rank=16, iteration=50, alpha=1.0, seed=3),
    ]
    assert list(table["published"]) == ["Ours", "", ""]


def test_names(read):
    main, base = read(MAIN, BASE)["setting"]
    assert main.run == "pusa-rank64-seed3"
    assert main.weights == "pusa-rank64-seed3-iteration300-alpha1.4"
    assert main.name == "pusa-rank64-seed3-iteration300-alpha1.4-i2v-steps10"
    assert (base.weights, base.name) == ("base", "base-i2v-steps10")
    assert main.label == "pusa, rank 64, iteration 300, alpha 1.4, 10 steps"
    assert base.label == "base + VTA, 10 steps"


def test_rows_share_settings(read):
    table = read(MAIN, "2 steps a pusa i2v 64 300 1.4 10", "2 lora b pusa i2v 64 300 1.40 10")
    assert len(table) == 3
    assert list(unique_settings(table)) == ["pusa-rank64-seed3-iteration300-alpha1.4-i2v-steps10"]


@pytest.mark.parametrize("field", ["model", "task", "rank", "iteration", "alpha", "steps"])
def test_rows_that_differ_share_nothing(read, field):
    other = dict(zip(COLUMNS, MAIN.split(), strict=True))
    other[field] = {"model": "control", "task": "t2v", "alpha": "1.7"}.get(field, "7")
    table = read(MAIN, " ".join(other.values()).replace("Ours", "_"))
    assert len(unique_settings(table)) == 2


@pytest.mark.parametrize(
    ("sheet", "rows", "settings"),
    [("experiments.tsv", 37, 31), ("demo_experiments.tsv", 27, 22)],
)
def test_our_sheets(sheet, rows, settings):
    table = read_experiments(CONFIG / sheet, seed=0)
    assert len(table) == rows
    assert len(unique_settings(table)) == settings


# Errors


def test_missing_sheet(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"experiments sheet .*none\.tsv does not exist"):
        read_experiments(tmp_path / "none.tsv", seed=0)


@pytest.mark.parametrize("header", [COLUMNS[:-1], (*COLUMNS[:-1], "step"), (*COLUMNS, "note")])
def test_wrong_columns(read, header):
    with pytest.raises(ValueError, match=r"columns are .*; expected table, group, published"):
        read(MAIN + " x" * (len(header) - 9), header=header)


def test_no_rows(read):
    with pytest.raises(ValueError, match="no rows; expected one per reported number"):
        read()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("3 ours _ pusa i2v 64 300 1.4 10", "table is '3', expected 1, 2 or nothing"),
        ("1 Ours/.. _ pusa i2v 64 300 1.4 10", "group is 'Ours/..', expected lower-case"),
        ("1 _ _ pusa i2v 64 300 1.4 10", "group is ''"),
        ("1 ours _ pusa v2v 64 300 1.4 10", "task is 'v2v', expected i2v or t2v"),
        ("1 ours _ pusa i2v 64 300 1.4 0", "steps is 0, expected at least 1"),
        ("1 ours _ pusa i2v 64 300 1.4 ten", "steps is 'ten', expected a whole number"),
        ("1 ours _ pusa i2v _ 300 1.4 10", "rank is '', expected a whole number"),
        ("1 ours _ pusa i2v 64.5 300 1.4 10", "rank is '64.5', expected a whole number"),
        ("1 ours _ pusa i2v 64 x 1.4 10", "iteration is 'x', expected a whole number"),
        ("1 ours _ pusa i2v 64 300 high 10", "alpha is 'high', expected a number"),
        ("1 ours _ pusa i2v 64 300 0 10", "alpha is 0.0, expected above 0 and at most 10"),
        ("1 ours _ pusa i2v 64 300 11 10", "alpha is 11.0, expected above 0"),
        ("1 ours _ pusa i2v 64 300 nan 10", "alpha is nan, expected above 0"),
        ("1 ours _ base i2v 64 _ 1.4 10", "model base has no LoRA, but rank, alpha is given"),
    ],
)
def test_bad_cell_names_its_row(read, row, message):
    with pytest.raises(ValueError) as error:
        read(BASE, row)
    assert "row 3" in str(error.value)
    assert message in str(error.value)


def test_repeated_row(read):
    row = "2 steps _ pusa i2v 64 300 1.4 10"
    with pytest.raises(ValueError, match=r"row 4 repeats row 2: pusa-rank64.* in steps"):
        read(row, BASE, row)


def test_two_rows_beside_one_published_row(read):
    with pytest.raises(ValueError, match=r"row 3 contradicts row 2: .*'512/900/1.4/10'"):
        read(
            "2 steps 512/900/1.4/10 pusa i2v 64 300 1.4 10",
            "2 steps 512/900/1.4/10 pusa i2v 64 300 1.7 10",
        )


@pytest.mark.parametrize("row", ["1", "1 ours", "1 ours _ pusa"])
def test_row_cut_short_names_its_row(read, row):
    with pytest.raises(ValueError, match="row 3"):
        read(BASE, row)


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ({"models": ["control"]}, "row 3: model pusa is not trained; train.models is control"),
        ({"ranks": [16, 32]}, "row 3: rank 64 is not trained; train.ranks is 16, 32"),
        ({"iterations": [50]}, "row 3: iteration 300 is not trained; train.iterations is 50"),
    ],
)
def test_untrained_settings_are_named(read, lacking, message):
    trained = {"models": ["pusa"], "ranks": [64], "iterations": [300]}
    table = read(BASE, MAIN)
    check_trained(table, **trained)
    with pytest.raises(ValueError, match=message):
        check_trained(table, **{**trained, **lacking})


# Which settings are compared


def sheet(*settings):
    """A sheet with these settings, the first of which is the main one."""
    rows = [{"table": "1", "group": "ours", "setting": settings[0]}]
    rows += [{"table": "2", "group": "lora", "setting": s} for s in settings[1:]]
    return pd.DataFrame(rows)


def test_main_setting():
    assert main_setting(sheet(TUNED, PLAIN)) == TUNED


@pytest.mark.parametrize("count", [0, 2])
def test_main_setting_is_one_row(count):
    table = sheet(TUNED, PLAIN)
    table = pd.concat([table.iloc[1:], *[table.iloc[:1]] * count])
    with pytest.raises(ValueError, match=f"has {count} rows of table 1, group ours; expected 1"):
        main_setting(table)


def test_base_is_required():
    require_base(sheet(TUNED, PLAIN))
    with pytest.raises(ValueError, match="no row base-i2v-steps10: model base, task i2v, steps 10"):
        require_base(sheet(TUNED, replace(PLAIN, steps=20)))
    assert base_setting(TUNED) == PLAIN


def test_seeds_multiply_what_is_trained_and_near():
    near = [
        replace(TUNED, alpha=2.0),
        replace(TUNED, iteration=50),
        replace(TUNED, model="control"),
    ]
    far = replace(TUNED, alpha=2.0, iteration=50)
    settings = settings_over_seeds(sheet(TUNED, PLAIN, *near, far), [4, 5])
    expected = {PLAIN, *(replace(s, seed=seed) for s in (TUNED, *near) for seed in (4, 5))}
    assert set(settings.values()) == expected
    assert all(name == setting.name for name, setting in settings.items())
