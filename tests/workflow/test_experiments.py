from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pusa.config import read_config
from pusa.experiments import (
    COLUMNS,
    Setting,
    base_setting,
    check_available,
    main_setting,
    prompt_sets,
    read_experiments,
    require_base,
    settings_over_seeds,
    training_runs,
    unique_settings,
)

CONFIG = Path(__file__).parents[2] / "config"
MAIN = "1 ours Ours all pusa i2v 64 300 1.4 10"
BASE = "1 baseline _ subset base i2v _ _ _ 10"
WAN = "1 baseline Wan-I2V subset wan_i2v i2v _ _ _ 50"
FULL = "1 ours Ours all pusa i2v _ 300 _ 10"
TUNED = Setting(model="pusa", task="i2v", steps=10, rank=64, iteration=300, alpha=1.4, seed=0)
PLAIN = Setting(model="base", task="i2v", steps=10)


@pytest.fixture
def read(tmp_path):
    """A function that reads a sheet of these rows; ``_`` is an empty cell."""

    def write(*rows, header=COLUMNS, seed=3):
        cells = [["" if cell == "_" else cell for cell in row.split()] for row in rows]
        lines = ["\t".join(line) for line in ([*header], *cells)]
        sheet = tmp_path / "sheet.tsv"
        sheet.write_text("\n".join(lines) + "\n")
        return read_experiments(sheet, seed=seed)

    return write


def test_settings(read):
    table = read(MAIN, BASE, "_ text_to_video _ subset pusa t2v 16 50 1.0 2")
    assert list(table["setting"]) == [
        Setting(model="pusa", task="i2v", steps=10, rank=64, iteration=300, alpha=1.4, seed=3),
        Setting(model="base", task="i2v", steps=10),
        Setting(model="pusa", task="t2v", steps=2, rank=16, iteration=50, alpha=1.0, seed=3),
    ]
    assert list(table["published"]) == ["Ours", "", ""]
    assert list(table["prompts"]) == ["all", "subset", "subset"]


def test_names(read):
    main, base = read(MAIN, BASE)["setting"]
    assert main.run == "pusa-rank64-seed3"
    assert main.weights == "pusa-rank64-seed3-iteration300-alpha1.4"
    assert main.name == "pusa-rank64-seed3-iteration300-alpha1.4-i2v-steps10"
    assert (base.weights, base.name) == ("base", "base-i2v-steps10")
    assert main.label == "pusa, rank 64, iteration 300, alpha 1.4, 10 steps"
    assert base.label == "base + VTA, 10 steps"


def test_wan_i2v_is_reserved_like_base(read):
    (setting,) = read(WAN)["setting"]
    assert setting == Setting(model="wan_i2v", task="i2v", steps=50)
    assert (setting.weights, setting.name) == ("wan_i2v", "wan_i2v-i2v-steps50")
    assert setting.label == "Wan-I2V, 50 steps"


def test_names_without_a_rank(read):
    (full,) = read(FULL)["setting"]
    assert (full.rank, full.alpha) == (None, None)
    assert full.run == "pusa-full-seed3"
    assert full.weights == "pusa-full-seed3-iteration300"
    assert full.name == "pusa-full-seed3-iteration300-i2v-steps10"
    assert full.label == "pusa, full, iteration 300, 10 steps"


def test_names_of_a_released_lora(read):
    (released,) = read(MAIN, seed=None)["setting"]
    assert released.seed is None
    assert released.run == "pusa-rank64-released"
    assert released.name == "pusa-rank64-released-iteration300-alpha1.4-i2v-steps10"


@pytest.mark.parametrize("steps", [1, 1000])
def test_any_number_of_steps_that_the_noise_levels_allow(read, steps):
    (setting,) = read(MAIN.removesuffix("10") + str(steps))["setting"]
    assert setting.steps == steps


