"""The price of each claim: how many more videos would decide it, by the scores seen so far.

A claim that the scores at hand leave open is decided by more prompts, up to all of the suite, and
then by more samples of each. How many is found by simulating larger studies of the same sort
(`pusa.score.power`). The differences that they have are those of the published tables where the
scores are VBench's and both rows are published as single numbers, and else those seen so far: a
published difference means nothing on another scale. A difference that was seen is uncertain itself,
and a price by it a guess, to be made again after the next step. So are published differences that a
study of this size would have shown, and this one did not: those seen take their place.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd

from pusa.data.suite import KINDS
from pusa.experiments import Setting
from pusa.layout import Layout
from pusa.report.claims import Claim, Claims, evaluate_claims, read_claims
from pusa.report.page import Number, write_page
from pusa.report.plan import video_hours
from pusa.report.study import NOT_VBENCH, Study, read_study
from pusa.report.tables import read_published
from pusa.score.arithmetic import needed_dimensions, setting_scores
from pusa.score.intervals import DECIMALS, FAILS, HOLDS, UNDECIDED
from pusa.score.power import (
    POWER,
    PRECISION,
    VIDEO,
    deviations,
    find_smallest,
    pair_videos,
    simulate_intervals,
)
from pusa.tiny.dataset import BACKGROUNDS

#: Of each kind; with fewer the bootstrap's intervals are too narrow.
LEAST_PROMPTS = 10
#: Looked at of a suite that is rendered with as many prompts as are asked for.
MOST_PROMPTS = 2000
#: VBench's own number.
MOST_SAMPLES = 5
HERE = "this run"
PUBLISHED_DIFFERENCE = "published"
TITLE = "The price of each claim"

COLUMNS = (
    *("number", "claim", "source", "here", "expected", "differences", "variance", "share"),
    *(*KINDS, "samples", "videos", "rows", "settings"),
    *("gpu_hours", "usd", "note"),
)
COMPARED = ("number", "column", "comparison", "difference", "taken", "half_width", "share")


@dataclass(frozen=True)
class Prices:
    """What would decide the claims."""

    #: One row per claim, `COLUMNS`: the verdict ``here``; the verdict that is ``expected`` at the
    #: ``differences`` (published or seen) by the ``variance`` of a run; the ``share`` of simulated
    #: studies that come to it, in a study of so many ``subject, background, camera`` prompts, of
    #: the kinds that count, with ``samples`` each; more ``videos`` that takes, of which ``rows`` of
    #: the claims file and so ``settings``, and what sampling these costs; and in words what else
    #: there is to say.
    claims: pd.DataFrame
    #: One row per comparison of the claims that were simulated, `COMPARED`: the ``difference`` that
    #: is assumed and where it was ``taken`` from; in a study of the size of its claim the
    #: ``half_width`` of its interval, and the ``share`` of studies that decide it.
    comparisons: pd.DataFrame
    #: More videos of each setting, by its name, for all claims that have a price.
    videos: dict[str, int]
    gpu_hours: float  # of these; NaN where the plan does not know them
    usd: float


@dataclass(frozen=True)
class _Pilot:
    """Scores that tell how much prompts differ: of this run, or of an earlier one."""

    name: str
    study: Study

    def pairs(self, claims: Claims, claim: Claim) -> dict[tuple[str, str], tuple] | None:
        """Score tables of the right and left row of all comparisons; None if one was not run.

        All are on the videos that all of them have.
        """
        pairs = {}
        for _, c in claim.comparisons:
            rows = [claims.find(name, self.study.experiments) for name in (c.right, c.left)]
            pooled = None if None in rows else self.study.pool(*rows)
            if pooled is None:
                return None
            pairs[c.left, c.right] = pooled
        tables = [videos for pair in pairs.values() for videos in pair]
        shared = tables[0][VIDEO].drop_duplicates()
        for videos in tables[1:]:
            shared = shared.merge(videos[VIDEO].drop_duplicates())
        if shared.empty:
            raise ValueError(f"settings of {self.name} have no prompt and sample in common")
        return {names: tuple(v.merge(shared) for v in pair) for names, pair in pairs.items()}


@dataclass(frozen=True)
class _Sizes:
    """Studies of rising size, from few prompts to the whole suite and then to more samples.

    A size is a number of prompts, in the proportions of the configured ones; of a kind that is
    exhausted no more come. Sizes beyond `whole` have as many times the samples.
    """

    configured: dict[str, int]  # prompts of each kind that counts
    limit: dict[str, int]
    samples: int  # of each prompt, until the suite is exhausted

    @property
    def whole(self) -> float:
        share = max(self.limit[kind] / n for kind, n in self.configured.items())
        return share * sum(self.configured.values())

    @property
    def least(self) -> float:
        return LEAST_PROMPTS / min(self.configured.values()) * sum(self.configured.values())

    def study(self, size: float) -> tuple[dict[str, int], int]:
        """Prompts of each kind, and samples of each."""
        share = size / sum(self.configured.values()) * (1 - 1e-9)  # of 50.000000001 it makes 50
        counts = {k: min(self.limit[k], ceil(n * share)) for k, n in self.configured.items()}
        return counts, ceil(self.samples * max(1.0, size / self.whole * (1 - 1e-9)))


@dataclass(frozen=True)
class _Outcome:
    share: float  # of the studies that are decided as expected
    shares: np.ndarray  # likewise of each comparison
    half_widths: np.ndarray


class _Simulation:
    """Studies of any size in which a claim's differences are as assumed."""

    def __init__(self, claim: Claim, pairs: Mapping, differences: np.ndarray):
        self.claim = claim
        self.comparisons = claim.comparisons
        self.differences = differences
        self.single = [
            c.judge(d, d) for (_, c), d in zip(claim.comparisons, differences, strict=True)
        ]
        self.expected = claim.judge(self.single)
        self.places = {  # of a pair's comparisons, by their column
            names: {n: v for n, (v, c) in enumerate(self.comparisons) if (c.left, c.right) == names}
            for names in pairs
        }
        self.sides = {
            names: pair_videos(*pair, [*self.places[names].values()])
            for names, pair in pairs.items()
        }

    def apart(self, counts: Mapping[str, int]) -> pd.DataFrame:
        """Deviations of `pusa.score.power.deviations`, a column for each comparison."""
        tables = []
        for names, places in self.places.items():
            columns = [*places.values()]
            found = deviations(self.sides[names], [*dict.fromkeys(columns)], counts)
            tables.append(found[columns].set_axis([*places], axis=1))
        return pd.concat(tables, axis=1).fillna(0.0).sort_index(axis=1)

    def run(self, counts: Mapping[str, int], samples: int) -> _Outcome:
        """Studies of one size."""
        low, high = simulate_intervals(self.apart(counts), counts, samples)
        width = np.median(high - low, axis=0) / 2
        low, high = low + self.differences, high + self.differences
        above, below = np.array([(c.above, c.below) for _, c in self.comparisons]).T
        known = width > 0  # scores that are all alike do not tell how much others would differ
        holds = known & (low > above) & (high < below)
        fails = known & ((high < above) | (low > below))
        shares = np.where([v == HOLDS for v in self.single], holds, fails).mean(axis=0)
        needed = self.claim.needed(len(self.comparisons))
        if self.expected == HOLDS:
            decided = holds.sum(axis=1) >= needed
        else:
            decided = fails.sum(axis=1) > len(self.comparisons) - needed
        return _Outcome(float(decided.mean()), shares, width)

    def compare(self, outcome: _Outcome, taken: list[str]) -> list[dict]:
        """A row of `COMPARED` for each comparison, but for the number of the claim."""
        columns = (self.comparisons, self.differences, taken, outcome.half_widths, outcome.shares)
        return [
            {"column": column, "comparison": str(c), "difference": difference, "taken": source}
            | {"half_width": width, "share": share}
            for (column, c), difference, source, width, share in zip(*columns, strict=True)
        ]


