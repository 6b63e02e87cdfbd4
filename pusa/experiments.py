"""The experiments sheet: one row per reported number, and the settings that rows ask for.

Several rows may report one setting (Table 2 prints some twice); it is computed once.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from pusa.config import Config

BASE = "base"
WAN_I2V = "wan_i2v"
#: What no model makes, to tell what a score is worth; all but the first need true continuations.
BOUNDS = {
    "still": "still picture",
    "truth": "true continuation",
    "truth_vae": "true continuation through the VAE",
    "shuffled": "another prompt's continuation",
}
#: Models without weights of ours, and how they are called.
AS_THEY_ARE = {BASE: "base + VTA", WAN_I2V: "Wan-I2V", **BOUNDS}
MAX_STEPS = 1000  # the noise levels that Wan was trained on
MAX_NUMBER = 999_999  # of a rank or an iteration
COLUMNS = (
    "table",
    "group",
    "published",
    "prompts",
    "model",
    "task",
    "rank",
    "iteration",
    "alpha",
    "steps",
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One point of the study: which weights, and how they are sampled."""

    #: "base" (with VTA, no LoRA), "wan_i2v" (the paper's baseline), one of `BOUNDS`, or a name
    #: under train.models.
    model: str
    task: str  # "i2v" or "t2v"
    steps: int | None = None  # None: nothing is sampled
    rank: int | None = None  # None: no LoRA; the whole transformer was trained
    iteration: int | None = None
    alpha: float | None = None  # the paper's alpha: lora_scale at merging
    seed: int | None = None  # of the training; None: trained elsewhere and released

    @property
    def run(self) -> str:
        """Name of the training run that the weights come from."""
        method = "full" if self.rank is None else f"rank{self.rank}"
        return f"{self.model}-{method}-" + ("released" if self.seed is None else f"seed{self.seed}")

    @property
    def weights(self) -> str:
        """Name of the weights, a LoRA at its scale, or of a model as it is."""
        if self.model in AS_THEY_ARE:
            return self.model
        alpha = "" if self.alpha is None else f"-alpha{self.alpha:g}"
        return f"{self.run}-iteration{self.iteration}{alpha}"

    @property
    def name(self) -> str:
        """Name of the setting, safe in a path: ``base-i2v-steps10`` and so on."""
        steps = "" if self.steps is None else f"-steps{self.steps}"
        return f"{self.weights}-{self.task}{steps}"

    @property
    def model_label(self) -> str:
        """The model in words."""
        return AS_THEY_ARE.get(self.model, self.model)

    @property
    def label(self) -> str:
        """The setting in words, without its training seed."""
        words = [self.model_label]
        if self.model not in AS_THEY_ARE:
            words += ["full" if self.rank is None else f"rank {self.rank}"]
            words += [f"iteration {self.iteration}"]
            words += [] if self.alpha is None else [f"alpha {self.alpha:g}"]
        words += [] if self.steps is None else [f"{self.steps} steps"]
        words += ["text-to-video"] if self.task == "t2v" else []
        return ", ".join(words)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training, as rows of the sheet ask for it."""

    name: str
    model: str  # under train.models
    rank: int | None  # None: the whole transformer
    seed: int
    iterations: tuple[int, ...]  # that are saved, rising; the last ends the training


def read_experiments(sheet: str | Path, *, seed: int | None) -> pd.DataFrame:
    """Read and check the sheet; the result has a column ``setting`` of `Setting`.

    Args:
        seed: training seed of every LoRA; None if it was trained elsewhere and released.

    Raises:
        FileNotFoundError: if there is no sheet.
        ValueError: for a missing column, a bad cell, a row that repeats another, or two rows
            beside one published row.
    """
    sheet = Path(sheet)
    if not sheet.is_file():
        raise FileNotFoundError(f"experiments sheet {sheet} does not exist")
    try:
        table = pd.read_csv(sheet, sep="\t", dtype=str, keep_default_na=False).fillna("")
    except ValueError as error:  # pandas does not name the file
        told = " ".join(str(error).split())
        raise ValueError(f"{sheet}: cannot be read as tab-separated ({told})") from None
    if tuple(table.columns) != COLUMNS:
        raise ValueError(
            f"{sheet}: columns are {', '.join(table.columns)}; expected {', '.join(COLUMNS)}"
        )
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes what is too many for an index
        raise ValueError(f"{sheet}: rows have more cells than the {len(table.columns)} columns")
    if table.empty:
        raise ValueError(f"{sheet}: no rows; expected one per reported number")
    settings, seen, published = [], {}, {}
    for line, row in enumerate(table.to_dict("records"), start=2):
        where = f"{sheet}, row {line}"
        setting = _parse(row, where, seed)
        key = (row["table"], row["group"], setting)
        if key in seen:
            raise ValueError(f"{where} repeats row {seen[key]}: {setting.name} in {row['group']}")
        seen[key] = line
        place = (row["table"], row["group"], row["published"])
        if row["published"] and place in published:
            raise ValueError(
                f"{where} contradicts row {published[place]}: both stand beside the published "
                f"row {row['published']!r} of table {row['table']}, group {row['group']!r}"
            )
        published[place] = line
        settings.append(setting)
    return table.assign(setting=settings)


def _parse(row: dict[str, str], where: str, seed: int) -> Setting:
    model, task = row["model"], row["task"]
    if row["table"] not in ("1", "2", ""):
        raise ValueError(f"{where}: table is {row['table']!r}, expected 1, 2 or nothing")
    if row["prompts"] not in ("all", "subset"):
        raise ValueError(f"{where}: prompts is {row['prompts']!r}, expected all or subset")
    if not re.fullmatch(r"[a-z0-9_]+", row["group"]):
        raise ValueError(f"{where}: group is {row['group']!r}, expected lower-case letters")
    if task not in ("i2v", "t2v"):
        raise ValueError(f"{where}: task is {task!r}, expected i2v or t2v")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", model):
        raise ValueError(
            f"{where}: model is {model!r}, expected {BASE}, {WAN_I2V}, {', '.join(BOUNDS)} or a "
            "name under train.models"
        )
    lora = ("rank", "iteration", "alpha")
    if (model == WAN_I2V or model in BOUNDS) and task != "i2v":
        raise ValueError(f"{where}: model {model} makes video from an image, but task is {task}")
    if model in BOUNDS and row["steps"]:
        raise ValueError(f"{where}: model {model} is not sampled, but steps is {row['steps']!r}")
    steps = None if model in BOUNDS else _number(row, "steps", where, 1, MAX_STEPS)
    if model in AS_THEY_ARE:
        filled = [column for column in lora if row[column]]
        if filled:
            raise ValueError(
                f"{where}: model {model} has no LoRA, but {', '.join(filled)} is given"
            )
        return Setting(model=model, task=task, steps=steps)
    iteration = _number(row, "iteration", where, 1, MAX_NUMBER)
    if not row["rank"] and not row["alpha"]:
        return Setting(model=model, task=task, steps=steps, iteration=iteration, seed=seed)
    return Setting(
        model=model,
        task=task,
        steps=steps,
        rank=_number(row, "rank", where, 1, MAX_NUMBER),
        iteration=iteration,
        alpha=_number(row, "alpha", where, 0.0001, 10.0),
        seed=seed,
    )


def _number(row: dict[str, str], column: str, where: str, least: float, most: float):
    """A number of the kind that ``least`` and ``most`` are of."""
    # Not all that Python reads, such as 1_000 or nan, is meant.
    kind = type(least)
    plain = r"\d+" if kind is int else r"\d+(\.\d{1,4})?"  # names show so many digits
    if not re.fullmatch(plain, row[column], re.ASCII) or not least <= kind(row[column]) <= most:
        wanted = "a whole number" if kind is int else "a number with at most four decimals"
        raise ValueError(
            f"{where}: {column} is {row[column]!r}, expected {wanted} from {least} to {most}"
        )
    return kind(row[column])


def check_available(experiments: pd.DataFrame, config: Config) -> None:
    """Check that the configuration provides all weights and prompts that the sheet asks for.

    Raises:
        ValueError: that names the row, what it asks for, and the config key that lacks it.
    """
    released, lora = not config.is_trained, config.lora
    full = not released and config.train.method == "full"
    main = main_setting(experiments)
    for line, row in enumerate(experiments.to_dict("records"), start=2):
        setting, where = row["setting"], f"experiments sheet, row {line}"
        if row["prompts"] == "subset" and config.suite.subset is None:
            raise ValueError(
                f"{where} asks for a subset of the prompts, but config key suite.subset is missing"
            )
        if setting.model in BOUNDS and setting.model != "still" and config.suite.source == "vbench":
            raise ValueError(
                f"{where} asks for model {setting.model}, but VBench-I2V, config key suite.source, "
                "has no true continuations"
            )
        if setting.model == WAN_I2V and config.baseline is None:
            raise ValueError(
                f"{where} asks for model {WAN_I2V}, but config key baseline is missing"
            )
        if setting.model == WAN_I2V and released and config.baseline.source == "tiny":
            raise ValueError(
                f"{where} asks for model {WAN_I2V}, but config key baseline.source is tiny, and "
                "nothing is trained with lora.source released; expected folder or hub"
            )
        if setting.model in AS_THEY_ARE:
            continue
        if full != (setting.rank is None):
            asks = "lora.source released" if released else f"train.method {config.train.method}"
            wanted = "an empty rank and alpha" if full else "a rank and an alpha"
            raise ValueError(
                f"{where}: {asks} expects {wanted}, found rank {row['rank']!r} and alpha "
                f"{row['alpha']!r}"
            )
        if not released and setting.model not in config.train.models:
            raise ValueError(
                f"{where}: model {setting.model} is not trained; train.models is "
                f"{', '.join(config.train.models)}"
            )
        made = {"model": main.model, "rank": lora.rank, "iteration": lora.iteration}
        for column, value in made.items() if released else ():
            if getattr(setting, column) != value:
                raise ValueError(
                    f"{where}: {column} {getattr(setting, column)} is not the released LoRA, "
                    f"whose {column} is {value}"
                )


def check_published(experiments: pd.DataFrame, table1: str | Path, table2: str | Path) -> None:
    """Check that the published rows that the sheet names exist.

    Raises:
        ValueError: that names the row and what it asks for.
    """
    one, two = pd.read_csv(table1, dtype=str), pd.read_csv(table2, dtype=str)
    known = {("1", group, model) for group, model in zip(one["group"], one["model"], strict=True)}
    keys = published_key(two)
    known |= {("2", group, key) for group, key in zip(two["group"], keys, strict=True)}
    groups = {"1": {"baseline", "ours", "bounds"}, "2": {*two["group"], "bounds"}}
    for line, row in enumerate(experiments.to_dict("records"), start=2):
        if row["table"] and row["group"] not in groups[row["table"]]:
            raise ValueError(
                f"experiments sheet, row {line}: table {row['table']} has no group "
                f"{row['group']!r}; expected one of {', '.join(sorted(groups[row['table']]))}"
            )
        if row["published"] and (row["table"], row["group"], row["published"]) not in known:
            raise ValueError(
                f"experiments sheet, row {line}: table {row['table']}, group {row['group']!r} has "
                f"no published row {row['published']!r}; expected a name of Table 1, or "
                "rank/iteration/alpha/steps as Table 2 prints them"
            )


def published_key(table2: pd.DataFrame) -> pd.Series:
    """``rank/iteration/alpha/steps`` of each row of the published Table 2, read as text."""
    return table2[["rank", "iteration", "alpha", "steps"]].astype(str).agg("/".join, axis=1)


def unique_settings(experiments: pd.DataFrame) -> dict[str, Setting]:
    """Every setting of the sheet once, by name."""
    return {setting.name: setting for setting in experiments["setting"]}


def prompt_sets(experiments: pd.DataFrame) -> dict[str, str]:
    """``all`` or ``subset`` by setting name: what is sampled so that each row has its videos.

    The subset is part of all prompts, so a setting that one row wants on all prompts and
    another on the subset is sampled once, on all.
    """
    wants_all = {
        row["setting"].name for row in experiments.to_dict("records") if row["prompts"] == "all"
    }
    return {n: "all" if n in wants_all else "subset" for n in unique_settings(experiments)}


def main_setting(experiments: pd.DataFrame) -> Setting:
    """The setting of Table 1's group ``ours``, about which effects vary one thing at a time.

    Raises:
        ValueError: if the sheet has no such row, or several.
    """
    rows = experiments[(experiments["table"] == "1") & (experiments["group"] == "ours")]
    if len(rows) != 1:
        where = f" ({', '.join(f'row {line}' for line in rows.index + 2)})" if len(rows) else ""
        raise ValueError(
            f"experiments sheet: found {len(rows)} rows of table 1, group ours{where}, expected 1"
        )
    return rows["setting"].iloc[0]


def training_runs(settings: Iterable[Setting]) -> dict[str, Run]:
    """The runs that settings need, by name: each is trained to the last iteration asked of it."""
    asked: dict[str, list[Setting]] = {}
    for setting in settings:
        if setting.seed is not None:
            asked.setdefault(setting.run, []).append(setting)
    return {
        name: Run(
            name=name,
            model=members[0].model,
            rank=members[0].rank,
            seed=members[0].seed,
            iterations=tuple(sorted({s.iteration for s in members})),
        )
        for name, members in sorted(asked.items())
    }


def base_setting(main: Setting) -> Setting:
    """The base with VTA and no LoRA, sampled as the main setting is."""
    return Setting(model=BASE, task=main.task, steps=main.steps)


def require_base(experiments: pd.DataFrame) -> None:
    """Check that the sheet has the row that Figure 3 compares the main setting with.

    Raises:
        ValueError: if it has not.
    """
    base = base_setting(main_setting(experiments))
    if base not in set(experiments["setting"]):
        raise ValueError(
            f"the experiments sheet has no row {base.name}: model base, task {base.task}, "
            f"steps {base.steps}, which the main setting is compared with"
        )


def settings_over_seeds(experiments: pd.DataFrame, seeds: list[int]) -> dict[str, Setting]:
    """The settings of `snakemake effects`, by name: those near the main one, for every seed.

    Near means that at most alpha, or anything but alpha, differs from the main setting; the
    rest of Table 2's grid says nothing about an effect that these do not, nor does Wan-I2V.
    """
    main = main_setting(experiments)
    near = [
        s
        for s in unique_settings(experiments).values()
        if s.model != WAN_I2V
        and (
            s.model in AS_THEY_ARE or s.alpha == main.alpha or replace(s, alpha=main.alpha) == main
        )
    ]
    repeated = [s if s.seed is None else replace(s, seed=seed) for s in near for seed in seeds]
    return {s.name: s for s in repeated}
