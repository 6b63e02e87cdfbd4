import time

import numpy as np
import pandas as pd
import pytest

from pusa.score.arithmetic import METRICS, NAMES, setting_scores
from pusa.score.intervals import (
    FAILS,
    HOLDS,
    UNDECIDED,
    Interval,
    difference_intervals,
    judge,
    score_intervals,
)

pytestmark = pytest.mark.filterwarnings("error")

DIMENSIONS = {
    "subject": (
        "i2v_subject",
        "subject_consistency",
        "motion_smoothness",
        "dynamic_degree",
        "aesthetic_quality",
        "imaging_quality",
    ),
    "background": (
        "i2v_background",
        "background_consistency",
        "aesthetic_quality",
        "imaging_quality",
    ),
    "camera": ("camera_motion",),
}
#: Half, weight and bounds, as the leaderboard has them; written out to be independent.
CONSTANTS = {
    "subject_consistency": ("quality", 1, 0.1462, 1),
    "background_consistency": ("quality", 1, 0.2615, 1),
    "motion_smoothness": ("quality", 1, 0.7060, 0.9975),
    "dynamic_degree": ("quality", 0.5, 0, 1),
    "aesthetic_quality": ("quality", 1, 0, 1),
    "imaging_quality": ("quality", 1, 0, 1),
    "i2v_subject": ("i2v", 1, 0.1462, 1),
    "i2v_background": ("i2v", 1, 0.2615, 1),
    "camera_motion": ("i2v", 0.1, 0, 1),
}


def table(subject=6, background=6, camera=6, *, samples=2, seed=0, frames=(17,), value=None):
    """A score table of random values between 0 and 1, or of one value."""
    rng, rows, index = np.random.default_rng(seed), [], 0
    for kind, count in (("subject", subject), ("background", background), ("camera", camera)):
        for _ in range(count):
            level = rng.uniform(0, 0.5)  # prompts differ
            for sample in range(samples):
                length = int(rng.choice(frames))
                for name in DIMENSIONS[kind]:
                    rows.append(
                        {
                            "file": f"{index:04d}-{sample}.mp4",
                            "index": index,
                            "sample": sample,
                            "kind": kind,
                            "dimension": name,
                            "value": level + rng.uniform(0, 0.5) if value is None else value,
                            "frames": length,
                            "scorer": "vbench",
                        }
                    )
            index += 1
    return pd.DataFrame(rows)


def by_prompt(videos):
    """The values and frames of each prompt by dimension, in the order of the prompts."""
    return [
        {
            name: part[["value", "frames"]].to_numpy(float)
            for name, part in rows.groupby("dimension")
        }
        for _, rows in videos.groupby("index")
    ]


def total_of(prompts):
    """The total of a list of prompts, some of them several times."""
    halves = {"quality": [0.0, 0.0], "i2v": [0.0, 0.0]}
    for name, (half, weight, low, high) in CONSTANTS.items():
        values, frames = np.concatenate([p[name] for p in prompts if name in p]).T
        by_frames = name in ("subject_consistency", "background_consistency")
        mean = np.average(values, weights=frames - 1 if by_frames else None)
        halves[half][0] += weight * (mean - low) / (high - low)
        halves[half][1] += weight
    return 100 * np.mean([part / weight for part, weight in halves.values()])


def assert_interval(found, value, low, high, tolerance):
    assert found.value == pytest.approx(value)
    assert (found.low, found.high) == pytest.approx((low, high), abs=tolerance * (high - low))


# Verdicts


@pytest.mark.parametrize(
    ("margins", "low", "high", "verdict"),
    [
        ({"above": 0.0}, 0.1, 2.0, HOLDS),
        ({"above": 0.0}, -2.0, -0.1, FAILS),
        ({"above": 0.0}, -0.1, 2.0, UNDECIDED),
        ({"above": 0.0}, 0.0, 2.0, UNDECIDED),
        ({"above": -1.0}, -0.9, 0.5, HOLDS),
        ({"above": 1.0}, 0.1, 0.9, FAILS),
        ({"below": 0.0}, -2.0, -0.1, HOLDS),
        ({"below": 0.0}, 0.1, 2.0, FAILS),
        ({"below": 0.5}, -1.0, 0.4, HOLDS),
        ({"below": 0.5}, 0.6, 0.9, FAILS),
        ({"below": 0.5}, 0.4, 0.6, UNDECIDED),
        ({"above": -1.0, "below": 1.0}, -0.9, 0.9, HOLDS),
        ({"above": -1.0, "below": 1.0}, 14.7, 19.4, FAILS),
        ({"above": -1.0, "below": 1.0}, -9.0, -1.1, FAILS),
        ({"above": -1.0, "below": 1.0}, 0.9, 1.1, UNDECIDED),
        ({"above": -1.0, "below": 1.0}, -2.0, 2.0, UNDECIDED),
        ({"above": 0.0}, np.nan, np.nan, UNDECIDED),
        ({"above": -1.0, "below": 1.0}, np.nan, np.nan, UNDECIDED),
    ],
)
def test_verdict(margins, low, high, verdict):
    assert judge(low, high, **margins) == verdict


# Widths


@pytest.mark.parametrize("samples", [1, 4])
def test_mean_of_independent_prompts(samples):
    """1.96 standard errors; samples that repeat their prompt's value make no prompts more."""
    videos = table(2, 2, 400, samples=samples)
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    camera = videos["kind"] == "camera"
    videos.loc[camera, "value"] = np.repeat(values, samples)
    error = 100 * values.std(ddof=1) / 20
    found = score_intervals(videos, ["camera_motion"])["camera_motion"]
    mean = 100 * values.mean()
    assert_interval(found, mean, mean - 1.96 * error, mean + 1.96 * error, 0.03)


