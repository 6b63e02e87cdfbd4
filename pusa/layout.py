"""What a configuration makes, and where it lies: runs, settings, shards and figures as files.

Every path is a string, with Snakemake's wildcards (``"{setting}"``) where they are given as
arguments. Nothing is read or written but the configuration's own files.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import pandas as pd

from pusa.config import Config, GpuMemory, MemorySettings, TrainSettings, prompt_counts
from pusa.data.listed import GALLERY
from pusa.data.suite import INFO_FILE
from pusa.experiments import (
    AS_THEY_ARE,
    WAN_I2V,
    Run,
    Setting,
    base_setting,
    check_available,
    check_published,
    main_setting,
    prompt_sets,
    read_experiments,
    require_base,
    settings_over_seeds,
    training_runs,
    unique_settings,
)
from pusa.models.folder import (
    check_baseline_folder,
    check_model_folder,
    check_rank,
)
from pusa.records import record_beside
from pusa.sample.tasks import TASKS, Task, tasks_for
from pusa.score.arithmetic import NAMES
from pusa.settings import Settings
from pusa.speed import Estimate, find_estimate

DOWNLOADED = "download.json"
#: Prompts of each kind of a first look, with one video each.
FIRST_LOOK = {"subject": 2, "background": 1, "camera": 1}
#: Of a sampling job whose seconds are not known.
VIDEOS_PER_JOB = 50
#: Share of a sampling job's time that its videos are to fill: a GPU may be half as fast.
FILLED = 0.5
#: The folder that this package lies in: a checkout, or other packages' too.
PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Layout:
    """The files of one configuration, and the counts that decide how many there are.

    Three studies share everything: ``tables``, ``effects`` over several training seeds, and
    ``first_look`` at a few videos of what is compared.
    """

    config: Config
    experiments: pd.DataFrame  # from `read_experiments`
    home: Path = PACKAGE  # the folder of the workflow, for what the working directory lacks

    # What is made

    @cached_property
    def settings(self) -> dict[str, dict[str, Setting]]:
        """The settings of each study, by name."""
        return {
            "tables": unique_settings(self.experiments),
            "effects": settings_over_seeds(self.experiments, self.config.effects.seeds),
            "first_look": {s.name: s for s in self.compared},
        }

    @cached_property
    def main(self) -> Setting:
        """The setting of Table 1's group ``ours``."""
        return main_setting(self.experiments)

    @cached_property
    def prompts(self) -> dict[str, dict[str, int]]:
        """Prompts of each kind: ``all``, of the ``subset``, and for the ``effects``."""
        return prompt_counts(self.config)

    @cached_property
    def negative_prompt(self) -> str:
        """Of guidance, from its file."""
        file = self.config.sample.negative_prompt_file
        return Path(file).read_text(encoding="utf-8").strip() if file else ""

    @cached_property
    def runs(self) -> dict[str, Run]:
        """All training runs by name; none if the LoRA was released."""
        return training_runs(s for study in self.settings.values() for s in study.values())

    def runs_of(self, study: str) -> list[str]:
        """Names of a study's runs."""
        return list(training_runs(self.settings[study].values()))

    @cached_property
    def compared(self) -> list[Setting]:
        """What figures compare: the base, Wan-I2V where the sheet has it, the adapted model."""
        settings = unique_settings(self.experiments).values()
        baseline = [s for s in settings if s.model == WAN_I2V]
        return [base_setting(self.main), *baseline[:1], self.main]

    @property
    def shown(self) -> list[Setting]:
        """Whose videos are seen first: what is compared, stillness, and the true continuation."""
        settings = self.settings["tables"].values()
        return [*self.compared, *(s for s in settings if s.model in ("still", "truth"))]

    @property
    def has_baseline(self) -> bool:
        """Whether the sheet asks for Wan-I2V, which the paper compares with."""
        return any(s.model == WAN_I2V for s in self.compared)

    @property
    def trains_baseline(self) -> bool:
        """Whether Wan-I2V is a tiny one, trained here."""
        return self.has_baseline and self.config.baseline.source == "tiny"

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The tasks of Figures 7 to 12; none without clips to take given frames from."""
        return tasks_for(self.config.clip.frames) if self.task_clips else {}

    @property
    def task_dataset(self) -> str | None:
        """The folder of the clips that tasks take given frames from."""
        config = self.config
        if config.tasks.dataset is not None:
            return config.tasks.dataset
        if not config.is_trained or config.cache.source == "released":
            return None  # there are no clips to decode
        return config.dataset.path if config.train.validation_clips else None

    @property
    def task_clips(self) -> int:
        """Clips, and so videos, of each task."""
        if self.task_dataset is None:
            return 0
        if self.config.tasks.dataset is not None:
            return self.config.tasks.clips
        return min(self.config.tasks.clips, self.config.train.validation_clips)

    @property
    def dimensions(self) -> list[str]:
        """Jobs that score one and the same videos: VBench's nine, each with networks of its own."""
        return list(NAMES) if self.config.score.scorer == "vbench" else ["all"]

    def train_settings(self, run: Run) -> TrainSettings:
        """What a run is trained with."""
        train = self.config.train
        model = train.models[run.model]
        return train.part(
            TrainSettings,
            rank=run.rank,
            seed=run.seed,
            iterations=list(run.iterations),
            p_async=model.p_async,
            objective=model.objective or train.objective,
        )

    @property
    def memory_settings(self) -> MemorySettings:
        """What decides the memory of a GPU; of all trainings that of the highest rank."""
        config, train, sample = self.config, self.config.train, self.config.sample
        return train.part(
            MemorySettings,
            **config.clip.model_dump(),
            **config.resources.part(GpuMemory).model_dump(),
            method=train.method if self.runs else "lora",
            rank=max((run.rank for run in self.runs.values() if run.rank), default=None),
            processes=train.nodes * train.processes,
            sample_dtype=sample.dtype,
            batch_size=sample.batch_size,
        )

    @cached_property
    def estimate(self) -> Estimate | None:
        """Assumed seconds of a GPU; None where its kind or the model is not known."""
        return find_estimate(self.config)

    def subset(self, study: str) -> dict[str, int]:
        """Prompts on which the settings of a study are compared."""
        return self.prompts["subset" if study == "tables" else "effects"]

    def sampled(self, study: str, name: str) -> dict[str, int]:
        """Prompts of each kind that a setting is sampled on."""
        if study == "effects":
            return self.prompts["effects"]
        if study == "first_look":
            return FIRST_LOOK
        return self.prompts[prompt_sets(self.experiments)[name]]

    def samples_each(self, study: str) -> int:
        """Videos per prompt."""
        return 1 if study == "first_look" else self.config.sample.samples

    def videos(self, study: str, name: str) -> int:
        """Videos of a setting."""
        return self.samples_each(study) * sum(self.sampled(study, name).values())

    def shards(self, study: str, name: str) -> int:
        """Sampling jobs of a setting; each has whole prompts, with all of their samples."""
        jobs = -(-self.videos(study, name) // self.videos_per_job(self.settings[study][name]))
        return min(jobs, sum(self.sampled(study, name).values()))

    def videos_per_job(self, setting: Setting) -> int:
        """Videos that a sampling job may make, if prompts with all of their samples allow it.

        Assumed seconds count here and not measured ones: finished jobs divide nothing otherwise.
        """
        if self.config.sample.videos_per_job is not None:
            return self.config.sample.videos_per_job
        if self.estimate is None or self.config.device == "cpu" or setting.steps is None:
            return VIDEOS_PER_JOB
        seconds = 60 * self.config.resources.sampling_minutes * FILLED
        left = seconds - self.estimate.sampling_job(setting)
        return max(1, int(left / self.estimate.video(setting)))

    def score_shards(self, study: str, name: str) -> int:
        """Scoring jobs of a setting for each dimension; each scores whole sampling jobs."""
        jobs = -(-self.videos(study, name) // self.config.score.videos_per_job)
        return min(jobs, self.shards(study, name))

    # Where it lies

    @property
    def published(self) -> dict[int, str]:
        """The published tables, by number."""
        tables = {number: f"config/published/table{number}.csv" for number in (1, 2)}
        return {number: find_shipped(file, self.home) for number, file in tables.items()}

    @property
    def claims(self) -> str:
        """The paper's claims."""
        return find_shipped("config/claims.yaml", self.home)

    def path(self, *parts: str) -> str:
        """A file or folder of the results."""
        return "/".join([self.config.results, *parts])

    def log(self, rule: str, *job: str) -> str:
        """Log of a rule's only job, or of one of its jobs."""
        return self.path("logs", *[rule, *job][:-1], f"{[rule, *job][-1]}.log")

    def benchmark(self, rule: str, *job: str) -> str:
        """Snakemake's benchmark of a rule's only job, or of one of its jobs."""
        return self.path("benchmarks", *[rule, *job][:-1], f"{[rule, *job][-1]}.tsv")

    @property
    def suite_info(self) -> str:
        """The suite's list of prompts, which stands for the suite."""
        return f"{self.config.suite.path}/{INFO_FILE}"

    @property
    def transformer(self) -> str:
        """The base's own transformer."""
        return f"{self.config.model.path}/transformer"

    @property
    def downloads(self) -> list[str]:
        """The record of every download that the workflow needs."""
        config = self.config
        needed = {
            config.model.path: config.model.source == "hub",
            config.lora.path: not config.is_trained and config.lora.repo is not None,
            config.suite.path: config.suite.source == "vbench",
            config.score.weights: config.score.scorer == "vbench",
        }
        if config.is_trained:
            needed[config.dataset.path] = config.dataset.source == "hub"
        if self.has_baseline:
            needed[config.baseline.path] = config.baseline.source == "hub"
        return [f"{folder}/{DOWNLOADED}" for folder, wanted in needed.items() if wanted]

    def trained(self, run: str, *name: str) -> str:
        """Folder of a training run, or a file in it."""
        return self.path("trained", run, *name)

    def weights(self, run: str, iteration: int | str) -> str:
        """What training makes: a LoRA file, or a whole transformer's folder."""
        full = self.config.is_trained and self.config.train.method == "full"
        return self.trained(run, f"iteration_{iteration}{'' if full else '.safetensors'}")

    def trained_files(self, study: str) -> list[str]:
        """Weights and logs of all runs of a study."""
        logs = ("training.csv", "validation.csv", "run.json")
        return [
            *(
                self.weights(name, i)
                for name in self.runs_of(study)
                for i in self.runs[name].iterations
            ),
            *(file for log in logs for file in self.run_files(study, log)),
        ]

    def run_files(self, study: str, file: str) -> list[str]:
        """A file of every training run of a study."""
        return [self.trained(name, file) for name in self.runs_of(study)]

    @property
    def main_weights(self) -> str:
        """The main setting's LoRA or transformer."""
        return self.weights(self.main.run, self.main.iteration)

    @property
    def merged(self) -> str | None:
        """Transformer folder of the main setting, its LoRA merged; None if it was trained whole."""
        return None if self.main.rank is None else self.path("merged", self.main.weights)

    def samples(self, study: str, setting: str) -> str:
        """Folder of the videos of a setting."""
        return self.path("samples", study, setting)

    def manifest(self, study: str, setting: str, shard: int | str) -> str:
        """The list of videos of a sampling job, beside them."""
        return f"{self.samples(study, setting)}/shard{shard}.csv"

    def setting_manifests(self, study: str, name: str) -> list[str]:
        """The lists of all videos of a setting."""
        return [self.manifest(study, name, n) for n in range(self.shards(study, name))]

    def manifests(self, study: str) -> list[str]:
        """The lists of all videos of a study."""
        return [f for name in self.settings[study] for f in self.setting_manifests(study, name)]

    def task_manifest(self, task: str) -> str:
        """The list of a task's videos, beside them."""
        return self.path("samples/tasks", task, "videos.csv")

    def task_videos(self, task: str) -> list[str]:
        """The videos of a task."""
        folder = Path(self.task_manifest(task)).parent
        return [f"{folder}/{n:04d}.mp4" for n in range(1, self.task_clips + 1)]

    def score_shard(self, study: str, setting: str, dimension: str, shard: int | str) -> str:
        """The scores of a scoring job."""
        return self.path("scores", study, setting, dimension, f"shard{shard}.csv")

    def setting_score_shards(self, study: str, name: str) -> list[str]:
        """The scores of all scoring jobs of a setting."""
        return [
            self.score_shard(study, name, dimension, n)
            for dimension in self.dimensions
            for n in range(self.score_shards(study, name))
        ]

    def score_file(self, study: str, setting: str) -> str:
        """All scores of a setting."""
        return self.path("scores", study, f"{setting}.csv")

    def score_files(self, study: str) -> list[str]:
        """All scores of a study, a file for each setting."""
        return [self.score_file(study, name) for name in self.settings[study]]

    def scored(self, study: str) -> list[str]:
        """All files that scoring makes for a study: of jobs and of settings, with their records."""
        shards = (self.setting_score_shards(study, name) for name in self.settings[study])
        tables = [*chain.from_iterable(shards), *self.score_files(study)]
        return [*tables, *(str(record_beside(Path(table))) for table in tables)]

    @property
    def tiny_lists(self) -> list[str]:
        """What stands for files of the tiny world, which are made again as soon as one is missing.

        Of a downloaded dataset not even the latents are: once training is done they may well be
        deleted for their room.
        """
        config = self.config
        lists = []
        if config.is_trained and config.dataset.source == "tiny":
            lists += [f"{config.dataset.path}/metadata.csv", self.path("cache/index.json")]
        if config.suite.source == "tiny":
            lists.append(self.suite_info)
        if self.trains_baseline:
            lists.append(f"{config.baseline.path}/model_index.json")
        return lists

    @property
    def lists(self) -> list[str]:
        """What stands for files beside it, which its job makes with it."""
        samples = [file for study in self.settings for file in self.manifests(study)]
        tasks = [self.task_manifest(task) for task in self.tasks]
        trained = [self.trained(run, "run.json") for run in self.runs]
        merged = [f"{self.merged}/config.json"] if self.merged else []
        made = [*self.tiny_lists, *trained, *merged, self.path(GALLERY), self.first_look]
        scored = [f for study in self.settings for f in self.scored(study) if f.endswith(".json")]
        return [*samples, *tasks, *scored, *self.analysed, *made]

    @property
    def analysed(self) -> list[str]:
        """The records of what was measured of the compared models themselves, with its tables."""
        attention = [self.path("attention", f"{s.model}.json") for s in self.compared]
        return attention + [self.path("drift", f"{s.model}.json") for s in self.compared[1:]]

    @property
    def first_look(self) -> str:
        """The folder of the page of a first look."""
        return self.path("first_look", GALLERY)

    def setting_model(self, setting: Setting) -> str:
        """The model folder of a setting: Wan-I2V is a whole one of its own."""
        section = self.config.baseline if setting.model == WAN_I2V else self.config.model
        return section.path

    def setting_transformer(self, setting: Setting) -> str | None:
        """The transformer folder that a setting is sampled with; None for Wan-I2V."""
        if setting.model == WAN_I2V:
            return None
        trained = setting.model not in AS_THEY_ARE and setting.rank is None
        return self.weights(setting.run, setting.iteration) if trained else self.transformer

    def setting_lora(self, setting: Setting) -> str | None:
        """The LoRA file that is merged into it as it is loaded, if any."""
        return None if setting.rank is None else self.weights(setting.run, setting.iteration)

    def setting_weights(self, setting: Setting) -> list[str]:
        """What a setting needs beyond its model: nothing, or what was trained from it."""
        adapted = setting.model not in AS_THEY_ARE
        return [self.weights(setting.run, setting.iteration)] if adapted else []

    # What is drawn, and what it took

    @property
    def sample_figures(self) -> dict[int, Setting]:
        """The setting whose videos Figures 6 and 13 show; 13 needs a row of text-to-video."""
        settings = [replace(self.main, task=task) for task in ("i2v", "t2v")]
        return {TASKS[s.task].figure: s for s in settings if s.name in self.settings["tables"]}

    @property
    def gpus(self) -> dict[str, int]:
        """GPUs of one job of each stage that uses any, by the names of benchmark files."""
        if self.config.device == "cpu":
            return {}
        stages = ["cache_latents", "cache_prompts", "sample_suite", "sample_task", "attention"]
        stages += ["score_videos"] if self.config.score.scorer == "vbench" else []
        train = self.config.train
        return {"train": train.nodes * train.processes, **dict.fromkeys(stages, 1)}


def find_shipped(path: str, home: Path) -> str:
    """A file or folder of the working directory, or the one of that name that comes with the code.

    Args:
        home: folder of the workflow. The embedded model is found beside this package too, which
            may have been installed without the workflow.

    Returns:
        ``path`` itself where it exists, or nothing of that name does.
    """
    places = (Path(), home, PACKAGE)
    return next((str(place / path) for place in places if (place / path).exists()), path)


def read_layout(config: Config, *, home: Path = PACKAGE) -> Layout:
    """Read the sheet, and check it and the configuration's folders before any job starts.

    Args:
        home: folder of the workflow, where sheet, negative prompt and embedded model are looked for
            if the working directory has none of that name.

    Raises:
        FileExistsError: if a file is where the results are to be.
        FileNotFoundError: if the sheet, or a folder that is to be there, is missing.
        ValueError: that names the row or key, what was found and what was expected.
    """
    for place in (Path(config.results), *Path(config.results).parents):
        if place.is_file():
            raise FileExistsError(f"config key results: {place} is a file, expected a folder")
    seed = config.train.seed if config.is_trained else None
    config = _with_shipped(config, home)
    layout = Layout(config, read_experiments(config.experiments, seed=seed), home)
    check_available(layout.experiments, config)
    require_base(layout.experiments)
    check_published(layout.experiments, layout.published[1], layout.published[2])
    sections = {"model": check_model_folder}
    if layout.has_baseline:
        sections["baseline"] = check_baseline_folder
    for name, check in sections.items():
        section = getattr(config, name)
        # A downloaded folder may have been copied here by hand, and not whole.
        if section.source == "folder" or Path(section.path, DOWNLOADED).exists():
            check(section.path)
    if Path(layout.transformer, "config.json").exists():
        for run in layout.runs.values():
            if run.rank is not None:
                check_rank(run.rank, layout.transformer)
    _ = layout.prompts  # as many as the suite has
    file = config.sample.negative_prompt_file
    if file and not Path(file).is_file():
        raise FileNotFoundError(
            f"config key sample.negative_prompt_file: found no file {file}, expected a text file"
        )
    _check_task_dataset(config)
    return layout


def _with_shipped(config: Config, home: Path) -> Config:
    """The configuration with the places of the files that come with the workflow."""

    def within(section: Settings, key: str) -> Settings:
        path = getattr(section, key)
        return section.model_copy(update={key: path and find_shipped(path, home)})

    sections = {
        "model": within(config.model, "path"),
        "sample": within(config.sample, "negative_prompt_file"),
    }
    return within(config.model_copy(update=sections), "experiments")


def _check_task_dataset(config: Config) -> None:
    if config.tasks.dataset is None:
        return
    folder = Path(config.tasks.dataset)
    if not (folder / "metadata.csv").is_file():
        raise FileNotFoundError(
            f"config key tasks.dataset: found no metadata.csv in {folder}, expected a "
            "folder of clips with one"
        )
    if config.is_trained and folder.resolve() == Path(config.dataset.path).resolve():
        raise ValueError(
            f"config key tasks.dataset: found {folder}, which is trained on, expected other clips, "
            "or no such key for those that training holds out"
        )