def test_rows_share_settings(read):
    table = read(
        MAIN,
        "2 steps a subset pusa i2v 64 300 1.4 10",
        "2 lora b subset pusa i2v 64 300 1.40 10",
    )
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
    [
        ("experiments.tsv", 40, 33),
        ("released_experiments.tsv", 15, 12),
        ("demo_experiments.tsv", 28, 21),
    ],
)
def test_our_sheets(sheet, rows, settings):
    table = read_experiments(CONFIG / sheet, seed=0)
    assert len(table) == rows
    assert len(unique_settings(table)) == settings


def test_the_papers_sheet():
    """27 distinct settings in Table 2's 32 rows; Table 1's and a still picture need all prompts."""
    table = read_experiments(CONFIG / "experiments.tsv", seed=0)
    reported = table[(table["table"] == "2") & (table["group"] != "bounds")]["setting"]
    assert (len(reported), len(set(reported))) == (32, 27)
    main = main_setting(table)
    assert main in set(reported)
    sets = prompt_sets(table)
    assert [name for name, prompts in sets.items() if prompts == "all"] == [
        main.name,
        "still-i2v",
    ]
    assert Counter(sets.values()) == {"all": 2, "subset": 31}


@pytest.mark.parametrize("wanted", [["all", "subset"], ["subset", "all"], ["all", "all"]])
def test_a_setting_wanted_on_all_prompts_is_sampled_on_all(read, wanted):
    rows = [f"2 {g} _ {w} pusa i2v 64 300 1.4 10" for g, w in zip("ab", wanted, strict=True)]
    table = read(*rows, BASE)
    assert list(prompt_sets(table).items()) == [
        ("pusa-rank64-seed3-iteration300-alpha1.4-i2v-steps10", "all"),
        ("base-i2v-steps10", "subset"),
    ]


# Errors


def test_missing_sheet(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"experiments sheet .*none\.tsv does not exist"):
        read_experiments(tmp_path / "none.tsv", seed=0)


@pytest.mark.parametrize("header", [COLUMNS[:-1], (*COLUMNS[:-1], "step"), (*COLUMNS, "note")])
def test_wrong_columns(read, header):
    with pytest.raises(ValueError, match=r"columns are .*; expected table, group, published"):
        read(MAIN + " x" * (len(header) - len(COLUMNS)), header=header)


def test_too_many_cells(read):
    with pytest.raises(ValueError, match="rows have more cells than the 10 columns"):
        read(MAIN + " x", BASE + " x")


