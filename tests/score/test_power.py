import numpy as np
import pandas as pd
import pytest

from pusa.score import power
from pusa.score.arithmetic import METRICS, setting_scores
from pusa.score.intervals import difference_intervals
from pusa.score.power import deviations, find_smallest, pair_videos, simulate_intervals
from tests.scores import score_table


def noisy(seed, counts, *, samples=1, spread=0.1, within=0.0):
    """Scores that vary with the prompt, and with the sample."""
    rng = np.random.default_rng(seed)
    n = sum(counts)
    of_prompt, of_sample = rng.normal(0, spread, n), rng.normal(0, within, (n, samples))
    return score_table(
        lambda i, s, name: 0.5 + of_prompt[i] + of_sample[i, s], counts=counts, samples=samples
    )


def needed_prompts(before, after, difference, *, samples=1):
    """Subject prompts that show a difference of i2v_subject, in points."""
    sides = pair_videos(before, after, ["i2v_subject"])

    def decided(n):
        counts = {"subject": round(n)}
        low, _ = simulate_intervals(deviations(sides, ["i2v_subject"], counts), counts, samples)
        return (low + difference > 0).mean()

    return find_smallest(decided, 2, 5000)[0]


@pytest.mark.parametrize("difference", [0.5, 1.0, 2.0])
def test_a_quarter_foretells_what_the_whole_needs(difference):
    """Normal differences of known variance: 80 % of the means are 1.96 + 0.84 errors above 0."""
    deviation = 5.0  # points
    whole = ((1.96 + 0.8416) * deviation / difference) ** 2
    pilot = round(whole / 4)
    rng = np.random.default_rng(0)
    # Of exactly the known variance: how well it is guessed is not the question.
    noise = rng.standard_normal(pilot)
    noise = (noise - noise.mean()) / noise.std(ddof=1) * deviation / 100
    before = score_table(0.4, counts=(pilot, 0, 0))
    after = score_table(lambda i, s, name: 0.4 + noise[i], counts=(pilot, 0, 0))
    assert needed_prompts(before, after, difference) == pytest.approx(whole, rel=0.25)


def test_a_whole_study_agrees_with_the_pilots_prediction(monkeypatch):
    """The bootstrap of tables, on fresh studies of the size that a pilot asked for."""
    monkeypatch.setattr("pusa.score.intervals.RESAMPLES", 2000)
    counts = (30, 0, 0)
    n = needed_prompts(score_table(0.5, counts=counts), noisy(1, counts), 3.0)
    size = (round(n), 0, 0)
    won = 0
    for seed in range(60):
        after = noisy(100 + seed, size).eval("value = value + 0.03")
        found = difference_intervals(score_table(0.5, counts=size), after, ["i2v_subject"])
        won += found["i2v_subject"].low > 0
    assert 0.6 < won / 60 < 0.95


def test_more_samples_narrow_what_differs_between_them():
    """Half the variance of a prompt's mean of two samples is theirs."""
    counts = (400, 0, 0)
    before = score_table(0.5, counts=counts, samples=2)
    after = noisy(0, counts, samples=2, spread=0.05, within=0.05 * 2**0.5)
    found = {n: needed_prompts(before, after, 1.0, samples=n) for n in (1, 2, 8)}
    assert found[1] / found[2] == pytest.approx(3 / 2, rel=0.2)
    assert found[8] / found[2] == pytest.approx(1.25 / 2, rel=0.2)
    one = [v[v["sample"] == 0] for v in (before, after)]
    assert needed_prompts(*one, 1.0, samples=8) == needed_prompts(*one, 1.0, samples=1)


@pytest.mark.parametrize("measure", ["total", "quality", "imaging_quality", "camera_motion"])
def test_deviations_are_those_of_the_arithmetic(measure):
    """A study in which one prompt takes the place of all of its kind; and one as it is."""
    counts = {"subject": 4, "background": 3, "camera": 2}
    before, after = (noisy(seed, tuple(counts.values())) for seed in (0, 1))
    apart = deviations(pair_videos(before, after, METRICS), [measure], counts)
    observed = setting_scores(after)[measure] - setting_scores(before)[measure]
    for kind, index, sample in apart.index:
        moved = []
        for videos in (before, after):
            same = videos["kind"] == kind
            like = videos[videos["index"] == index].set_index("dimension")["value"]
            value = videos["value"].where(~same, videos["dimension"].map(like))
            moved.append(setting_scores(videos.assign(value=value))[measure])
        expected = moved[1] - moved[0] - observed
        assert apart.loc[(kind, index, sample), measure] == pytest.approx(expected)


def test_intervals_are_those_of_tables():
    """As wide as the bootstrap's own, of a study of the pilot's prompts."""
    counts = {"subject": 60, "background": 40, "camera": 50}
    before, after = (noisy(seed, tuple(counts.values())) for seed in (0, 1))
    for measure in ("total", "i2v_background"):
        apart = deviations(pair_videos(before, after, METRICS), [measure], counts)
        low, high = simulate_intervals(apart, counts, 1)
        interval = difference_intervals(before, after)[measure]
        assert (high - low).mean() == pytest.approx(interval.high - interval.low, rel=0.07)


def test_pairs_are_of_what_both_sides_have():
    many, few = noisy(0, (5, 2, 2), samples=2), noisy(1, (5, 2, 2))
    few = few[few["index"] != 3]
    (value, weight), _ = pair_videos(many, few, ["i2v_subject"])
    assert value.index.get_level_values("index").tolist() == [0, 1, 2, 4]
    assert set(value.index.get_level_values("sample")) == {0}
    assert (weight == 1).all(axis=None)
    with pytest.raises(ValueError, match="no prompt and sample in common"):
        pair_videos(many, few.assign(index=few["index"] + 100), ["i2v_subject"])


def test_a_single_prompt_says_nothing():
    videos = noisy(0, (1, 2, 2))
    counts = {"subject": 5, "background": 5, "camera": 5}
    apart = deviations(pair_videos(videos, videos, ["i2v_subject"]), ["i2v_subject"], counts)
    with pytest.raises(ValueError, match="a single subject prompt"):
        simulate_intervals(apart, counts, 1)


@pytest.mark.parametrize("needed", [2, 3, 77, 1000])
def test_smallest(needed):
    size, share = find_smallest(lambda n: float(n >= needed), 2, 1000)
    assert needed <= size <= max(needed * power.PRECISION, 2)
    assert share == 1
    assert find_smallest(lambda n: min(n / 2000, 0.5), 2, 1000) == (None, 0.5)


def test_same_answer_every_time():
    counts = {"subject": 20}
    videos = noisy(0, (10, 0, 0)), noisy(1, (10, 0, 0))
    apart = deviations(pair_videos(*videos, ["i2v_subject"]), ["i2v_subject"], counts)
    ends = [pd.DataFrame(simulate_intervals(apart, counts, 1)[0]) for _ in range(2)]
    pd.testing.assert_frame_equal(*ends)