def test_difference_of_independent_settings():
    """Variances add where the two sides have nothing in common."""
    before, after = table(2, 2, 400, samples=1), table(2, 2, 400, samples=1, seed=9)
    both = [v.loc[v["kind"] == "camera", "value"].to_numpy() for v in (before, after)]
    error = 100 * np.hypot(*(values.std(ddof=1) for values in both)) / 20
    mean = 100 * (both[1].mean() - both[0].mean())
    found = difference_intervals(before, after, ["camera_motion"])["camera_motion"]
    assert_interval(found, mean, mean - 1.96 * error, mean + 1.96 * error, 0.04)


def test_total_against_the_plainest_bootstrap():
    """Draw prompts, put all their rows together, score; again and again."""
    before = table(5, 4, 7, frames=(5, 17, 33))
    after = table(5, 4, 7, frames=(5, 17, 33), seed=1)
    rng = np.random.default_rng(5)
    sides = by_prompt(before), by_prompt(after)
    kinds = [range(5), range(5, 9), range(9, 16)]
    draws = np.empty((4000, 2))
    for draw in draws:
        prompts = np.concatenate([rng.choice(kind, len(kind)) for kind in kinds])
        draw[:] = [total_of([side[i] for i in prompts]) for side in sides]
    first, second = (total_of(side) for side in sides)
    found = score_intervals(before)["total"]
    assert_interval(found, first, *np.percentile(draws[:, 0], [2.5, 97.5]), 0.05)
    found = difference_intervals(before, after)["total"]
    bounds = np.percentile(draws[:, 1] - draws[:, 0], [2.5, 97.5])
    assert_interval(found, second - first, *bounds, 0.05)


def test_pairing_removes_what_prompts_differ_in():
    before = table()
    after = before.assign(value=before["value"] + 0.01)
    found = difference_intervals(before, after)
    for name in NAMES:
        assert (found[name].value, found[name].low, found[name].high) == pytest.approx((1, 1, 1))


def test_kinds_are_resampled_apart():
    """Between kinds there is all the difference, within them none."""
    videos = table()
    videos["value"] = videos["kind"].map({"subject": 0.25, "background": 0.75, "camera": 0.5})
    found = score_intervals(videos)
    assert found["aesthetic_quality"] == Interval(50.0, 50.0, 50.0)
    assert found["total"].low == found["total"].value == found["total"].high


def test_nothing_differs():
    """The same values in another order of samples sum to other last digits."""
    before = table(samples=5)
    after = before.assign(sample=4 - before["sample"]).iloc[::-1]
    for interval in difference_intervals(before, after).values():
        assert interval == Interval(0.0, 0.0, 0.0)


def test_two_calls_agree():
    assert score_intervals(table()) == score_intervals(table())


def test_a_whole_suite_takes_seconds():
    before, after = table(246, 109, 763, samples=5), table(246, 109, 763, samples=5, seed=1)
    start = time.monotonic()
    found = difference_intervals(before, after)
    assert time.monotonic() - start < 15  # it takes one or two; resampling rows takes minutes
    assert tuple(found) == METRICS


# What is known of few prompts


def test_a_prompt_alone_says_nothing_of_others():
    found = score_intervals(table(subject=1))
    unknown = {name for name, interval in found.items() if np.isnan(interval.low)}
    assert unknown == {"total", "i2v", "quality", *DIMENSIONS["subject"]}
    assert all(np.isnan(found[name].high) for name in unknown)
    for name, value in setting_scores(table(subject=1)).items():
        assert found[name].value == pytest.approx(value)
    # Five prompts resampled, whatever the lone one is: the camera's interval is as without it.
    assert found["camera_motion"].low < found["camera_motion"].value < found["camera_motion"].high


def test_one_prompt_of_each_kind():
    for interval in score_intervals(table(1, 1, 1)).values():
        assert np.isfinite(interval.value)
        assert np.isnan([interval.low, interval.high]).all()


# Measures


def test_measures_beside_the_nine():
    videos = table()
    psnr = videos.drop_duplicates("file").assign(dimension="reference_psnr")
    psnr["value"] = 20 + psnr["value"]
    both = pd.concat([videos, psnr])
    found = score_intervals(both, ["reference_psnr", "total"])
    assert tuple(found) == ("reference_psnr", "total")
    assert found["reference_psnr"].value == pytest.approx(psnr["value"].mean())  # dB
    assert 20 < found["reference_psnr"].low < found["reference_psnr"].high < 21
    assert found["total"].value == pytest.approx(total_of(by_prompt(videos)))


def test_only_what_is_asked_for_is_needed():
    camera = table()[lambda t: t["kind"] == "camera"]
    assert tuple(score_intervals(camera, ["camera_motion"])) == ("camera_motion",)
    with pytest.raises(ValueError, match="scores lack"):
        score_intervals(camera, ["total"])


# Pairs


def test_settings_of_different_videos_are_not_compared():
    before, after = table(), table(seed=1)
    message = r"2 are on one side only, such as subject prompt 3, sample 1 \(before\)"
    kept = after[(after["index"] != 3) | (after["sample"] != 1)]
    kept = kept[(kept["index"] != 4) | (kept["sample"] != 0)]
    with pytest.raises(ValueError, match=message):
        difference_intervals(before, kept)


def test_scorers_are_not_mixed():
    before, after = table(), table().assign(scorer="weight_free")
    with pytest.raises(ValueError, match="scores of vbench and weight_free cannot be compared"):
        difference_intervals(before, after)