def _sizes(layout: Layout, rows: Iterable[dict], kinds: Iterable[str], samples: int) -> _Sizes:
    """Sizes of studies of some rows of the sheet, on prompts of some kinds."""
    subset = any(row["prompts"] == "subset" for row in rows)
    prompts = layout.prompts["subset" if subset else "all"]
    configured = {kind: n for kind, n in prompts.items() if kind in kinds}
    limit = layout.prompts["all"]
    if layout.config.suite.source == "tiny":  # it renders as many as are asked for
        share = MOST_PROMPTS / sum(configured.values())
        limit = {kind: ceil(n * share) for kind, n in configured.items()}
        limit["background"] = min(limit.get("background", 0), BACKGROUNDS)
    return _Sizes(configured, limit, samples)


def price_claims(
    layout: Layout, pilot: str | Path | None = None, pilot_sheet: str | Path | None = None
) -> Prices:
    """Price every claim of ``config/claims.yaml`` for a configuration.

    Args:
        pilot: folder with the score file of each setting of an earlier run, whose variance is
            taken for claims of which this run lacks scores.
        pilot_sheet: its experiments sheet, if it had another; its rows are found as this run's are,
            by the claims file.

    Raises:
        FileNotFoundError: if there are no scores at all.
        ValueError: as `pusa.report.study.read_study`.
    """
    claims, sheet = read_claims(layout.claims), layout.config.experiments
    seed = layout.config.train.seed if layout.config.is_trained else None
    folder, subset = Path(layout.path("scores", "tables")), layout.subset("tables")
    study = Study(layout.experiments, {}, subset)
    if any(folder.glob("*.csv")):
        study = read_study(sheet, folder, seeds=[seed], subset=subset)
    elif pilot is None:
        raise FileNotFoundError(
            f"{folder} has no scores yet; expected --pilot, the folder of an earlier run's scores, "
            "whose variance is taken"
        )
    pilots = [_Pilot(HERE, study)]
    if pilot is not None:
        # Whatever prompts it had: those that two settings share are compared.
        earlier = read_study(pilot_sheet or sheet, pilot, seeds=[seed], subset={})
        pilots.append(_Pilot(str(pilot), Study(earlier.experiments, earlier.scores, None)))

    published = [read_published(layout.published[number]) for number in (1, 2)]
    evaluated = evaluate_claims(claims, *published, study)
    priced, compared, videos = [], [], {}
    for number, claim in enumerate(claims.claims, start=1):
        found = evaluated[evaluated["number"] == number]
        price, comparisons, wanted = _price(claims, claim, found, layout, pilots)
        about = {"number": number, "claim": claim.claim, "source": claim.source}
        priced.append(about | {"here": found["claim_here"].iloc[0]} | price)
        compared += [{"number": number} | row for row in comparisons]
        for setting, more in wanted.items():
            before = videos.setdefault(setting, {})
            before |= {kind: max(n, before.get(kind, 0)) for kind, n in more.items()}
    totals = {setting: sum(more.values()) for setting, more in videos.items()}
    return Prices(
        pd.DataFrame(priced, columns=COLUMNS),
        pd.DataFrame(compared, columns=COMPARED),
        {setting.name: n for setting, n in totals.items()},
        *_cost(layout, totals),
    )


