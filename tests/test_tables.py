from pathlib import Path

import pandas as pd
import pytest

from pusa.aggregate import NAMES, total_scores
from pusa.experiments import Setting, check_published
from pusa.tables import make_table1, make_table2, setting_scores, write_table

PUBLISHED = Path(__file__).parents[1] / "config" / "published"
MAIN = Setting(model="pusa", task="i2v", steps=10, rank=64, iteration=300, alpha=1.4, seed=0)
BASE = Setting(model="base", task="i2v", steps=10)


def scores(value):
    return pd.DataFrame([{"file": "a.mp4", "dimension": n, "value": value} for n in NAMES])


def sheet(*rows):
    return pd.DataFrame(rows, columns=["table", "group", "published", "setting"])


@pytest.fixture
def table1():
    return pd.read_csv(PUBLISHED / "table1.csv")


@pytest.fixture
def table2():
    return pd.read_csv(PUBLISHED / "table2.csv", dtype={"alpha": str})


def test_setting_scores():
    found = setting_scores(scores(0.6))
    assert {name: found[name] for name in NAMES} == pytest.approx(dict.fromkeys(NAMES, 60.0))
    expected = total_scores(dict.fromkeys(NAMES, 60.0))
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_table1_has_published_rows_then_ours(table1):
    rows = sheet(("1", "baseline", "", BASE), ("1", "ours", "Ours", MAIN), ("2", "lora", "", MAIN))
    table = make_table1(rows, {MAIN.name: scores(0.9), BASE.name: scores(0.5)}, table1)
    assert list(table["source"]) == ["published"] * 16 + ["here"] * 2
    assert list(table["model"][16:]) == [BASE.label, MAIN.label]
    assert table["i2v_subject"].tolist()[15:] == [97.64, 50, pytest.approx(90)]
    assert table["total"][15] == 87.32


def test_table2_puts_ours_under_the_published_row(table2):
    rows = sheet(
        ("2", "steps", "512/900/1.4/10", MAIN),
        ("2", "steps", "", Setting(**{**vars(MAIN), "steps": 7})),
        ("1", "ours", "", MAIN),
    )
    values = {s.name: scores(0.7) for s in rows["setting"]}
    table = make_table2(rows, values, table2)
    assert list(table["source"]).count("published") == len(table2) == 32
    assert len(table) == 34
    (at, last) = table.index[table["source"] == "here"]
    above = table.loc[at - 1]
    place = ["group", "rank", "iteration", "alpha", "steps"]
    assert list(above[place]) == ["steps", 512, 900, "1.4", 10]
    assert list(table.loc[at, place]) == ["steps", 64, 300, "1.4", 10]
    assert above["total"] == 87.69
    assert table.loc[at, "i2v_subject"] == pytest.approx(70)
    assert last == 33  # beside no published row
    assert table.loc[last, "steps"] == 7


@pytest.mark.parametrize(
    ("group", "key"),
    [("steps", "512/900/1.4/11"), ("lora", "512/900/1.4/10"), ("steps", "512/900/1.40/10")],
)
def test_unknown_published_row_is_named(group, key):
    rows = sheet(("2", group, key, MAIN))
    message = f"row 2: table 2, group '{group}' has no published row '{key}'"
    with pytest.raises(ValueError, match=message):
        check_published(rows, PUBLISHED / "table1.csv", PUBLISHED / "table2.csv")


def test_unknown_group_is_named():
    with pytest.raises(ValueError, match="table 2 has no group 'stepz'"):
        check_published(
            sheet(("2", "stepz", "", MAIN)), PUBLISHED / "table1.csv", PUBLISHED / "table2.csv"
        )


def test_table2_takes_the_base(table2):
    table = make_table2(sheet(("2", "steps", "", BASE)), {BASE.name: scores(0.5)}, table2)
    assert len(table) == 33


def test_table2_keeps_the_digits_of_alpha(table2):
    setting = Setting(**{**vars(MAIN), "alpha": 1.25})
    table = make_table2(sheet(("2", "lora", "", setting)), {setting.name: scores(0.5)}, table2)
    assert table["alpha"].iloc[-1] == "1.25"


def test_our_sheets_fit_the_published_tables(table1, table2):
    from pusa.experiments import read_experiments

    for name in ("experiments.tsv", "demo_experiments.tsv"):
        rows = read_experiments(PUBLISHED.parent / name, seed=0)
        values = {s.name: scores(0.7) for s in rows["setting"]}
        here = make_table2(rows, values, table2)["source"].eq("here")
        assert here.sum() == (rows["table"] == "2").sum() >= 22
        # Each of ours is right under its published row.
        assert not here[[i - 1 for i in here.index[here]]].any()
        assert make_table1(rows, values, table1)["source"].eq("here").sum() == 2


def test_files(tmp_path, table1):
    rows = sheet(("1", "ours", "Ours", MAIN))
    table = make_table1(rows, {MAIN.name: scores(0.123456)}, table1)
    write_table(table, tmp_path / "table1", "Table 1 & ours", "A run on two cores.")
    back = pd.read_csv(tmp_path / "table1.csv")
    assert back["source"].tolist() == table["source"].tolist()
    assert back["i2v_subject"].iloc[-1] == 12.35
    assert pd.isna(back["total"][12])  # SVD-XT-1.1 prints none
    markdown = (tmp_path / "table1.md").read_text()
    html = (tmp_path / "table1.html").read_text()
    for text in (markdown, html):
        assert "A run on two cores." in text
        assert "They are not VBench numbers" in text
        assert "I2V-S" in text
        assert "12.35" in text
        assert "nan" not in text.lower().replace("dynamicrafter", "")
    assert html.count('class="here"') == 1
    assert "Table 1 &amp; ours" in html
