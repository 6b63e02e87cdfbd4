"""A study: the experiments sheet, and the scores of the settings that its rows ask for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from pusa.data.suite import choose_subset
from pusa.experiments import AS_THEY_ARE, Setting, read_experiments
from pusa.score.arithmetic import METRICS, NAMES, check_complete
from pusa.score.files import check_alike, read_record, read_scores
from pusa.score.intervals import Interval, difference_intervals

#: What a title says of numbers that are not VBench's.
NOT_VBENCH = "weight-free scores, not VBench"


@dataclass(frozen=True)
class Study:
    """The sheet with the scores of its settings, from which tables, claims and effects come."""

    #: From `pusa.experiments.read_experiments`.
    experiments: pd.DataFrame
    #: Score tables (`pusa.score.files`); settings that were not run may be missing.
    scores: dict[Setting, pd.DataFrame]
    #: Prompts of each kind that the sheet's ``subset`` stands for; None for all.
    subset: dict[str, int] | None

    @property
    def scorer(self) -> str:
        """What scored all settings, ``vbench`` or ``weight_free``; empty if none was run.

        Raises:
            ValueError: if they were not all scored by the same.
        """
        found = {
            scorer: setting.name
            for setting, videos in self.scores.items()
            for scorer in videos["scorer"].unique()
        }
        if len(found) > 1:
            examples = ", ".join(f"{found[scorer]} by {scorer}" for scorer in sorted(found))
            raise ValueError(f"settings are scored differently: {examples}; expected one scorer")
        return next(iter(found), "")

    def videos(self, row: dict) -> pd.DataFrame | None:
        """The score table of a row of the sheet on its prompts; None if it was not run."""
        videos = self.scores.get(row["setting"])
        if videos is None or row["prompts"] == "all":
            return videos
        try:
            return restrict(videos, self.subset)
        except ValueError as error:
            raise ValueError(f"scores of {row['setting'].name}: {error}") from None

    def pairs(self, before: dict, after: dict) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
        """Score tables of two rows of the sheet, on the prompts that both ask for.

        Returns:
            A pair for every training seed of which there are scores of both, none if one was not
            run. What was not trained stands beside each.
        """
        prompts = "subset" if "subset" in (before["prompts"], after["prompts"]) else "all"
        seeds = {setting.seed: None for setting in self.scores if setting.seed is not None}
        pairs = dict.fromkeys(
            tuple(_with_seed(row["setting"], seed) for row in (before, after))
            for seed in seeds or [None]
        )
        return [
            tuple(self.videos({"setting": setting, "prompts": prompts}) for setting in pair)
            for pair in pairs
            if self.scores.keys() >= set(pair)
        ]

    def pool(self, before: dict, after: dict) -> tuple[pd.DataFrame, pd.DataFrame] | None:
        """Score tables of two rows of the sheet, on the prompts that both ask for.

        Returns:
            The two, with several training seeds as more samples of the same prompts; None if one of
            the rows was not run.
        """
        pairs = self.pairs(before, after)
        if not pairs:
            return None
        samples = 1 + max(videos["sample"].max() for pair in pairs for videos in pair)
        return tuple(
            pd.concat(v.assign(sample=v["sample"] + i * samples) for i, v in enumerate(side))
            for side in zip(*pairs, strict=True)
        )

    def differences(
        self, before: dict, after: dict, measures: Sequence[str] = METRICS
    ) -> dict[str, Interval] | None:
        """``after - before`` of two rows of the sheet, on the prompts that both ask for.

        Returns:
            `difference_intervals` by measure, in per cent; None if one of the rows was not run.
            Several training seeds count as more samples of the same prompts.
        """
        pooled = self.pool(before, after)
        return pooled and difference_intervals(*pooled, measures)


def read_study(
    sheet: str | Path,
    folder: str | Path,
    *,
    seeds: Sequence[int | None],
    subset: dict[str, int] | None,
) -> Study:
    """Read the experiments sheet and the score files of its settings, as far as they were run.

    Args:
        folder: holds the score file ``<setting name>.csv`` of each setting.
        seeds: training seeds of every LoRA of the sheet; None for a released one.
        subset: prompts of each kind that the sheet's ``subset`` stands for; None for all.

    Raises:
        FileNotFoundError: if the sheet, the folder or all score files are missing.
        ValueError: as `read_experiments` and `read_scores`; if a file lacks a score, if files were
            not made alike, or if rows ask for a subset and none is given.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder of scores {folder} does not exist")
    experiments = read_experiments(sheet, seed=seeds[0])
    if subset is None and (experiments["prompts"] == "subset").any():
        raise ValueError(
            f"{sheet} has rows on a subset of the prompts, but no numbers of subject, background "
            "and camera prompts are given"
        )
    settings = dict.fromkeys(_with_seed(s, seed) for s in experiments["setting"] for seed in seeds)
    files = {setting: folder / f"{setting.name}.csv" for setting in settings}
    scores, records = {}, {}
    for setting, file in files.items():
        if not file.exists():
            continue
        scores[setting] = read_scores(file)
        records[str(file)] = read_record(file)
        try:
            check_complete(scores[setting], NAMES)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    if not scores:
        wanted = ", ".join(file.name for file in list(files.values())[:3])
        raise FileNotFoundError(
            f"{folder} has no score file of the sheet's settings; expected such as {wanted}"
        )
    trained = {setting for setting in settings if setting.model not in AS_THEY_ARE}
    if not trained & scores.keys() and (others := sorted(folder.glob("*-seed*.csv"))):
        raise ValueError(
            f"{folder} has no scores of training seed {', '.join(map(str, seeds))}, but such as "
            f"{others[0].name}; expected its seed"
        )
    check_alike(records)
    return Study(experiments, scores, subset)


def _with_seed(setting: Setting, seed: int | None) -> Setting:
    return setting if setting.seed is None else replace(setting, seed=seed)


def restrict(videos: pd.DataFrame, counts: dict[str, int] | None) -> pd.DataFrame:
    """The rows of a subset of the prompts, by `choose_subset`; all if ``counts`` is None.

    Args:
        videos: per-video values with the columns ``index`` and ``kind``, of all prompts or of
            the subset alone.
    """
    if counts is None:
        return videos
    prompts = videos.drop_duplicates("index").sort_values("index")
    chosen = choose_subset(list(prompts["kind"]), counts)
    return videos[videos["index"].isin(prompts["index"].iloc[chosen])]