def _price(
    claims: Claims, claim: Claim, found: pd.DataFrame, layout: Layout, pilots: list[_Pilot]
) -> tuple[dict, list[dict], dict[Setting, dict[str, int]]]:
    """A claim's price, its comparisons, and more videos of each setting by their prompts' kind."""
    study = pilots[0].study
    if found["claim_here"].iloc[0] in (HOLDS, FAILS):
        return {"videos": 0, "gpu_hours": 0.0, "note": "decided"}, [], {}
    names = dict.fromkeys(n for _, c in claim.comparisons for n in (c.left, c.right))
    rows = {name: claims.find(name, study.experiments) for name in names}
    if missing := [name for name, row in rows.items() if row is None]:
        return {"note": f"not in the experiments sheet: {_few(missing)}"}, [], {}
    known = ((p, p.pairs(claims, claim)) for p in pilots)
    pilot, pairs = next(((p, pairs) for p, pairs in known if pairs), (None, None))
    if pilot is None:
        lacking = [name for name, row in rows.items() if study.videos(row) is None]
        return {"note": f"not run, so the variance is not known: {_few(lacking)}"}, [], {}

    videos = next(iter(pairs.values()))[0]
    used = needed_dimensions([column for column, _ in claim.comparisons])
    kinds = set(videos.loc[videos["dimension"].isin(used), "kind"])
    samples = max((v["sample"].nunique() for v in study.scores.values()), default=1)
    sizes = _sizes(layout, rows.values(), kinds, samples)
    at_hand = 0.0
    if pilot.name == HERE:
        at_hand = sum(n for kind, n in _count(videos).items() if kind in kinds) / samples
    simulation, taken, notes = _simulate(claim, found, layout, pilot, pairs, sizes, at_hand)
    told = {
        "expected": simulation.expected,
        "differences": " and ".join(dict.fromkeys(taken)),
        "variance": pilot.name,
    }
    if simulation.expected == UNDECIDED:
        notes.append("differences lie on the margin, which no number of videos decides")
        return told | {"note": "; ".join(notes)}, [], {}

    several = videos["sample"].nunique() > 1
    most = sizes.whole * (max(1.0, MOST_SAMPLES / samples) if several else 1.0)
    least = min(max(sizes.least, PRECISION * at_hand), most)
    size, _ = find_smallest(lambda n: simulation.run(*sizes.study(n)).share, least, most)
    counts, samples = sizes.study(size or most)
    outcome = simulation.run(counts, samples)
    compared = simulation.compare(outcome, taken)
    told["share"] = outcome.share
    if constant := dict.fromkeys(row["column"] for row in compared if row["half_width"] == 0):
        notes.append(f"no variance was seen in {_few([*constant])}, which is left open")
    more = {}
    for name, row in rows.items():
        have = _count(study.videos(row))
        lacking = {kind: n * samples - have.get(kind, 0) for kind, n in counts.items()}
        if lacking := {kind: n for kind, n in lacking.items() if n > 0}:
            more[name] = lacking
    if size is None or not more:
        prompts = " + ".join(f"{n:,} {kind}" for kind, n in counts.items())
        notes.append(
            f"not decided by {prompts} prompts with {samples} sample(s) each either, but in "
            f"{outcome.share:.0%} of studies"
        )
        notes += [] if several else ["one sample of each does not tell what more would do"]
        return told | {"note": "; ".join(notes)}, compared, {}
    wanted = {rows[name]["setting"]: lacking for name, lacking in more.items()}
    totals = {setting: sum(lacking.values()) for setting, lacking in wanted.items()}
    hours, usd = _cost(layout, totals)
    told |= counts | {"samples": samples, "videos": sum(totals.values())}
    told["rows"] = "; ".join(f"{name}: {sum(n.values())}" for name, n in more.items())
    told["settings"] = "; ".join(f"{setting.name}: {n}" for setting, n in totals.items())
    return told | {"gpu_hours": hours, "usd": usd, "note": "; ".join(notes)}, compared, wanted


