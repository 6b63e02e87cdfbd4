"""A study: the experiments sheet, and the scores of the settings that its rows ask for."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pusa.data.suite import choose_subset
from pusa.experiments import Setting, read_experiments, settings_over_seeds, unique_settings
from pusa.score.arithmetic import dimension_scores
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
    #: Take what there is of settings that lack videos or dimensions, without a total.
    allow_partial: bool = False

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

    def differences(self, before: dict, after: dict) -> dict[str, Interval] | None:
        """``after - before`` of two rows of the sheet, on the prompts that both ask for.

        Returns:
            `difference_intervals` by metric, in per cent; None if one of the rows was not run.
        """
        prompts = "subset" if "subset" in (before["prompts"], after["prompts"]) else "all"
        pair = [self.videos({**row, "prompts": prompts}) for row in (before, after)]
        if any(videos is None for videos in pair):
            return None
        return difference_intervals(*pair, allow_partial=self.allow_partial)


def read_study(
    sheet: str | Path,
    folder: str | Path,
    *,
    seed: int | None,
    subset: dict[str, int] | None,
    effect_seeds: list[int] | None = None,
    allow_missing: bool = False,
    allow_partial: bool = False,
) -> Study:
    """Read the experiments sheet and the score files of its settings.

    Args:
        folder: holds the score file ``<setting name>.csv`` of each setting.
        seed: training seed of every LoRA of the sheet; None if it is a released one.
        subset: prompts of each kind that the sheet's ``subset`` stands for; None for all.
        effect_seeds: read the settings of `settings_over_seeds` for these, not the sheet's.
        allow_missing: leave out settings without a score file.
        allow_partial: take score files that lack scores.

    Raises:
        FileNotFoundError: if the sheet, the folder or a score file is missing, or if all are.
        ValueError: as `read_experiments` and `read_scores`; if a file lacks a score, if files were
            not made alike, or if rows ask for a subset and none is given.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder of scores {folder} does not exist")
    experiments = read_experiments(sheet, seed=seed)
    if effect_seeds is None and subset is None and (experiments["prompts"] == "subset").any():
        raise ValueError(
            f"{sheet} has rows on a subset of the prompts, but no numbers of subject, background "
            "and camera prompts are given"
        )
    if effect_seeds is None:
        settings = unique_settings(experiments)
    else:
        settings = settings_over_seeds(experiments, effect_seeds)
    scores, records = {}, {}
    for name, setting in settings.items():
        file = folder / f"{name}.csv"
        if allow_missing and not file.exists():
            continue
        scores[setting] = read_scores(file, allow_partial=allow_partial)
        records[str(file)] = read_record(file)
        try:
            dimension_scores(scores[setting], allow_partial=allow_partial)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    if not scores:
        wanted = ", ".join(f"{name}.csv" for name in list(settings)[:3])
        raise FileNotFoundError(
            f"{folder} has no score file of the sheet's settings; expected such as {wanted}"
        )
    check_alike(records)
    return Study(experiments, scores, subset, allow_partial)


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
