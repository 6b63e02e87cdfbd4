from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pusa.config import read_config, read_config_files
from pusa.data.suite import KINDS
from pusa.experiments import WAN_I2V
from pusa.layout import read_layout
from pusa.report import price
from pusa.report.plan import video_hours
from pusa.report.price import price_claims, write_prices
from pusa.score.files import write_scores
from tests.scores import score_table

ROOT = Path(__file__).parents[2]
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "not decided"
#: Prompts whose mean shows a difference of one point, if they differ by three, in 80 % of studies.
WHOLE = ((1.96 + 0.8416) * 3) ** 2
RECORD = {
    "scorer": "vbench",
    "dimensions": ["i2v_subject"],
    "device": "a GPU",
    "packages": {"vbench": "0.1.5"},
    "imaging_quality_mode": "longer",
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("pusa.score.intervals.RESAMPLES", 500)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A function that lays out the paper's configuration with some claims and scores.

    Args:
        compare: what the claims compare, a mapping each.
        differences: of each row that was run from a row of all one score: its mean in points.
        deviation: of the differences, in points.
        kinds: prompts of each kind that were scored, and that the configuration's subset has.
        folder: where the scores lie; the run's own if absent.
    """

    def build(
        compare, differences, *, deviation=3.0, kinds=(20, 20, 20), samples=1, folder=None, **config
    ):
        claims = yaml.safe_load((ROOT / "config/claims.yaml").read_text())
        stated = [
            {"claim": f"Claim {n}", "source": "1", **({"compare": c} if "compare" not in c else c)}
            for n, c in enumerate(compare, start=1)
        ]
        file = tmp_path / "claims.yaml"
        file.write_text(yaml.safe_dump({"rows": claims["rows"], "claims": stated}))
        monkeypatch.setattr(price.Layout, "claims", str(file))
        values = yaml.safe_load((ROOT / "config/config.yaml").read_text())
        values |= {"results": str(tmp_path / "results")}
        values["suite"]["subset"] = dict(zip(KINDS, kinds, strict=True))
        values["sample"]["samples"] = samples
        layout = read_layout(read_config(values | config))
        named = price.read_claims(file)
        scores = Path(folder or layout.path("scores", "tables"))
        scores.mkdir(parents=True, exist_ok=True)
        for seed, (row, mean) in enumerate(differences.items()):
            rng = np.random.default_rng(seed)
            noise = [rng.standard_normal((n, samples)) for n in kinds]
            noise = np.concatenate([(n - n.mean()) / n.std(ddof=1) for n in noise])
            value = 0.6 + (mean + (deviation if mean else 0) * noise) / 100
            table = score_table(
                lambda i, s, name, v=value: float(v[i, s]) if "i2v" in name else 0.0,
                counts=kinds,
                samples=samples,
                scorer="vbench",
            )
            setting = named.find(row, layout.experiments)["setting"]
            write_scores(table, RECORD, scores / f"{setting.name}.csv")
        return layout

    return build


def first(prices):
    return prices.claims.iloc[0]


def test_price_of_a_claim_whose_answer_is_known(study):
    """By a quarter of the prompts; the difference is 0.69 as published, 0.3 as seen."""
    layout = study(
        [{"i2v_subject": "ours > wan_i2v"}], {"ours": 0.3, "wan_i2v": 0}, kinds=(40, 2, 2)
    )
    found = price_claims(layout)
    row = first(found)
    assert (row["here"], row["expected"], row["differences"]) == (UNDECIDED, HOLDS, "published")
    assert row["subject"] == pytest.approx(WHOLE / 0.69**2, rel=0.25)  # 148
    assert np.isnan(row["background"])  # no other kind is asked for its subject
    assert row["samples"] == 1
    more = row["subject"] - 40
    assert row["videos"] == 2 * more
    assert row["rows"] == f"ours: {more:.0f}; wan_i2v: {more:.0f}"
    hours = {s.model: video_hours(layout, s) for s in layout.settings["tables"].values()}
    expected = more * (video_hours(layout, layout.main) + hours[WAN_I2V])
    assert row["gpu_hours"] == pytest.approx(expected)
    assert row["usd"] == pytest.approx(2.5 * expected)
    assert found.gpu_hours == pytest.approx(expected)
    assert 0.75 <= row["share"] <= 1
    (compared,) = found.comparisons.to_dict("records")
    assert compared["difference"] == 0.69
    assert compared["half_width"] == pytest.approx(1.96 * 3 / row["subject"] ** 0.5, rel=0.15)


def test_a_decided_claim_costs_nothing(study):
    layout = study([{"i2v_subject": "ours > wan_i2v"}], {"ours": 5, "wan_i2v": 0})
    found = price_claims(layout)
    row = first(found)
    assert (row["here"], row["videos"], row["note"]) == (HOLDS, 0, "decided")
    assert found.videos == {} and found.gpu_hours == 0
    assert found.comparisons.empty


def test_a_claim_needs_all_its_comparisons(study):
    """Or most of them."""
    subject, background = {"i2v_subject": "ours > base + 1"}, {"i2v_background": "ours > base + 1"}
    compare = [subject, background, subject | background]
    layout = study(compare, {"ours": 1.9, "base": 0})
    prices = price_claims(layout)
    one, other, both = prices.claims.to_dict("records")
    assert both["subject"] >= one["subject"]
    assert both["background"] >= other["background"]
    assert both["videos"] >= one["videos"] + other["videos"]
    assert np.isnan(both["camera"])
    # together they cost as much as the dearest of each kind
    assert sum(prices.videos.values()) == both["videos"]
    three = {"i2v_subject": ["ours > base + 1", "base < ours - 1", "ours > base + 2"]}
    compare = [{"needs": "most", "compare": three}, {"needs": "all", "compare": three}]
    layout = study(compare, {"ours": 1.9, "base": 0})
    most, every = price_claims(layout).claims.to_dict("records")
    assert (most["expected"], every["expected"]) == (HOLDS, FAILS)


def test_what_no_number_of_videos_decides(study):
    """On the margin, more than the suite has, and a row that the sheet has not."""
    compare = [
        {"i2v_subject": "ours > wan_i2v + 0.69"},
        {"i2v_subject": "ours > wan_i2v + 0.68"},
        {"i2v_subject": "ours > magi_1"},
        {"i2v_subject": "steps_5 > steps_2"},
        {"dynamic_degree": "ours > wan_i2v"},
    ]
    layout = study(compare, {"ours": 0.7, "wan_i2v": 0})
    found = price_claims(layout).claims
    assert found["videos"].isna().all()
    for note, words in zip(
        found["note"],
        (
            "differences lie on the margin",
            "not decided by 246 subject prompts with 1 sample(s) each either",
            "not in the experiments sheet: magi_1",
            "not run, so the variance is not known: steps_5, steps_2",
            "no variance was seen in dynamic_degree",
        ),
        strict=True,
    ):
        assert words in note


def test_published_differences_that_would_have_shown(study):
    """0.69 of scores that differ by 0.5: what was seen, 0.1, takes its place."""
    compare = [{"i2v_subject": "ours > wan_i2v"}]
    layout = study(compare, {"ours": 0.1, "wan_i2v": 0}, deviation=0.5)
    row = first(price_claims(layout))
    assert row["here"] == UNDECIDED
    assert row["differences"] == "seen"
    assert "the published differences would have shown by now" in row["note"]


def test_samples_come_after_prompts(study):
    """With two samples of each prompt it is known what more of them give."""
    compare = [{"i2v_subject": "ours > wan_i2v"}]
    layout = study(
        compare, {"ours": 0.3, "wan_i2v": 0}, deviation=6.5, kinds=(100, 2, 2), samples=2
    )
    row = first(price_claims(layout))
    assert row["subject"] == 246
    assert 2 < row["samples"] <= 5


def test_variance_of_an_earlier_run(study, tmp_path):
    """Which had other prompts, and told of none of its own differences where some are published."""
    compare = [{"i2v_subject": "ours > wan_i2v"}, {"i2v_subject": "ours > base"}]
    rows = {"ours": 2, "wan_i2v": 0, "base": 0}
    study(compare, rows, kinds=(30, 5, 5), folder=tmp_path / "earlier")
    layout = study(compare, {})
    with pytest.raises(FileNotFoundError, match=r"has no scores yet; expected --pilot"):
        price_claims(layout)
    published, seen = price_claims(layout, tmp_path / "earlier").claims.to_dict("records")
    assert (published["here"], seen["here"]) == ("not run", "not run")
    assert (published["differences"], seen["differences"]) == ("published", "seen earlier")
    assert published["variance"] == str(tmp_path / "earlier")
    assert f"variance of {tmp_path / 'earlier'}, by vbench" in seen["note"]
    assert published["subject"] == pytest.approx(WHOLE / 0.69**2, rel=0.35)
    assert published["videos"] == 2 * published["subject"]  # none is there yet


def test_pages(study, tmp_path):
    compare = [{"i2v_subject": "ours > wan_i2v"}, {"i2v_subject": "ours > magi_1"}]
    prices = price_claims(study(compare, {"ours": 0.3, "wan_i2v": 0}, kinds=(40, 2, 2)))
    write_prices(prices, "weight_free", tmp_path / "price.html", "Of two models.")
    for suffix in (".md", ".html"):
        page = (tmp_path / f"price{suffix}").read_text()
        for words in (
            "The price of each claim (weight-free scores, not VBench)",
            "Of two models.",
            "0 of 2 claims are decided; 1 more would be by",
            f"{prices.claims['videos'].iloc[0]:,.0f}",
            "2. Claim 2",
            "not in the experiments sheet: magi_1",
        ):
            assert words in page
    back = pd.read_csv(tmp_path / "price.csv")
    assert back["videos"].tolist()[0] == prices.claims["videos"].iloc[0]


def test_configuration_from_several_files(tmp_path):
    """A later one's keys count; what is wrong is named."""
    over = tmp_path / "over.yaml"
    over.write_text("suite: {subset: {subject: 5, background: 5, camera: 5}}\nresults: elsewhere\n")
    config = read_config_files([ROOT / "config/config.yaml", over])
    assert config.suite.subset.subject == 5
    assert config.suite.source == "vbench"
    assert config.results == "elsewhere"
    with pytest.raises(FileNotFoundError, match=r"none\.yaml does not exist"):
        read_config_files([tmp_path / "none.yaml"])
    over.write_text("- a list")
    with pytest.raises(ValueError, match=r"over.yaml: found list, expected sections and keys"):
        read_config_files([over])
    over.write_text("a: [")
    with pytest.raises(ValueError, match=r"over.yaml: cannot be read as YAML"):
        read_config_files([over])