def _count(videos: pd.DataFrame | None) -> dict[str, int]:
    """Videos of each kind in a score table; none without one."""
    if videos is None:
        return {}
    return videos[VIDEO].drop_duplicates()["kind"].value_counts().to_dict()


def _simulate(
    claim: Claim,
    found: pd.DataFrame,
    layout: Layout,
    pilot: _Pilot,
    pairs: Mapping,
    sizes: _Sizes,
    at_hand: float,
) -> tuple[_Simulation, list[str], list[str]]:
    """A claim's simulation, where its differences are taken from, and what is to be noted."""
    notes, seen = [], "seen"
    if pilot.name != HERE:
        notes, seen = [f"variance of {pilot.name}, by {pilot.study.scorer}"], "seen earlier"
    use_published = layout.config.score.scorer == "vbench"
    differences, taken = _assume(claim, found, pairs, use_published, seen)
    simulation = _Simulation(claim, pairs, differences)
    foretold = PUBLISHED_DIFFERENCE in taken and simulation.expected != UNDECIDED
    if at_hand and foretold and simulation.run(*sizes.study(at_hand)).share >= POWER:
        notes.append("the published differences would have shown by now")
        differences, taken = _assume(claim, found, pairs, False, seen)
        simulation = _Simulation(claim, pairs, differences)
    return simulation, taken, notes


def _assume(
    claim: Claim, found: pd.DataFrame, pairs: Mapping, use_published: bool, seen: str
) -> tuple[np.ndarray, list[str]]:
    """The difference of each comparison that is taken to be true, and where it is from.

    Args:
        seen: what a difference that was seen is called.
    """
    differences, taken = [], []
    for (column, c), row in zip(claim.comparisons, found.to_dict("records"), strict=True):
        ends = [row[f"published_{side}_{end}"] for side in ("left", "right") for end in _ENDS]
        if use_published and ends[0] == ends[1] and ends[2] == ends[3]:  # none is NaN
            # As many decimals as are printed.
            differences.append(round(ends[0] - ends[2], 2))
            taken.append(PUBLISHED_DIFFERENCE)
        else:
            right, left = (setting_scores(v, [column])[column] for v in pairs[c.left, c.right])
            differences.append(round(left - right, DECIMALS))
            taken.append(seen)
    return np.array(differences), taken


