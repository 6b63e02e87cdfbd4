# Configuration, experiments sheet, and the look-ups that rules share.
from pathlib import Path

from snakemake.exceptions import WorkflowError

from pusa import config as pusa_config
from pusa import experiments as pusa_experiments
from pusa import model_folder as pusa_model_folder
from pusa import suite as pusa_suite

PUBLISHED = {n: f"config/published/table{n}.csv" for n in (1, 2)}
SCHEMA = workflow.source_path("../schemas/config.schema.yaml")
try:
    pusa_config.check_config(config, SCHEMA)
    EXPERIMENTS = pusa_experiments.read_experiments(
        config["experiments"], seed=config["train"]["seed"]
    )
    pusa_experiments.check_trained(
        EXPERIMENTS,
        models=list(config["train"]["models"]),
        ranks=config["train"]["ranks"],
        iterations=config["train"]["iterations"],
    )
    # Two studies share every rule: the tables, and the effects over several training seeds.
    SETTINGS = {
        "tables": pusa_experiments.unique_settings(EXPERIMENTS),
        "effects": pusa_experiments.settings_over_seeds(
            EXPERIMENTS, config["effects"]["seeds"]
        ),
    }
    MAIN = pusa_experiments.main_setting(EXPERIMENTS)
    if config["model"]["source"] == "folder":
        pusa_model_folder.check_model_folder(config["model"]["path"])
    pusa_experiments.require_base(EXPERIMENTS)
    pusa_experiments.check_published(EXPERIMENTS, PUBLISHED[1], PUBLISHED[2])
except (ValueError, FileNotFoundError) as error:
    raise WorkflowError(str(error))

RESULTS = Path(config["results"])
MODEL = Path(config["model"]["path"])
PROMPTS = {
    "tables": config["suite"].get("prompts"),
    "effects": config["effects"].get("prompts"),
}
TRAIN = config["train"]
SAMPLE = config["sample"]
CLIP = config["clip"]
SHARDS = range(SAMPLE["shards"])


wildcard_constraints:
    study="tables|effects",
    run=r"[a-z0-9_]+-rank\d+-seed\d+",
    setting=r"[a-z0-9_.-]+",
    shard=r"\d+",


def size_options():
    return f"--height {CLIP['height']} --width {CLIP['width']}"


def clip_options():
    return f"--frames {CLIP['frames']} {size_options()}"


def prompt_options(study):
    counts = PROMPTS[study]
    return (
        ""
        if counts is None
        else " ".join(f"--{kind} {n}" for kind, n in counts.items())
    )


def run_options(wildcards):
    model, rank, seed = wildcards.run.rsplit("-", 2)
    p_async = TRAIN["models"][model]["p_async"]
    return f"--rank {rank.removeprefix('rank')} --seed {seed.removeprefix('seed')} --p-async {p_async}"


def setting_of(wildcards):
    return SETTINGS[wildcards.study][wildcards.setting]


def setting_options(wildcards):
    setting = setting_of(wildcards)
    return f"--task {setting.task} --steps {setting.steps}"


def lora_of(wildcards):
    setting = setting_of(wildcards)
    return RESULTS / "lora" / setting.run / f"iteration_{setting.iteration}.safetensors"


def lora_logs(study, name):
    runs = {s.run for s in SETTINGS[study].values() if s.model != pusa_experiments.BASE}
    return [RESULTS / "lora" / run / name for run in sorted(runs)]


def lora_files(study):
    return [
        folder / f"iteration_{i}.safetensors"
        for folder in lora_logs(study, "")
        for i in TRAIN["iterations"]
    ]


def transformer_of(wildcards):
    """The transformer folder of a setting: the base's own, or a merged one."""
    if setting_of(wildcards).model == pusa_experiments.BASE:
        return MODEL / "transformer"
    return RESULTS / "merged" / wildcards.study / wildcards.setting


def merged_weights(wildcards):
    """What a setting needs beyond the base model: nothing, or its merged folder."""
    is_base = setting_of(wildcards).model == pusa_experiments.BASE
    return [] if is_base else transformer_of(wildcards)


def effect_seed_options(study):
    """The tables have one training seed; the effects name theirs."""
    if study == "tables":
        return ""
    return " ".join(f"--effect-seed {seed}" for seed in config["effects"]["seeds"])


def figure3_manifests():
    names = [pusa_experiments.base_setting(MAIN).name, MAIN.name]
    return [RESULTS / f"samples/tables/{n}/shard{s}.csv" for n in names for s in SHARDS]


def manifests(study):
    return [
        RESULTS / "samples" / study / name / f"shard{shard}.csv"
        for name in SETTINGS[study]
        for shard in SHARDS
    ]


def score_files(study):
    return [RESULTS / "scores" / study / f"{name}.csv" for name in SETTINGS[study]]


def scale_sentence(study):
    """One sentence on how large this run is, for the captions of tables."""
    counts = PROMPTS[study]
    prompts = "all prompts" if counts is None else f"{sum(counts.values())} prompts"
    return (
        f"This run: {MODEL}, {CLIP['frames']} frames of {CLIP['width']}x{CLIP['height']},"
        f" {prompts} with {SAMPLE['samples']} sample(s) each."
    )


# Videos are not outputs, so that an interrupted job keeps those it finished; but when one is
# deleted later, its manifest goes too, so that the job runs again and makes just that one.
if workflow.is_main_process and not workflow.dryrun:
    for _manifest in RESULTS.glob("samples/*/*/shard*.csv"):
        if not pusa_suite.is_complete(_manifest):
            _manifest.unlink()
