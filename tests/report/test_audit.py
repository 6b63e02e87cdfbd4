"""The audit against planted faults, against clean tables, and on the paper's own tables."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pusa.experiments import read_experiments
from pusa.report.audit import (
    FAR,
    NEAR,
    _distances,
    _fit_lines,
    audit_tables,
    same_settings,
    video_counts,
    write_audit,
)
from pusa.score.arithmetic import METRICS, NAMES

CONFIG = Path(__file__).parents[2] / "config"
# VBench-I2V's constants, written down a second time: weight, lowest and highest value.
QUALITY = {
    "subject_consistency": (1, 0.1462, 1),
    "background_consistency": (1, 0.2615, 1),
    "motion_smoothness": (1, 0.7060, 0.9975),
    "dynamic_degree": (0.5, 0, 1),
    "aesthetic_quality": (1, 0, 1),
    "imaging_quality": (1, 0, 1),
}
I2V = {
    "i2v_subject": (1, 0.1462, 1),
    "i2v_background": (1, 0.2615, 1),
    "camera_motion": (0.1, 0, 1),
}


def add_totals(table, rows=slice(None)):
    """Write the halves and the total that follow from the cells of ``rows``."""
    for half, members in (("quality", QUALITY), ("i2v", I2V)):
        parts = [w * (table.loc[rows, n] / 100 - a) / (b - a) for n, (w, a, b) in members.items()]
        table.loc[rows, half] = 100 * sum(parts) / sum(w for w, _, _ in members.values())
    table.loc[rows, "total"] = (table.loc[rows, "quality"] + table.loc[rows, "i2v"]) / 2
    for column in ("quality", "i2v", "total"):
        table.loc[rows, column] = table.loc[rows, column].round(2)


def random_cells(rows, videos, rng, noise=None):
    """Cells about as high as the paper's; the consistencies go together."""
    noise = noise or (lambda size: rng.uniform(-1, 1, size))
    level = rng.uniform(-1, 1, rows)
    shares = {
        n: 100 * rng.integers(v // 10, v * 7 // 10, rows) / v
        for n, v in zip(("dynamic_degree", "camera_motion"), videos, strict=True)
    }
    means = {"motion_smoothness": 98, "aesthetic_quality": 62, "imaging_quality": 69}
    free = {n: mean + noise(rows) for n, mean in means.items()}
    tied = {n: 94 + 4 * level + 0.4 * noise(rows) for n in NAMES[:2] + NAMES[6:8]}
    return pd.DataFrame({**shares, **free, **tied})[list(NAMES)].round(2)


@pytest.fixture
def table1():
    rng = np.random.default_rng(1)
    table = random_cells(14, (1230, 3815), rng)
    table.insert(0, "model", [f"model {i}" for i in range(14)])
    table.insert(1, "group", "open")
    add_totals(table)
    return table.sort_values("total", ascending=False, ignore_index=True)


@pytest.fixture
def table2():
    rng = np.random.default_rng(2)
    table = random_cells(20, (250, 250), rng)
    table.insert(0, "group", "iterations")
    table.insert(1, "rank", 512)
    table.insert(2, "iteration", np.repeat([150, 450, 750, 900, 1200], 4))
    table.insert(3, "alpha", ["1.0", "1.4", "1.7", "2.0"] * 5)
    table.insert(4, "steps", 10)
    add_totals(table)
    again = table[table["iteration"] == 750].assign(group="lora")
    return pd.concat([again, table], ignore_index=True)


def places(findings):
    return [tuple(f) for f in findings[["rule", "table", "row", "column"]].to_numpy()]


def test_clean_tables_have_no_finding(table1, table2):
    assert places(audit_tables(table1, table2)) == []


def test_a_missing_score_is_no_fault(table1, table2):
    last = table1.index[-1]
    table1.loc[last, ["total", "i2v", "camera_motion"]] = np.nan
    assert places(audit_tables(table1, table2)) == []


def test_a_misprinted_total(table1, table2):
    table1.loc[3, "total"] -= 0.04
    found = audit_tables(table1, table2)
    assert places(found) == [("arithmetic", "1", table1["model"][3], "total")]
    assert found["found"][0] == f"{table1.loc[3, 'total']:.2f}"
    assert float(found["expected"][0]) == pytest.approx(table1.loc[3, "total"] + 0.04, abs=0.011)
    assert "so the total is misprinted" in found["explanation"][0]


@pytest.mark.parametrize("half", ["quality", "i2v"])
def test_a_misprinted_half(table1, table2, half):
    true = table2.loc[9, half]
    table2.loc[9, half] += 1
    found = audit_tables(table1, table2)
    assert places(found) == [("arithmetic", "2", "iterations 512/450/1.4/10", half)]
    assert found["expected"][0] == f"{true:.2f}"
    assert "so the half is misprinted (as with one digit changed)" in found["explanation"][0]


def test_a_misprinted_cell_is_named_with_what_it_should_be(table1, table2):
    true = table2.loc[9, "aesthetic_quality"]
    text = f"{true:.2f}"
    table2.loc[9, "aesthetic_quality"] = float(text[1] + text[0] + text[2:])
    found = audit_tables(table1, table2)
    first = found.iloc[0]
    assert places(found)[0] == ("arithmetic", "2", "iterations 512/450/1.4/10", "quality")
    named = (
        first["explanation"]
        .split("so a cell is misprinted: AQ ")[1]
        .split(" (as with two digits swapped")[0]
    )
    printed, needed = map(float, named.split(" for "))
    assert printed == table2.loc[9, "aesthetic_quality"]
    assert needed == pytest.approx(true, abs=0.08)  # the half's rounding, times 5.5
    assert set(found["rule"]) == {"arithmetic", "implausible"}


def test_two_printings_that_differ(table1, table2):
    table2.loc[1, "camera_motion"] += 0.4
    table1.loc[0, "model"] = "Ours"
    table1.loc[0, list(METRICS)] = table2.loc[5, list(METRICS)]
    same = {"Ours": "512/150/1.4/10"}
    found = audit_tables(table1, table2, same_setting=same)
    found = found[found["rule"] == "printings"]
    assert places(found) == [("printings", "2", "lora 512/750/1.4/10", "camera_motion")]
    assert "iterations 512/750/1.4/10 is the same setting" in found["explanation"].iloc[0]
    table1.loc[0, "imaging_quality"] += 1
    found = audit_tables(table1, table2, same_setting=same)
    found = found[(found["rule"] == "printings") & (found["table"] == "1")]
    assert places(found) == [("printings", "1", "Ours", "imaging_quality")]
    assert "-1.00; the two tables may be on different prompts" in found["explanation"].iloc[0]


def test_a_value_out_of_bounds(table1, table2):
    table2.loc[9, "motion_smoothness"] = 99.85
    add_totals(table2, 9)
    found = audit_tables(table1, table2)
    assert places(found) == [("implausible", "2", "iterations 512/450/1.4/10", "motion_smoothness")]
    assert "outside its bounds, 70.60 to 99.75" in found["explanation"][0]


def test_bounds_need_no_other_rows(table1, table2):
    table1.loc[0, "motion_smoothness"] = 9.85
    add_totals(table1, 0)
    found = audit_tables(table1.iloc[:1], table2)
    assert places(found) == [("implausible", "1", table1["model"][0], "motion_smoothness")]
    assert found["expected"][0] == "70.60 to 99.75"


def test_sound_rows_are_hardly_ever_out_of_line(table1):
    """400 rows whose cells scatter normally around a level of their row."""
    rng = np.random.default_rng(0)
    distances = []
    for _ in range(20):
        cells = random_cells(20, (250, 250), rng, noise=lambda size: rng.normal(0, 1 / 3, size))
        cells = cells.to_numpy()
        for i, row in enumerate(cells):
            distances.append(_distances(row, _fit_lines(np.delete(cells, i, axis=0))).max())
    distances = np.array(distances)
    assert distances.max() < FAR
    assert (distances <= NEAR).mean() > 0.95


def test_cells_moved_by_one_column_are_read_back(table1, table2):
    """Motion smoothness to I2V subject one place left, and the totals computed from that."""
    moved = list(NAMES[2:7])
    true = table2.loc[9, moved].tolist()
    table2.loc[9, moved] = [*true[1:], true[0]]
    add_totals(table2, 9)
    found = audit_tables(table1, table2)
    finding = found[found["rule"] == "implausible"].iloc[0]
    assert places(found[found["rule"] == "implausible"]) == [
        ("implausible", "2", "iterations 512/450/1.4/10", ", ".join(moved))
    ]
    assert finding["expected"].split()[1:4] == [f"{v:.2f}" for v in true[1:4]]
    assert "arithmetic" not in set(found["rule"])


def test_a_cell_left_out_is_found(table1, table2):
    """The cells after it are one place left, and the last is missing."""
    cells = table1.loc[5, list(NAMES)].tolist()
    table1.loc[5, list(NAMES)] = [*cells[:3], *cells[4:], np.nan]
    table1.loc[5, ["total", "i2v"]] = np.nan
    found = audit_tables(table1, table2)
    finding = found[found["rule"] == "implausible"].iloc[0]
    # What belongs to dynamic degree and camera motion, two wide columns, stays open, and so does
    # aesthetic quality, which may have come from there.
    agreed = zip(("IQ", "I2V-S", "I2V-B"), cells[5:8], strict=True)
    agreed = ", ".join(f"{name} {value:.2f}" for name, value in agreed)
    assert f"all agree on {agreed}" in finding["explanation"]


def test_swapped_cells_are_read_back(table1, table2):
    cells = ["motion_smoothness", "dynamic_degree"]
    table1.loc[5, cells] = table1.loc[5, cells[::-1]].tolist()
    add_totals(table1, 5)
    found = audit_tables(table1, table2)
    finding = found[found["rule"] == "implausible"].iloc[0]
    assert finding["column"] == ", ".join(cells)
    assert finding["found"] == " ".join(reversed(finding["expected"].split()))


def test_swapped_cells_that_are_usual_for_their_columns_are_read_back(table1, table2):
    """Only beside the other consistencies of the row do they stand out."""
    cells = ["background_consistency", "i2v_subject"]
    table2[cells[0]] = (table2[cells[0]] - 3).round(2)  # usually lower
    row = (table2[cells[0]] - 91).abs().idxmin()
    true = table2.loc[row, cells].tolist()
    table2.loc[row, cells] = true[::-1]
    add_totals(table2)
    assert (table2[cells].min() < true).all()
    assert (true[::-1] < table2[cells].max()).all()
    (finding,) = audit_tables(table1, table2).to_dict("records")
    assert finding["column"] == ", ".join(cells)
    assert finding["expected"] == " ".join(f"{value:.2f}" for value in true)
    assert "which is true of no other of 92 readings" in finding["explanation"]


@pytest.mark.parametrize("cell", ["imaging_quality", "i2v_background"])
def test_a_slipped_decimal_point(table1, table2, cell):
    """Only the cell itself is blamed, not those that go with it."""
    table2.loc[9, cell] = round(table2.loc[9, cell] / 10, 2)
    add_totals(table2, 9)
    found = audit_tables(table1, table2)
    found = found[found["rule"] != "bounds"].reset_index(drop=True)
    assert places(found) == [("implausible", "2", "iterations 512/450/1.4/10", cell)]
    assert "(as with the decimal point moved)" in found["explanation"][0]


def test_a_cell_that_does_not_go_with_its_neighbour(table1, table2):
    """Usual for its column, but not beside the other consistencies of its row."""
    low, high = table2["i2v_subject"].idxmin(), table2["i2v_subject"].idxmax()
    low_row = f"{table2['group'][low]} " + "/".join(map(str, table2.iloc[low, 1:5]))
    table2.loc[low, "i2v_subject"] = table2.loc[high, "i2v_subject"]
    add_totals(table2, low)
    found = audit_tables(table1, table2)
    found = found[found["rule"] == "implausible"]
    assert places(found) == [("implausible", "2", low_row, "i2v_subject")]


def test_shares_that_no_number_of_videos_gives(table1, table2):
    table2.loc[9, "dynamic_degree"] = 28.92  # 72 of 249; 250 give 28.80 and 29.20
    table1.loc[5, "dynamic_degree"] = 62.29  # 766 of 1230 are 62.28, 767 are 62.36
    add_totals(table1, 5)
    add_totals(table2, 9)
    found = audit_tables(table1, table2)
    found = found[found["rule"] == "counts"].reset_index(drop=True)
    assert list(found["found"]) == ["62.29", "28.92"]
    assert found["expected"][0] == "62.28 (766/1230) or 62.36 (767/1230)"
    assert found["expected"][1] == "28.80 (72/250) or 29.20 (73/250)"
    assert "72/249" in found["explanation"][1]
    assert "24/83" in found["explanation"][1]  # the fewest: 24/83 is 0.28916


def test_number_of_videos_is_inferred(table1, table2):
    """From 20 settings; ties such as 1 of 800, 0.125 %, may be printed up or to even."""
    eighths = np.arange(24) * 2 + 101  # odd, so that each is halfway between two decimals
    table2["dynamic_degree"] = (eighths * 12.5 + np.where(np.arange(24) % 2, 0.5, -0.5)) / 100
    table2["camera_motion"] = np.random.default_rng(0).uniform(0, 100, 24).round(2)
    counts = video_counts(table1, table2).set_index(["table", "column"])
    assert counts.loc[("1", "dynamic_degree"), "videos"] == 1230
    assert counts.loc[("1", "camera_motion"), "videos"] == 3815
    assert counts.loc[("2", "dynamic_degree"), "videos"] == 800
    assert pd.isna(counts.loc[("2", "camera_motion"), "videos"])


def test_bad_tables_are_refused(table1, table2):
    with pytest.raises(ValueError, match="table 1 lacks the columns total"):
        audit_tables(table1.drop(columns="total"), table2)
    with pytest.raises(ValueError, match=r"table 2: i2v is '9O\.1', expected a number"):
        audit_tables(table1, table2.assign(i2v="9O.1"))
    with pytest.raises(ValueError, match="table 2 has no rows"):
        audit_tables(table1, table2.iloc[:0])
    with pytest.raises(ValueError, match="same setting 'Ours': '1/2/3/4' names no row"):
        audit_tables(table1, table2, same_setting={"Ours": "1/2/3/4"})


@dataclass
class Published:
    findings: pd.DataFrame
    counts: pd.DataFrame


@pytest.fixture(scope="module")
def paper():
    tables = [pd.read_csv(CONFIG / "published" / f"table{i}.csv") for i in (1, 2)]
    same = same_settings(read_experiments(CONFIG / "experiments.tsv", seed=0))
    assert same == {"Ours": "512/900/1.4/10"}
    return Published(audit_tables(*tables, same_setting=same), video_counts(*tables))


def test_the_paper_s_tables(paper):
    found = paper.findings
    once = found[~found["rule"].isin(["printings", "counts"])]
    assert places(once) == [
        ("arithmetic", "2", "lora 512/750/2.0/10", "i2v"),
        ("arithmetic", "2", "iterations 512/750/2.0/10", "i2v"),
        (
            "implausible",
            "1",
            "CogVideoX1.5-5B",
            "motion_smoothness, dynamic_degree, aesthetic_quality, imaging_quality",
        ),
        ("implausible", "2", "lora 256/750/1.4/10", "background_consistency, i2v_subject"),
    ]
    moved, swapped = once["explanation"].iloc[2:]
    assert "all agree on DD 40.98, AQ 62.29, IQ 70.21" in moved
    assert "or else BC 96.67, I2V-B 98.78 would be wrong" in swapped
    assert "read as BC 90.33, I2V-S 96.67" in swapped
    assert "which is true of no other" in swapped
    assert list(once["found"])[:2] == ["93.87"] * 2
    assert list(once["expected"])[:2] == ["92.87"] * 2
    # Every metric of Table 1's own row but one differs from both printings in Table 2.
    printings = found[found["rule"] == "printings"]
    assert set(printings["row"]) == {"Ours"}
    assert set(METRICS) - set(printings["column"]) == {"background_consistency"}


def test_the_paper_s_shares(paper):
    found = paper.findings[paper.findings["rule"] == "counts"]
    assert [tuple(f) for f in found[["table", "column", "found"]].to_numpy()] == [
        ("1", "dynamic_degree", "62.29"),
        *(
            ("2", "dynamic_degree", share)
            for share in ["28.92", "30.06", "79.88", "53.97", "73.54", "72.54", "60.69", "60.73"]
        ),
        *(
            ("2", "camera_motion", share)
            for share in [
                "23.48",
                "31.10",
                "26.91",
                "30.20",
                "32.94",
                "30.34",
                "14.51",
                "6.15",
                "29.89",
                "9.16",
            ]
        ),
    ]
    counts = paper.counts
    assert list(counts["videos"]) == [1230, 3815, 250, 250]
    assert list(counts["cells"]) == [16, 14, 27, 27]
    assert list(counts["explained"]) == [15, 14, 19, 17]


def test_page(paper, table1, table2, tmp_path):
    write_audit(paper.findings, paper.counts, tmp_path / "audit.html")
    page = (tmp_path / "audit.md").read_text()
    assert "found 34 things to explain" in page
    assert [
        line.split("|")[1:4:2] for line in page.splitlines() if line.startswith("| implaus")
    ] == [[" implausible ", " 2          "]]
    assert "<h2>Implausible</h2>" in (tmp_path / "audit.html").read_text()
    assert len(pd.read_csv(tmp_path / "audit.csv")) == 34
    none = audit_tables(table1, table2)
    write_audit(none, video_counts(table1, table2), tmp_path / "clean.html")
    assert "found nothing." in (tmp_path / "clean.md").read_text()