_ENDS = ("low", "high")


def _cost(layout: Layout, videos: Mapping[Setting, int]) -> tuple[float, float]:
    """GPU-hours and dollars of sampling, NaN where the plan does not know them."""
    hours = [video_hours(layout, setting) for setting in videos]
    if None in hours:
        return np.nan, np.nan
    total = sum(hour * n for hour, n in zip(hours, videos.values(), strict=True))
    price = layout.config.cost.usd_per_gpu_hour
    return total, np.nan if price is None else total * price


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def write_prices(prices: Prices, scorer: str, out: Path, scale: str) -> None:
    """Write the prices to ``out`` with the suffixes .csv, .md and .html.

    Args:
        scorer: of the configuration.
        scale: sentences on what was run: model, prompts, samples.
    """
    table = prices.claims
    table.to_csv(out.with_suffix(".csv"), index=False)
    title = f"{TITLE} ({NOT_VBENCH})" if scorer == "weight_free" else TITLE
    intro = (
        f"{scale} What would decide the claims that these scores leave open: studies with more "
        "prompts, in the proportions of the configured ones, are drawn from the prompts seen so "
        f"far, and the least is told of which {POWER:.0%} come to the expected verdict by their "
        "95 % bootstrap intervals. Differences are taken as published, or as seen so far where "
        "none is published as a single number or scores are not VBench's; a price by a difference "
        "that was seen is a guess, to be made again after each step. GPU-hours are the plan's, of "
        f"sampling alone. {describe_prices(prices)}"
    ).strip()
    claims = pd.DataFrame(
        {
            "claim": f"{row['number']}. {row['claim']}",
            "here": row["here"],
            "expected": row["expected"],
            "differences": row["differences"],
            "prompts x samples": _size(row),
            "more videos": _number(row["videos"], "{:,.0f}"),
            "of": _rows(row["rows"]),
            "GPU-hours": _number(row["gpu_hours"], "{:,.1f}"),
            "USD": _number(row["usd"], "{:,.0f}"),
            "note": row["note"],
        }
        for row in table.fillna({"expected": "", "differences": "", "rows": ""}).to_dict("records")
    )
    names = prices.comparisons["number"].astype(str)
    firsts = ~prices.comparisons["number"].duplicated()
    comparisons = pd.DataFrame(
        {
            "claim": names.where(firsts, ""),
            **prices.comparisons[["column", "comparison"]],
            "difference": [_number(d, "{:+.2f}") for d in prices.comparisons["difference"]],
            "taken": prices.comparisons["taken"],
            "+-": [_number(w, "{:.2f}") for w in prices.comparisons["half_width"]],
            "decided": [_number(s, "{:.0%}") for s in prices.comparisons["share"]],
        }
    )
    text = (
        "In a study of the size that the claim needs, or of the largest: half the width of the "
        "interval, and the share of simulated studies in which it decides."
    )
    sections = [("", intro, claims)]
    sections += [("Comparisons", text, comparisons)] if len(comparisons) else []
    write_page(title, sections, out)


def describe_prices(prices: Prices) -> str:
    """How many claims are decided, and what all that have a price cost together."""
    table = prices.claims
    decided = (table["videos"] == 0).sum()
    priced = (table["videos"] > 0).sum()
    told = f"{decided} of {len(table)} claims are decided"
    if not priced:
        return f"{told}."
    cost = "" if np.isnan(prices.gpu_hours) else f", {prices.gpu_hours:,.1f} GPU-hours"
    cost += "" if np.isnan(prices.usd) else f" or ${prices.usd:,.0f}"
    return (
        f"{told}; {priced} more would be by {sum(prices.videos.values()):,} more videos of "
        f"{len(prices.videos)} settings{cost}."
    )


def _number(value: float, text: str) -> Number | str:
    return "" if pd.isna(value) else Number(text.format(value))


def _size(row: dict) -> str:
    if pd.isna(row["samples"]):
        return ""
    prompts = {kind: row[kind] for kind in KINDS if not pd.isna(row[kind])}
    told = " + ".join(f"{n:,.0f} {kind}" for kind, n in prompts.items())
    return f"{told} x {row['samples']:.0f}"


def _rows(text: str) -> str:
    rows = text.split("; ")
    return text if len(rows) <= 3 else f"{len(rows)} rows"
