from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from pusa.experiments import BOUNDS, Setting, check_published, read_experiments
from pusa.report.study import Study
from pusa.report.tables import make_table1, make_table2, read_published, write_table1, write_table2
from pusa.score.arithmetic import METRICS, NAMES, total_scores
from pusa.score.intervals import score_intervals

PUBLISHED = Path(__file__).parents[2] / "config" / "published"
MAIN = Setting(model="pusa", task="i2v", steps=10, rank=64, iteration=300, alpha=1.4, seed=0)
BASE = Setting(model="base", task="i2v", steps=10)
MAIN_ROW = ("1", "ours", "Ours", "all", MAIN)

KINDS = ["subject"] * 4 + ["background"] * 4 + ["camera"] * 4
SUBSET = {"subject": 2, "background": 2, "camera": 2}
TAKEN = (0, 2, 4, 6, 8, 10)  # the subset's prompts of KINDS


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("pusa.score.intervals.RESAMPLES", 200)


def scores(value, *, samples=1, other=None, spread=0.0, scorer="weight_free", names=NAMES):
    """Scores of twelve prompts.

    ``other`` is the value of those that are not in the subset; of each kind, half are ``spread``
    below and half above.
    """
    return pd.DataFrame(
        {
            "file": f"{index:04d}-{sample}.mp4",
            "index": index,
            "sample": sample,
            "kind": kind,
            "dimension": name,
            "value": (value if other is None or index in TAKEN else other)
            + (spread if index % 4 > 1 else -spread),
            "frames": 9,
            "scorer": scorer,
        }
        for index, kind in enumerate(KINDS)
        for sample in range(samples)
        for name in names
    )


def sheet(*rows):
    return pd.DataFrame(rows, columns=["table", "group", "published", "prompts", "setting"])


@pytest.fixture
def table1():
    return read_published(PUBLISHED / "table1.csv")


@pytest.fixture
def table2():
    return read_published(PUBLISHED / "table2.csv")


def of_source(table, source):
    return table[table["source"] == source]


def test_table1_puts_ours_under_the_papers_own_rows(table1):
    rows = sheet(("1", "baseline", "", "subset", BASE), MAIN_ROW, ("2", "lora", "", "all", MAIN))
    table = make_table1(Study(rows, {MAIN: scores(0.9), BASE: scores(0.5)}, SUBSET), table1)
    assert list(table["source"]) == [
        *["published"] * 15,
        *["here", "here", "here - main"],  # Wan-I2V, which was not run; the base
        *["published", "here"],
    ]
    assert list(table["model"][[14, 16, 17, 18, 19]]) == [
        "Wan-I2V",
        BASE.label,
        BASE.label,
        "Ours",
        MAIN.label,
    ]
    assert list(of_source(table, "published")["model"]) == list(table1["model"])
    assert table.loc[18, "total"] == 87.32
    assert table.loc[16, "i2v_subject"] == pytest.approx(50)
    assert table.loc[17, "i2v_subject"] == pytest.approx(-40)
    assert table.loc[19, "i2v_subject"] == pytest.approx(90)
    assert list(table["videos"][[16, 19]]) == [6, 12]
    assert list(table["scorer"][[16, 19]]) == ["weight_free"] * 2
    bounds = [f"{name}_{end}" for name in METRICS for end in ("low", "high")]
    assert of_source(table, "published")[bounds].isna().all(axis=None)


def test_rows_that_were_not_run_are_empty(table1, table2):
    """Not in the sheet, or in it without scores; never filled from the paper."""
    rows = sheet(MAIN_ROW, ("2", "steps", "512/900/1.4/2", "all", replace(MAIN, steps=2)))
    one = make_table1(Study(rows, {}, SUBSET), table1)
    two = make_table2(Study(rows, {}, SUBSET), table2)
    assert list(one["source"].value_counts()) == [16, 2]
    assert list(two["source"]) == ["published", "here"] * 32
    for table in (one, two):
        numbers = table.columns[list(table.columns).index("scorer") :]
        assert of_source(table, "here")[numbers].isna().all(axis=None)
    place = ["group", "rank", "iteration", "alpha", "steps"]
    asked = (of_source(two, "here")[["group", "steps"]] == ["steps", 2]).all(axis=1).to_numpy()
    printed, here = (of_source(two, source)[place].astype(str) for source in ("published", "here"))
    # each is named as the row that it stands under; the one of the sheet by its own setting
    assert (printed.to_numpy() == here.to_numpy())[~asked].all()
    assert here[asked]["rank"].tolist() == ["64"]


