from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pusa.aggregate import NAMES, total_scores
from pusa.experiments import Setting, check_published
from pusa.tables import make_table1, make_table2, row_scores, setting_scores, write_table

PUBLISHED = Path(__file__).parents[1] / "config" / "published"
MAIN = Setting(model="pusa", task="i2v", steps=10, rank=64, iteration=300, alpha=1.4, seed=0)
BASE = Setting(model="base", task="i2v", steps=10)


KINDS = ["subject"] * 4 + ["background"] * 2 + ["camera"] * 2
SUBSET = {"subject": 2, "background": 1, "camera": 1}
TAKEN = (0, 2, 4, 6)  # the subset's prompts of KINDS


def scores(value, samples=1, other=None):
    """Scores of eight prompts; ``other`` is the value of those that are not in the subset."""
    return pd.DataFrame(
        {
            "file": f"{index}-{sample}.mp4",
            "index": index,
            "kind": kind,
            "dimension": name,
            "value": value if other is None or index in TAKEN else other,
        }
        for index, kind in enumerate(KINDS)
        for sample in range(samples)
        for name in NAMES
    )


def sheet(*rows):
    return pd.DataFrame(rows, columns=["table", "group", "published", "prompts", "setting"])


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


def test_rows_count_their_own_prompts():
    """One setting's videos of all prompts serve a row on all, and one on the subset."""
    videos = {MAIN.name: scores(0.9, samples=5, other=0.5)}
    everything = row_scores({"setting": MAIN, "prompts": "all"}, videos, SUBSET)
    part = row_scores({"setting": MAIN, "prompts": "subset"}, videos, SUBSET)
    assert (everything["videos"], part["videos"]) == (8 * 5, 4 * 5)
    assert everything["i2v_subject"] == pytest.approx(70)
    assert part["i2v_subject"] == pytest.approx(90)


def test_table1_has_published_rows_then_ours(table1):
    rows = sheet(
        ("1", "baseline", "", "subset", BASE),
        ("1", "ours", "Ours", "all", MAIN),
        ("2", "lora", "", "subset", MAIN),
    )
    table = make_table1(rows, {MAIN.name: scores(0.9), BASE.name: scores(0.5)}, table1, SUBSET)
    assert list(table["source"]) == ["published"] * 16 + ["here"] * 2
    assert list(table["model"][16:]) == [BASE.label, MAIN.label]
    assert table["i2v_subject"].tolist()[15:] == [97.64, 50, pytest.approx(90)]
    assert table["total"][15] == 87.32
    assert list(table.columns[:5]) == ["model", "group", "source", "videos", "total"]
    assert table["videos"].isna().tolist() == [True] * 16 + [False] * 2
    assert list(table["videos"][16:]) == [4, 8]


def test_table2_puts_ours_under_the_published_row(table2):
    rows = sheet(
        ("2", "steps", "512/900/1.4/10", "subset", MAIN),
        ("2", "steps", "", "subset", replace(MAIN, steps=7)),
        ("1", "ours", "", "all", MAIN),
    )
    values = {s.name: scores(0.7) for s in rows["setting"]}
    table = make_table2(rows, values, table2, SUBSET)
    assert list(table["source"]).count("published") == len(table2) == 32
    assert len(table) == 34
    (at, last) = table.index[table["source"] == "here"]
    above = table.loc[at - 1]
    place = ["group", "rank", "iteration", "alpha", "steps"]
    assert list(above[place]) == ["steps", 512, 900, "1.4", 10]
    assert list(table.loc[at, place]) == ["steps", 64, 300, "1.4", 10]
    assert above["total"] == 87.69
    assert table.loc[at, "i2v_subject"] == pytest.approx(70)
    assert table.loc[at, "videos"] == 4
    assert pd.isna(above["videos"])
    assert last == 33  # beside no published row
    assert table.loc[last, "steps"] == 7


@pytest.mark.parametrize(
    ("group", "key"),
    [("steps", "512/900/1.4/11"), ("lora", "512/900/1.4/10"), ("steps", "512/900/1.40/10")],
)
def test_unknown_published_row_is_named(group, key):
    rows = sheet(("2", group, key, "all", MAIN))
    message = f"row 2: table 2, group '{group}' has no published row '{key}'"
    with pytest.raises(ValueError, match=message):
        check_published(rows, PUBLISHED / "table1.csv", PUBLISHED / "table2.csv")


def test_unknown_group_is_named():
    rows = sheet(("2", "stepz", "", "all", MAIN))
    with pytest.raises(ValueError, match="table 2 has no group 'stepz'"):
        check_published(rows, PUBLISHED / "table1.csv", PUBLISHED / "table2.csv")


FULL = replace(MAIN, rank=None, alpha=None)


@pytest.mark.parametrize(
    ("setting", "iteration"), [(BASE, ""), (FULL, "300")], ids=["base", "full"]
)
def test_table2_takes_what_has_no_lora(tmp_path, table2, setting, iteration):
    rows = sheet(("2", "steps", "", "all", setting))
    table = make_table2(rows, {setting.name: scores(0.5)}, table2, SUBSET)
    assert len(table) == 33
    write_table(table, tmp_path / "table2", "Table 2", "")
    cells = (tmp_path / "table2.csv").read_text().splitlines()
    assert cells[1].startswith("lora,256,750,1.0,10,published,,")  # ranks stay whole numbers
    assert cells[-1].startswith(f"steps,,{iteration},,10,here,8,")
    lines = (tmp_path / "table2.md").read_text().splitlines()
    shown = [[cell.strip() for cell in line.split("|")[1:8]] for line in lines]
    assert ["lora", "256", "750", "1.0", "10", "published", ""] in shown
    assert ["steps", "", iteration, "", "10", "here", "8"] in shown


def test_table2_keeps_the_digits_of_alpha(table2):
    setting = replace(MAIN, alpha=1.25)
    rows = sheet(("2", "lora", "", "all", setting))
    table = make_table2(rows, {setting.name: scores(0.5)}, table2, SUBSET)
    assert table["alpha"].iloc[-1] == "1.25"


def test_our_sheets_fit_the_published_tables(table1, table2):
    from pusa.experiments import read_experiments

    counts = {"experiments": 32, "demo_experiments": 22, "released_experiments": 8}
    for name, count in counts.items():
        rows = read_experiments(PUBLISHED.parent / f"{name}.tsv", seed=0)
        values = {s.name: scores(0.7) for s in rows["setting"]}
        here = make_table2(rows, values, table2, SUBSET)["source"].eq("here")
        assert here.sum() == (rows["table"] == "2").sum() == count
        # Each of ours is right under its published row.
        assert not here[[i - 1 for i in here.index[here]]].any()
        assert make_table1(rows, values, table1, SUBSET)["source"].eq("here").sum() == 2


def test_files(tmp_path, table1):
    rows = sheet(("1", "ours", "Ours", "all", MAIN))
    table = make_table1(rows, {MAIN.name: scores(0.123456)}, table1, None)
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
        assert "videos" in text
        assert "nan" not in text.lower().replace("dynamicrafter", "")
    assert html.count('class="here"') == 1
    assert "Table 1 &amp; ours" in html
