# Where the files of a study lie, and the options that rules give to `pusa`.
from snakemake.settings.types import DeploymentMethod


def size_options():
    return f"--height {CLIP['height']} --width {CLIP['width']}"


def clip_options():
    return f"--frames {CLIP['frames']} {size_options()}"


def count_options(counts):
    return " ".join(f"--{kind} {n}" for kind, n in (counts or {}).items())


def subset_options(study):
    """The prompts on which the settings of a study are compared."""
    return count_options(SUBSET if study == "tables" else PROMPTS["effects"])


def seed_options():
    return "" if SEED is None else f"--seed {SEED}"


def run_options(wildcards):
    model, method, seed = wildcards.run.rsplit("-", 2)
    rank = "" if method == "full" else f"--rank {method.removeprefix('rank')}"
    p_async = TRAIN["models"][model]["p_async"]
    return f"{rank} --seed {seed.removeprefix('seed')} --p-async {p_async}"


def sampled_prompts(study, name):
    """Prompts of each kind that a setting is sampled on; None for the whole suite."""
    if study == "effects":
        return PROMPTS["effects"]
    return None if PROMPT_SETS[name] == "all" else SUBSET


def shards(study, name):
    counts = sampled_prompts(study, name) or PROMPTS["all"]
    return pusa_plan.count_jobs(counts, SAMPLE)


def downloads():
    """The record of every download that the workflow needs."""
    sections = {
        "model": config["model"]["source"] == "hub",
        "lora": not TRAINED and "repo" in LORA,
        "dataset": TRAINED and config["dataset"]["source"] == "hub",
        "suite": config["suite"]["source"] == "vbench",
    }
    folders = [
        Path(config[name]["path"]) for name, needed in sections.items() if needed
    ]
    if VBENCH:
        folders.append(WEIGHTS)
    return [folder / "download.json" for folder in folders]


def setting_of(wildcards):
    return SETTINGS[wildcards.study][wildcards.setting]


def setting_options(wildcards):
    setting = setting_of(wildcards)
    return f"--task {setting.task} --steps {setting.steps}"


def trained_file(run, iteration):
    """What training makes: a LoRA file, or a whole transformer's folder."""
    suffix = ".safetensors" if TRAIN["method"] == "lora" else ""
    return RESULTS / "lora" / run / f"iteration_{iteration}{suffix}"


def lora_of(wildcards):
    setting = setting_of(wildcards)
    return trained_file(setting.run, setting.iteration)


def lora_logs(study, name):
    """A file of every training run; there are none of a LoRA that others trained."""
    runs = {s.run for s in SETTINGS[study].values() if s.seed is not None}
    return [RESULTS / "lora" / run / name for run in sorted(runs)]


def trained_files(study):
    return [
        trained_file(folder.name, i)
        for folder in lora_logs(study, "")
        for i in TRAIN["iterations"]
    ]


def transformer_of(wildcards):
    """The transformer folder of a setting: the base's own, a trained or a merged one."""
    setting = setting_of(wildcards)
    if setting.model == pusa_experiments.BASE:
        return MODEL / "transformer"
    if setting.rank is None:
        return trained_file(setting.run, setting.iteration)
    return RESULTS / "merged" / wildcards.study / wildcards.setting


def adapted_weights(wildcards):
    """What a setting needs beyond the base model: nothing, or its own transformer."""
    is_base = setting_of(wildcards).model == pusa_experiments.BASE
    return [] if is_base else transformer_of(wildcards)


def effect_seed_options(study):
    """The tables have one training seed; the effects name theirs."""
    if study == "tables":
        return ""
    return " ".join(f"--effect-seed {seed}" for seed in config["effects"]["seeds"])


def setting_shards(study, name):
    """The list of videos of every sampling job of a setting."""
    folder = RESULTS / "samples" / study / name
    return [folder / f"shard{n}.csv" for n in range(shards(study, name))]


def manifests(study):
    return [file for name in SETTINGS[study] for file in setting_shards(study, name)]


def score_jobs(study, name):
    """Scoring jobs of a setting, for each of SCORED: each takes whole sampling jobs."""
    counts = sampled_prompts(study, name) or PROMPTS["all"]
    return pusa_plan.count_score_jobs(counts, SAMPLE, SCORE)


def scored_manifests(wildcards):
    jobs = score_jobs(wildcards.study, wildcards.setting)
    shard = int(wildcards.shard)
    return setting_shards(wildcards.study, wildcards.setting)[shard::jobs]


def score_shards(study, name):
    """A file of every scoring job of a setting."""
    folder = RESULTS / "scores" / study / name
    return [
        folder / dimension / f"shard{n}.csv"
        for dimension in SCORED
        for n in range(score_jobs(study, name))
    ]


def vbench_python():
    """The Python that VBench runs in: of its conda environment, or of a virtual one."""
    if DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method:
        return "python"
    return Path(SCORE["environment"]) / "bin/python"


def score_files(study):
    return [RESULTS / "scores" / study / f"{name}.csv" for name in SETTINGS[study]]


def gpus_of_stages():
    """GPUs of one job of each rule that uses any, for the costs."""
    stages = ["cache_latents", "cache_prompts", "sample_videos"]
    stages += ["score_videos"] if VBENCH else []
    return (
        {"train_lora": TRAIN["nodes"] * TRAIN["processes"], **dict.fromkeys(stages, 1)}
        if GPU
        else {}
    )


def benchmark_files():
    """Of the jobs behind the tables, so that costs are added up after them."""
    jobs = [f"train_lora/{run.name}" for run in lora_logs("tables", "")]
    for name in SETTINGS["tables"]:
        jobs += [
            f"sample_videos/tables/{name}/shard{n}"
            for n in range(shards("tables", name))
        ]
        jobs += [
            f"score_videos/tables/{name}/{dimension}/shard{n}"
            for dimension in SCORED
            for n in range(score_jobs("tables", name))
        ]
    return [RESULTS / "benchmarks" / f"{job}.tsv" for job in jobs]


def scale_sentence(study):
    """How large this run is, for the captions of tables."""
    samples = f"with {SAMPLE['samples']} sample(s) each"
    counts = {"all": PROMPTS["all"], "subset": SUBSET}
    if study == "effects":
        counts = {"effects": PROMPTS["effects"]}
    used = set(PROMPT_SETS.values()) if study == "tables" else {"effects"}
    sizes = " or ".join(
        f"{sum(counts[name].values()):,} prompts" for name in counts if name in used
    )
    seeds = config["effects"]["seeds"]
    made = (
        f"Made by snakemake effects over {len(seeds)} training seeds, which the intervals take as"
        " given: seed sd is the standard deviation of a difference over them. "
        if study == "effects"
        else ""
    )
    return made + (
        f"This run: {MODEL}, {CLIP['frames']} frames of {CLIP['width']}x{CLIP['height']},"
        f" {sizes} {samples}."
    )