def test_table2_puts_ours_under_the_published_row(table2):
    rows = sheet(
        MAIN_ROW,
        ("2", "steps", "512/900/1.4/10", "subset", MAIN),
        ("2", "steps", "", "subset", replace(MAIN, steps=7)),
    )
    values = {s: scores(0.7) for s in rows["setting"]}
    table = make_table2(Study(rows, values, SUBSET), table2)
    at, alone = table.index[table["scorer"].notna() & (table["source"] == "here")]
    place = ["group", "rank", "iteration", "alpha", "steps"]
    assert list(table.loc[at - 1, place]) == ["steps", 512, 900, "1.4", 10]
    assert table.loc[at - 1, "total"] == 87.69
    assert list(table.loc[at, place]) == ["steps", 64, 300, "1.4", 10]
    assert table.loc[at, "i2v_subject"] == pytest.approx(70)
    assert table.loc[at, "videos"] == 6
    # What stands beside no published row closes its group.
    assert list(table.loc[alone, place]) == ["steps", 64, 300, "1.4", 7]
    assert list(table.loc[alone + 1 : alone + 2, "group"]) == ["steps", "iterations"]


def test_vbench_differs_from_the_published_row(table1, table2):
    rows = sheet(MAIN_ROW, ("1", "baseline", "", "all", BASE))
    videos = scores(0.7, spread=0.1, scorer="vbench")
    table = make_table1(Study(rows, {MAIN: videos, BASE: videos}, None), table1)
    assert list(table["source"].value_counts().loc[["here", "here - published"]]) == [3, 1]
    (difference,) = of_source(table, "here - published").to_dict("records")
    found = score_intervals(videos)
    assert found["imaging_quality"].low < 70 < found["imaging_quality"].high
    for name, printed in {"total": 87.32, "imaging_quality": 68.27, "dynamic_degree": 52.6}.items():
        ours = found[name]
        assert difference[name] == pytest.approx(ours.value - printed)
        assert difference[f"{name}_low"] == pytest.approx(ours.low - printed)
        assert difference[f"{name}_high"] == pytest.approx(ours.high - printed)


def test_weight_free_differs_from_the_main_setting(table2):
    """Each on its own prompts; the difference on those that both have."""
    better = replace(MAIN, alpha=1.7)
    rows = sheet(
        MAIN_ROW,
        ("2", "iterations", "512/900/1.4/10", "subset", MAIN),
        ("2", "iterations", "512/900/1.7/10", "subset", better),
    )
    values = {
        MAIN: scores(0.6, other=0.1, spread=0.05),
        better: scores(0.8, spread=0.05),
    }
    values[better] = values[better][values[better]["index"].isin(TAKEN)]
    table = make_table2(Study(rows, values, SUBSET), table2)
    (difference,) = of_source(table, "here - main").to_dict("records")  # none to itself
    assert difference["alpha"] == "1.7"
    assert pd.isna(difference["videos"])
    ends = [difference[f"i2v_subject{end}"] for end in ("", "_low", "_high")]
    assert ends == pytest.approx([20, 20, 20])  # the spread is the prompts', and cancels
    expected = [total_scores(dict.fromkeys(NAMES, v))["total"] for v in (80, 60)]
    assert difference["total"] == pytest.approx(expected[0] - expected[1])


def test_scorers_are_not_mixed(table1):
    values = {MAIN: scores(0.9), BASE: scores(0.9, scorer="vbench")}
    message = f"{BASE.name} by vbench, {MAIN.name} by weight_free; expected one scorer"
    with pytest.raises(ValueError, match=message):
        make_table1(Study(sheet(MAIN_ROW), values, None), table1)


class Bold(HTMLParser):
    """Texts in bold by column heading, and all cells by row."""

    def __init__(self, file):
        super().__init__()
        self.rows, self.bold, self.tag = [], [], ""
        self.feed(file.read_text())
        self.head, self.rows = self.rows[0], self.rows[1:]

    def handle_starttag(self, tag, attrs):
        self.tag = tag
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.tag in ("td", "button", "b"):  # a heading is a button that sorts
            self.rows[-1][-1] += data.strip()
        if self.tag == "b":
            self.bold.append((len(self.rows) - 2, len(self.rows[-1]) - 1))

    def handle_endtag(self, tag):
        self.tag = ""

    def by_column(self):
        found = {}
        for row, column in self.bold:
            found.setdefault(self.head[column], []).append(self.rows[row][0])
        return found


