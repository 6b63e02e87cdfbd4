# Where the files of a study lie, and the options that rules give to `pusa`.
import json
from dataclasses import replace

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
        "baseline": WITH_BASELINE and config["baseline"]["source"] == "hub",
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
    is_baseline = setting.model == pusa_experiments.WAN_I2V
    section = config["baseline"] if is_baseline else SAMPLE
    return (
        f"--task {setting.task} --steps {setting.steps}"
        f" --guidance-scale {section['guidance_scale']}"
    )


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


def model_of(wildcards):
    """The model folder of a setting: Wan-I2V is a whole one of its own."""
    is_baseline = setting_of(wildcards).model == pusa_experiments.WAN_I2V
    return BASELINE if is_baseline else MODEL


def transformer_of(wildcards):
    """The transformer folder of a setting: the base's own, a trained or a merged one."""
    setting = setting_of(wildcards)
    if setting.model == pusa_experiments.BASE:
        return MODEL / "transformer"
    if setting.rank is None:
        return trained_file(setting.run, setting.iteration)
    return RESULTS / "merged" / wildcards.study / wildcards.setting


def adapted_weights(wildcards):
    """What a setting needs beyond its model: nothing, or a transformer made from it."""
    is_adapted = setting_of(wildcards).model not in pusa_experiments.AS_THEY_ARE
    return transformer_of(wildcards) if is_adapted else []


def transformer_options(wildcards):
    """Wan-I2V is sampled as a whole, by diffusers' own pipeline."""
    is_baseline = setting_of(wildcards).model == pusa_experiments.WAN_I2V
    return [] if is_baseline else ["--transformer", transformer_of(wildcards)]


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


def task_clip_options(wildcards, input):
    """Which clips of the folder: all, or those that training left out, by the cache."""
    options = ["--clips", TASK_CLIPS]
    if input.cache:
        held_out = TRAIN["validation_clips"]
        options += ["--cache", RESULTS / "cache", "--held-out", held_out]
    return options


def task_sentence():
    """The setting of the task's videos, and where their clips are from."""
    source = (
        f"The clips are of {config['tasks']['dataset']}."
        if "dataset" in config["tasks"]
        else "The clips were held out from training."
    )
    return f"{setting_sentence()} {source}"


def task_videos(task):
    """The videos of a task, which lie beside their list."""
    folder = RESULTS / "samples/tasks" / task
    return [folder / f"{n:04d}.mp4" for n in range(1, TASK_CLIPS + 1)]


def adapted_options():
    """The main setting's weights: a LoRA that is not merged, or a whole transformer."""
    file = trained_file(MAIN.run, MAIN.iteration)
    if MAIN.rank is None:
        return ["--transformer", file]
    return ["--lora", file, "--lora-scale", MAIN.alpha]


def pipeline_options():
    """How every video of the main setting is sampled."""
    return (
        f"--steps {MAIN.steps} --shift {SAMPLE['shift']}"
        f" --guidance-scale {SAMPLE['guidance_scale']} --seed {SAMPLE['seed']}"
        f" --dtype {SAMPLE['dtype']} --device {config['device']}"
    )


def setting_sentence():
    """How the main setting's videos were made, for the notes under figures."""
    return (
        f"This run: {MAIN.label}, guidance {SAMPLE['guidance_scale']:g}; {CLIP['frames']} frames"
        f" of {CLIP['width']}x{CLIP['height']}; {MODEL}."
    )


def baseline_sentence():
    """What Wan-I2V is in this run, should it be another model than the paper's."""
    if not WITH_BASELINE or config["baseline"]["source"] != "tiny":
        return ""
    return " Wan-I2V of this run is a tiny model in its manner, trained from the same base."


def compared_sentence():
    """How the videos of all compared models were made."""
    if not WITH_BASELINE:
        return setting_sentence()
    label, scale = shown_settings()[1].label, config["baseline"]["guidance_scale"]
    return f"{setting_sentence()} {label}, guidance {scale:g}.{baseline_sentence()}"


def analysed_sentence():
    """How the models of Figures 4 and 5 were made, which all run as the main setting does."""
    return f"{setting_sentence()}{baseline_sentence()}"


def negative_prompt_options(wildcards, input):
    file = input.negative_prompt
    return ["--negative-prompt-file", file] if file else []


