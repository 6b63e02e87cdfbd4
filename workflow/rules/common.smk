# Configuration, experiments sheet, and the look-ups that rules share.
import json
import sys
from pathlib import Path

from snakemake.cli import parse_args
from snakemake.exceptions import WorkflowError

from pusa import config as pusa_config
from pusa import experiments as pusa_experiments
from pusa import model_folder as pusa_model_folder
from pusa import plan as pusa_plan
from pusa import suite as pusa_suite

PUBLISHED = {n: f"config/published/table{n}.csv" for n in (1, 2)}
SCHEMA = workflow.source_path("../schemas/config.schema.yaml")
try:
    pusa_config.check_config(config, SCHEMA)
    TRAINED = config["lora"]["source"] == "trained"
    SEED = config["train"]["seed"] if TRAINED else None
    EXPERIMENTS = pusa_experiments.read_experiments(config["experiments"], seed=SEED)
    pusa_experiments.check_available(EXPERIMENTS, config)
    pusa_experiments.require_base(EXPERIMENTS)
    pusa_experiments.check_published(EXPERIMENTS, PUBLISHED[1], PUBLISHED[2])
    # A downloaded folder may have been copied here by hand.
    downloaded = Path(config["model"]["path"]) / "download.json"
    if config["model"]["source"] == "folder" or downloaded.exists():
        pusa_model_folder.check_model_folder(config["model"]["path"])
    # Prompts of each kind, in the whole suite and in the sheet's subset of it.
    PROMPTS = pusa_config.prompt_counts(config)
except (ValueError, FileNotFoundError) as error:
    raise WorkflowError(str(error))

# Two studies share every rule: the tables, and the effects over several training seeds.
SETTINGS = {
    "tables": pusa_experiments.unique_settings(EXPERIMENTS),
    "effects": pusa_experiments.settings_over_seeds(
        EXPERIMENTS, config["effects"]["seeds"]
    ),
}
PROMPT_SETS = pusa_experiments.prompt_sets(EXPERIMENTS)
MAIN = pusa_experiments.main_setting(EXPERIMENTS)
RESULTS = Path(config["results"])
MODEL = Path(config["model"]["path"])
LORA = config["lora"]
DATASET = Path(config["dataset"]["path"]) if TRAINED else None
SUITE = Path(config["suite"]["path"])
SUITE_INFO = SUITE / "vbench2_i2v_full_info.json"
TRAIN = config["train"]
SAMPLE = config["sample"]
CLIP = config["clip"]
GPU = config["device"] == "cuda"
# The suite as all rows ask for it; `pusa` takes the whole suite where no counts are given.
SUBSET = PROMPTS["subset"]


wildcard_constraints:
    study="tables|effects",
    run=r"[a-z0-9_]+-(rank\d+|full)-seed\d+",
    setting=r"[a-z0-9_.-]+",
    shard=r"\d+",


def size_options():
    return f"--height {CLIP['height']} --width {CLIP['width']}"


def clip_options():
    return f"--frames {CLIP['frames']} {size_options()}"


def on(gpu, cpu):
    """What a job asks a cluster for, on a GPU with the paper's model or on a CPU with a tiny one.

    On a CPU no memory is asked for, which 0 stands for: a node of unknown size refuses any.
    """
    return gpu if GPU else cpu


# Minutes and megabytes of the steps that take seconds.
SMALL = {"mem_mb": on(gpu=4_000, cpu=0), "runtime": 30}


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
    return [
        Path(config[section]["path"]) / "download.json"
        for section, needed in sections.items()
        if needed
    ]


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


def setting_shards(kind, study, name):
    """A file of every job of a setting: its videos' list in samples, or their scores."""
    folder = RESULTS / kind / study / name
    return [folder / f"shard{n}.csv" for n in range(shards(study, name))]


def manifests(study):
    return [
        file for n in SETTINGS[study] for file in setting_shards("samples", study, n)
    ]


def score_files(study):
    return [RESULTS / "scores" / study / f"{name}.csv" for name in SETTINGS[study]]


def gpus_of_stages():
    """GPUs of one job of each rule that uses any, for the costs."""
    stages = ("cache_latents", "cache_prompts", "sample_videos")
    return (
        {"train_lora": TRAIN["nodes"] * TRAIN["processes"], **dict.fromkeys(stages, 1)}
        if GPU
        else {}
    )


def benchmark_files():
    """Of the jobs behind the tables, so that costs are added up after them."""
    folder = RESULTS / "benchmarks"
    names = SETTINGS["tables"]
    return [
        *(folder / f"train_lora/{run.name}.tsv" for run in lora_logs("tables", "")),
        *(
            folder / f"{rule}/tables/{name}/shard{n}.tsv"
            for rule in ("sample_videos", "score_videos")
            for name in names
            for n in range(shards("tables", name))
        ),
    ]


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
        f"Made by `snakemake effects` over {len(seeds)} training seeds; `seed sd` is the standard"
        " deviation of a difference over them. "
        if study == "effects"
        else ""
    )
    return made + (
        f"This run: {MODEL}, {CLIP['frames']} frames of {CLIP['width']}x{CLIP['height']},"
        f" {sizes} {samples}."
    )


# Whether jobs will run is not known yet while rules are read, but for the command line.
_, ARGUMENTS = parse_args(sys.argv[1:])
LOOKS_ONLY = any(
    getattr(ARGUMENTS, mode)
    for mode in ("dryrun", "lint", "summary", "detailed_summary", "report", "unlock")
)

if ARGUMENTS.dryrun and workflow.is_main_process:
    plan = pusa_plan.describe_plan(config, EXPERIMENTS, PROMPTS)
    print(plan, file=sys.stderr)

# Videos are not outputs, so that an interrupted job keeps those it finished; but when one is
# deleted later, its manifest goes too, so that the job runs again and makes just that one.
if workflow.is_main_process and not LOOKS_ONLY:
    for _manifest in RESULTS.glob("samples/*/*/shard*.csv"):
        if not pusa_suite.is_complete(_manifest):
            _manifest.unlink()