BEST = {  # of the published Table 1, by eye; CogVideoX1.5-5B as it is printed
    "Total": ["Magi-1"],
    "I2V": ["Magi-1"],
    "Quality": ["Magi-1"],
    "SC": ["Animate-Anything"],
    "BC": ["VideoCrafter"],
    "MS": ["STIV (Apple)"],
    "DD": ["DynamiCrafter-512"],
    "AQ": ["CogVideoX1.5-5B"],
    "IQ": ["CogVideoX1.5-5B"],
    "I2V-S": ["STIV (Apple)"],
    "I2V-B": ["Ours"],
    "CM": ["Gen-4-I2V (API)"],
}


def test_best_published_rows_are_bold(tmp_path, table1):
    write_table1(make_table1(Study(sheet(MAIN_ROW), {}, None), table1), tmp_path / "table1", "")
    assert Bold(tmp_path / "table1.html").by_column() == BEST


def test_vbench_competes_with_the_published_rows(tmp_path, table1):
    """A tie in print is a tie; 97.069 would be 97.07."""
    videos = scores(0.9707 - 1e-5, scorer="vbench")
    write_table1(
        make_table1(Study(sheet(MAIN_ROW), {MAIN: videos}, None), table1), tmp_path / "t", ""
    )
    won = [name for name in BEST if name in ("Total", "I2V", "Quality", "DD", "AQ", "CM")]
    expected = BEST | {name: [MAIN.label] for name in won}
    expected["IQ"] = ["CogVideoX1.5-5B", MAIN.label]
    found = Bold(tmp_path / "t.html").by_column()
    assert found == expected


def test_weight_free_scores_have_a_best_of_their_own(tmp_path, table1):
    rows = sheet(MAIN_ROW, ("1", "baseline", "", "all", BASE))
    values = {MAIN: scores(0.99), BASE: scores(0.2)}
    write_table1(make_table1(Study(rows, values, None), table1), tmp_path / "t", "")
    expected = {name: [*models, MAIN.label] for name, models in BEST.items()}
    assert Bold(tmp_path / "t.html").by_column() == expected


def test_best_of_each_ablation_group_is_bold(tmp_path, table2):
    write_table2(make_table2(Study(sheet(MAIN_ROW), {}, None), table2), tmp_path / "table2", "")
    page = Bold(tmp_path / "table2.html")
    totals = [r for r, column in page.bold if page.head[column] == "Total"]
    assert [page.rows[r][:5] + page.rows[r][7:8] for r in totals] == [
        ["lora", "512", "750", "1.7", "10", "87.11"],
        ["steps", "512", "900", "1.4", "20", "87.84"],
        ["iterations", "512", "900", "1.4", "10", "87.69"],
    ]
    smooth = [r for r, column in page.bold if page.head[column] == "MS"]
    assert [page.rows[r][4] for r in smooth] == ["10", "5", "10"]


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
    rows = sheet(MAIN_ROW, ("2", "iterations", "", "all", setting))
    table = make_table2(Study(rows, {setting: scores(0.5)}, SUBSET), table2)
    write_table2(table, tmp_path / "table2", "")
    cells = (tmp_path / "table2.csv").read_text().splitlines()
    assert cells[1].startswith("lora,256,750,1.0,10,published,,")  # ranks stay whole numbers
    assert cells[-1].startswith(f"iterations,,{iteration},,10,here,weight_free,12,")
    lines = (tmp_path / "table2.md").read_text().splitlines()
    shown = [[cell.strip() for cell in line.split("|")[1:8]] for line in lines]
    assert ["lora", "256", "750", "1.0", "10", "published", ""] in shown
    assert ["iterations", "", iteration, "", "10", "here", "12"] in shown


def test_table2_keeps_the_digits_of_alpha(table2):
    setting = replace(MAIN, alpha=1.25)
    rows = sheet(MAIN_ROW, ("2", "iterations", "", "all", setting))
    table = make_table2(Study(rows, {setting: scores(0.5)}, SUBSET), table2)
    assert table["alpha"].iloc[-1] == "1.25"


STILL = BOUNDS["still"]