def test_no_rows(read):
    with pytest.raises(ValueError, match="no rows; expected one per reported number"):
        read()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("3 ours _ all pusa i2v 64 300 1.4 10", "table is '3', expected 1, 2 or nothing"),
        ("1 ours _ some pusa i2v 64 300 1.4 10", "prompts is 'some', expected all or subset"),
        ("1 ours _ _ pusa i2v 64 300 1.4 10", "prompts is '', expected all or subset"),
        ("1 Ours/.. _ all pusa i2v 64 300 1.4 10", "group is 'Ours/..', expected lower-case"),
        ("1 _ _ all pusa i2v 64 300 1.4 10", "group is ''"),
        ("1 ours _ all pusa v2v 64 300 1.4 10", "task is 'v2v', expected i2v or t2v"),
        (
            "1 ours _ all pusa i2v 64 300 1.4 0",
            "steps is '0', expected a whole number from 1 to 1000",
        ),
        (
            "1 ours _ all pusa i2v 64 300 1.4 1001",
            "steps is '1001', expected a whole number from 1",
        ),
        ("1 ours _ all pusa i2v 64 0 1.4 10", "iteration is '0', expected a whole number from 1"),
        ("1 ours _ all pusa i2v 0 300 1.4 10", "rank is '0', expected a whole number from 1"),
        ("1 ours _ all pusa i2v 64 300 1.4 ten", "steps is 'ten', expected a whole number"),
        ("1 ours _ all pusa i2v _ 300 1.4 10", "rank is '', expected a whole number"),
        ("1 ours _ all pusa i2v 64 300 _ 10", "alpha is '', expected a number"),
        ("1 ours _ all pusa i2v _ _ _ 10", "iteration is '', expected a whole number"),
        ("1 ours _ all wan-i2v i2v _ _ _ 10", "model is 'wan-i2v', expected base, wan_i2v,"),
        ("1 ours _ all pusa i2v 64.5 300 1.4 10", "rank is '64.5', expected a whole number"),
        ("1 ours _ all pusa i2v 6_4 300 1.4 10", "rank is '6_4', expected a whole number"),
        ("1 ours _ all pusa i2v 64 300 1.40000001 10", "expected a number with at most four dec"),
        ("1 ours _ all pusa i2v 64 x 1.4 10", "iteration is 'x', expected a whole number"),
        ("1 ours _ all pusa i2v 64 300 high 10", "alpha is 'high', expected a number"),
        ("1 ours _ all pusa i2v 64 300 0 10", "alpha is '0', expected a number with at"),
        ("1 ours _ all pusa i2v 64 300 11 10", "four decimals from 0.0001 to 10.0"),
        ("1 ours _ all pusa i2v 64 300 nan 10", "alpha is 'nan', expected a number"),
        ("1 ours _ all base i2v 64 _ 1.4 10", "model base has no LoRA, but rank, alpha is given"),
        ("_ x _ all wan_i2v i2v 64 9 _ 10", "wan_i2v has no LoRA, but rank, iteration is given"),
        ("_ x _ all wan_i2v t2v _ _ _ 10", "wan_i2v makes video from an image, but task is t2v"),
        ("_ x _ all still t2v _ _ _ _", "still makes video from an image, but task is t2v"),
        ("_ x _ all still i2v _ _ _ 10", "model still is not sampled, but steps is '10'"),
    ],
)
def test_bad_cell_names_its_row(read, row, message):
    with pytest.raises(ValueError) as error:
        read(BASE, row)
    assert "row 3" in str(error.value)
    assert message in str(error.value)


def test_repeated_row(read):
    row = "2 steps _ all pusa i2v 64 300 1.4 10"
    with pytest.raises(ValueError, match=r"row 4 repeats row 2: pusa-rank64.* in steps"):
        read(row, BASE, row)


def test_two_rows_beside_one_published_row(read):
    with pytest.raises(ValueError, match=r"row 3 contradicts row 2: .*'512/900/1.4/10'"):
        read(
            "2 steps 512/900/1.4/10 all pusa i2v 64 300 1.4 10",
            "2 steps 512/900/1.4/10 all pusa i2v 64 300 1.7 10",
        )


@pytest.mark.parametrize("row", ["1", "1 ours", "1 ours _ all pusa"])
def test_row_cut_short_names_its_row(read, row):
    with pytest.raises(ValueError, match="row 3"):
        read(BASE, row)


# What the configuration provides

SUBSET = {"subject": 2, "background": 2, "camera": 2}


@pytest.fixture
def config():
    """A function that makes a configuration with some sections replaced."""

    def make(**sections):
        values = yaml.safe_load((CONFIG / "demo.yaml").read_text())
        values |= {"suite": {"source": "vbench", "path": "s", "subset": SUBSET}, **sections}
        return read_config({key: value for key, value in values.items() if value is not None})

    return make


RELEASED = {"source": "released", "path": "p", "file": "a.pt", "rank": 64, "iteration": 300}
FOLDER = {"source": "folder", "path": "b"}


@pytest.mark.parametrize(
    ("rows", "train", "message"),
    [
        ((BASE, MAIN), {"models": {"control": {"p_async": 0.0}}}, "model pusa is not trained; "),
        ((BASE, MAIN), {"method": "full"}, "train.method full expects an empty rank and alpha, "),
        ((BASE, FULL), {}, "train.method lora expects a rank and an alpha, found rank ''"),
    ],
)
def test_untrained_settings_are_named(read, config, rows, train, message):
    with pytest.raises(ValueError, match=f"experiments sheet, row 3: {message}"):
        check_available(read(*rows), config(train=train))