def first_image_options(wildcards, input):
    """The first image and prompt of Figure 3, for Figure 4; not known before the suite is there."""
    from pusa.figures.strips import figure3_prompts  # matplotlib, for this rule alone

    Path(input.suite).stat()  # its FileNotFoundError tells Snakemake so
    taken = pusa_suite.read_suite(
        SUITE, height=CLIP["height"], width=CLIP["width"], counts=SUBSET
    )
    first = figure3_prompts(taken)[0]
    return ["--image", first.image, "--prompt", first.prompt]


def shown_settings():
    """What figures compare: the base, Wan-I2V where the sheet has it, the adapted model."""
    base = pusa_experiments.base_setting(MAIN)
    settings = SETTINGS["tables"].values()
    baseline = [s for s in settings if s.model == pusa_experiments.WAN_I2V]
    return [base, *baseline[:1], MAIN]


def shown_models():
    return [setting.model for setting in shown_settings()]


def shown_weights(wildcards):
    """What a compared model needs beyond the base model."""
    if wildcards.model == pusa_experiments.WAN_I2V:
        return BASELINE / "model_index.json"
    is_base = wildcards.model == pusa_experiments.BASE
    return [] if is_base else trained_file(MAIN.run, MAIN.iteration)


def shown_name_options(wildcards):
    labels = {s.model: s.label.split(",")[0] for s in shown_settings()}
    return ["--label", labels[wildcards.model]]


def trained_clips_options(wildcards, input):
    """How many clips were trained on, of those in the cache; not known before it is there."""
    if not TRAINED:
        return ""
    cached = json.loads(Path(input.cache).read_text())["clips"]
    return f"--clips {len(cached) - TRAIN['validation_clips']}"


def attention_steps():
    """Four steps from the first to the last: 0, 3, 6 and 9 of 10."""
    steps = {round(n * (MAIN.steps - 1) / 3) for n in range(4)}
    return " ".join(f"--step {step}" for step in sorted(steps))


def attention_options(wildcards):
    if wildcards.model == pusa_experiments.WAN_I2V:
        return ["--baseline", BASELINE]
    return [] if wildcards.model == pusa_experiments.BASE else adapted_options()


def drift_options(wildcards):
    if wildcards.model == pusa_experiments.WAN_I2V:
        return ["--other", BASELINE / "transformer"]
    weights = trained_file(MAIN.run, MAIN.iteration)
    if MAIN.rank is None:
        return ["--other", weights]
    return ["--lora", weights, "--scale", MAIN.alpha]


def sample_figures():
    """The setting whose videos Figures 6 and 13 show; 13 needs a row of text-to-video."""
    text_to_video = replace(MAIN, task="t2v")
    figures = {6: MAIN, 13: text_to_video}
    return {n: s for n, s in figures.items() if s.name in SETTINGS["tables"]}


def figure_files():
    """All figures that the configuration allows, and what they are drawn from."""
    numbers = [1, 3, 4, 5, *sample_figures(), *(task.figure for task in TASKS.values())]
    names = [f"figure{n}" for n in sorted(numbers)] + ["contact_sheet"]
    names += ["scores"] if (EXPERIMENTS["table"] == "2").any() else []
    names += ["losses"] if TRAINED else []
    return [
        expand(RESULTS / "figures/{name}.{kind}", name=names, kind=["png", "pdf"]),
        RESULTS / "figures/contact_sheet.mp4",
        TASK_MANIFESTS,
        expand(rules.measure_attention.output, model=shown_models()),
        expand(rules.measure_drift.output, model=shown_models()[1:]),
    ]


def gpus_of_stages():
    """GPUs of one job of each rule that uses any, for the costs."""
    stages = ["cache_latents", "cache_prompts", "sample_videos"]
    stages += ["sample_task", "measure_attention"]
    stages += ["score_videos"] if VBENCH else []
    return (
        {"train_lora": TRAIN["nodes"] * TRAIN["processes"], **dict.fromkeys(stages, 1)}
        if GPU
        else {}
    )


def benchmark_files():
    """Of the jobs behind tables and figures, so that costs are added up after all of them."""
    jobs = [f"train_lora/{run.name}" for run in lora_logs("tables", "")]
    if WITH_BASELINE and config["baseline"]["source"] == "tiny":
        jobs.append("train_tiny_baseline")
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
    jobs += [f"sample_task/{task}" for task in TASKS]
    jobs += [f"measure_attention/{model}" for model in shown_models()]
    jobs += [f"measure_drift/{model}" for model in shown_models()[1:]]
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
        f" {sizes} {samples}.{baseline_sentence() if study == 'tables' else ''}"
    )