@pytest.mark.parametrize(
    ("name", "count", "models"),
    [
        ("experiments", 32, ["Wan-I2V", "base + VTA", "pusa", STILL]),
        ("wan1.3b_experiments", 32, ["base + VTA", "pusa", STILL]),
        ("demo_experiments", 14, ["Wan-I2V", "base + VTA", "pusa", *BOUNDS.values()]),
        ("released_experiments", 8, ["Wan-I2V", "base + VTA", "pusa", STILL]),
    ],
)
def test_our_sheets_fit_the_published_tables(table1, table2, name, count, models):
    rows = read_experiments(PUBLISHED.parent / f"{name}.tsv", seed=0)
    values = {s: scores(0.7, scorer="vbench") for s in rows["setting"]}
    two = make_table2(Study(rows, values, SUBSET), table2)
    run = two["scorer"].notna() & (two["source"] == "here") & ~two["group"].isin(BOUNDS.values())
    assert run.sum() == count
    assert list(two["group"])[-1] == [*BOUNDS.values()][-1 if name == "demo_experiments" else 0]
    # Each of ours is right under its published row.
    assert set(two.loc[two.index[run] - 1, "source"]) == {"published"}
    one = make_table1(Study(rows, values, SUBSET), table1)
    here = one[one["scorer"].notna() & (one["source"] == "here")]
    assert [label.split(",")[0] for label in here["model"]] == models


def test_wan_i2v_stands_under_its_published_row(table1):
    """With its difference to it, in points; the published total is 86.86."""
    wan = Setting(model="wan_i2v", task="i2v", steps=50)
    rows = sheet(MAIN_ROW, ("1", "baseline", "Wan-I2V", "all", wan))
    study = Study(rows, {MAIN: scores(0.9, scorer="vbench"), wan: scores(1, scorer="vbench")}, None)
    table = make_table1(study, table1)
    place = table.index[(table["model"] == "Wan-I2V") & (table["source"] == "published")][0]
    here, change = table.loc[place + 1], table.loc[place + 2]
    assert (here["model"], here["source"]) == ("Wan-I2V, 50 steps", "here")
    assert change["source"] == "here - published"
    assert change["total"] == pytest.approx(here["total"] - 86.86)


def test_files(tmp_path, table1):
    rows = sheet(MAIN_ROW)
    videos = scores(0.123456789, spread=0.1)
    table = make_table1(Study(rows, {MAIN: videos}, None), table1)
    write_table1(table, tmp_path / "table1", "A run of 50 % & two cores.")
    back = pd.read_csv(tmp_path / "table1.csv")
    assert back["source"].tolist() == table["source"].tolist()
    assert back["i2v_subject"].iloc[-1] == pytest.approx(12.3456789)  # all digits, no marks
    assert back["i2v_subject_low"].iloc[-1] < 12 < back["i2v_subject_high"].iloc[-1]
    assert pd.isna(back["total"][12])  # SVD-XT-1.1 prints none
    low, high = (back[f"i2v_subject_{end}"].iloc[-1] for end in ("low", "high"))
    markdown, html, latex = ((tmp_path / f"table1.{k}").read_text() for k in ("md", "html", "tex"))
    assert f"**12.35** [{low:.2f}, {high:.2f}]" in markdown
    for text in (markdown, html, latex):
        assert "A run of 50" in text
        assert "They are not VBench numbers" in text
        assert "I2V-S" in text
        assert "nan" not in text.lower()
    assert "A run of 50 % &amp; two" in html
    assert r"A run of 50 \% \& two" in latex
    assert html.count('class="here"') == 2  # Wan-I2V's empty row too


@pytest.mark.parametrize("scorer", ["weight_free", "vbench"])
def test_weight_free_scores_say_so_in_the_title(tmp_path, table1, table2, scorer):
    rows = sheet(MAIN_ROW, ("2", "steps", "512/900/1.4/10", "all", MAIN))
    values = {MAIN: scores(0.7, scorer=scorer)}
    write_table1(make_table1(Study(rows, values, None), table1), tmp_path / "table1", "")
    write_table2(make_table2(Study(rows, values, None), table2), tmp_path / "table2", "")
    for name in ("table1", "table2"):
        markdown, html, latex = (
            (tmp_path / f"{name}.{kind}").read_text() for kind in ("md", "html", "tex")
        )
        captions = [line for line in latex.splitlines() if r"\caption" in line]
        titles = [markdown.splitlines()[0], html.split("<h1>")[1].split("</h1>")[0], *captions]
        assert len(titles) == 3
        for title in titles:
            assert ("weight-free scores, not VBench" in title) == (scorer == "weight_free")