def test_what_is_trained_is_available(read, config):
    check_available(read(BASE, MAIN, WAN), config())
    check_available(read(BASE, FULL), config(train={"method": "full"}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("pusa i2v 16 300 1.4 10", "rank 16 is not the released LoRA, whose rank is 64"),
        ("pusa i2v 64 50 1.4 10", "iteration 50 is not the released LoRA, whose iteration is 300"),
        ("control i2v 64 300 1.4 10", "model control is not the released LoRA, whose model is pu"),
    ],
)
def test_released_lora_is_one(read, config, row, message):
    other_ways = "2 steps _ subset pusa t2v 64 300 2.0 5"
    released = config(lora=RELEASED)
    check_available(read(BASE, MAIN, other_ways, seed=None), released)
    with pytest.raises(ValueError, match=f"experiments sheet, row 4: {message}"):
        check_available(read(BASE, MAIN, f"2 steps _ subset {row}", seed=None), released)


def test_wan_i2v_needs_a_baseline(read, config):
    message = "experiments sheet, row 4 asks for model wan_i2v, but config key baseline is missing"
    with pytest.raises(ValueError, match=message):
        check_available(read(BASE, MAIN, WAN), config(baseline=None))


def test_vbench_has_no_true_continuations(read, config):
    check_available(read(BASE, MAIN, "1 bounds _ subset still i2v _ _ _ _"), config())
    table = read(BASE, MAIN, "1 bounds _ subset truth i2v _ _ _ _")
    check_available(table, config(suite={"source": "folder", "path": "s", "subset": SUBSET}))
    with pytest.raises(ValueError, match=r"row 4 asks for model truth, but .*suite\.source"):
        check_available(table, config())


def test_nothing_trains_a_tiny_baseline_of_a_released_lora(read, config):
    table = read(BASE, MAIN, WAN, seed=None)
    check_available(table, config(lora=RELEASED, baseline=FOLDER))
    with pytest.raises(ValueError, match=r"row 4 .*baseline\.source is tiny, .* folder or hub"):
        check_available(table, config(lora=RELEASED))


def test_subset_that_is_not_configured(read, config):
    whole = config(suite={"source": "vbench", "path": "s"})
    check_available(read(MAIN), whole)
    with pytest.raises(ValueError, match=r"row 3 asks for a subset .*key suite\.subset is missing"):
        check_available(read(MAIN, BASE), whole)


def test_runs_are_trained_to_the_last_iteration_that_rows_ask_for():
    settings = [replace(TUNED, iteration=i, alpha=a) for i, a in ((50, 1.0), (300, 1.4), (50, 2.0))]
    settings += [replace(TUNED, rank=16, iteration=150), PLAIN]
    runs = training_runs(settings)
    assert {name: run.iterations for name, run in runs.items()} == {
        "pusa-rank16-seed0": (150,),
        "pusa-rank64-seed0": (50, 300),
    }
    assert training_runs([replace(TUNED, seed=None), PLAIN]) == {}


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
    table = pd.concat([table.iloc[1:], *[table.iloc[:1]] * count], ignore_index=True)
    where = r" \(row 3, row 4\)" if count else ""
    message = f"found {count} rows of table 1, group ours{where}, expected 1"
    with pytest.raises(ValueError, match=message):
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
    wan = Setting(model="wan_i2v", task="i2v", steps=50)  # no training seed of ours
    settings = settings_over_seeds(sheet(TUNED, PLAIN, *near, far, wan), [4, 5])
    expected = {PLAIN, *(replace(s, seed=seed) for s in (TUNED, *near) for seed in (4, 5))}
    assert set(settings.values()) == expected
    assert all(name == setting.name for name, setting in settings.items())
