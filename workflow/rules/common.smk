# Configuration and experiments sheet, checked, and what rules of all stages share.
import json
from pathlib import Path
from shlex import quote

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

from pusa.config import (
    ImageSize,
    SampleSwitches,
    Size,
    SuiteSettings,
    VideoSettings,
    Weights,
    read_config,
)
from pusa.digests import digest_files
from pusa.experiments import BOUNDS, WAN_I2V
from pusa.layout import PACKAGE, find_shipped, read_layout
from pusa.report import captions
from pusa.data.listed import GALLERY
from pusa.sample.tasks import TASKS

try:
    FILES = read_layout(read_config(config), home=HOME)
except (ValueError, FileExistsError, FileNotFoundError) as error:
    raise WorkflowError(str(error))
CONFIG = FILES.config
config.update(CONFIG.model_dump())  # with defaults, for the report's captions

TRAINED, VBENCH = CONFIG.is_trained, CONFIG.score.scorer == "vbench"
SUITE, MODEL = CONFIG.suite.path, CONFIG.model.path
SEED = CONFIG.train.seed if TRAINED else None
DATASET = CONFIG.dataset.path if TRAINED else None
# Sections as a command takes them: each job is handed what it depends on and no more.
CLIP = CONFIG.clip.model_dump_json()
SIZE = CONFIG.clip.part(Size).model_dump_json()
IMAGE_SIZE = CONFIG.clip.part(ImageSize).model_dump_json()

# What comes with a checkout is newer than results that a copy of it stands beside, and may well be
# the same. It is compared by its content: these here, a model by what was made from it.
SHIPPED = digest_files([CONFIG.experiments, FILES.claims, *FILES.published.values()])

# How videos are sampled, beside what decides them.
SWITCHES = CONFIG.sample.part(SampleSwitches).model_dump_json()


wildcard_constraints:
    study="tables|effects|first_look",
    setting=r"[a-z0-9_.-]+",
    bound="|".join(BOUNDS),
    dimension="[a-z0-9_]+",
    shard=r"\d+",
    task="[a-z0-9_]+",
    model="[a-z0-9_]+",


def on(gpu, cpu):
    """What a job asks a cluster for, on a GPU with the paper's model or on a CPU with a tiny one.

    On a CPU no memory is asked for, which 0 stands for: a node of unknown size refuses any.
    """
    return gpu if CONFIG.device == "cuda" else cpu


# Minutes and megabytes of the steps that take seconds.
SMALL = {"mem_mb": on(gpu=4_000, cpu=0), "runtime": 30}


def setting_of(wildcards):
    return FILES.settings[wildcards.study][wildcards.setting]


def suite_settings(wildcards):
    """What the videos of a setting are made with; Wan-I2V has a guidance of its own."""
    setting = setting_of(wildcards)
    section = CONFIG.baseline if setting.model == WAN_I2V else CONFIG.sample
    return CONFIG.sample.part(
        SuiteSettings,
        **CONFIG.clip.part(Size).model_dump(),
        task=setting.task,
        steps=setting.steps,
        samples=FILES.samples_each(wildcards.study),
        guidance_scale=section.guidance_scale,
    ).model_dump_json()


def model_of(wildcards):
    """The model that a setting is sampled with, which a tiny baseline's training may make anew."""
    setting = setting_of(wildcards)
    index = f"{FILES.setting_model(setting)}/model_index.json"
    made_here = setting.model == WAN_I2V and FILES.trains_baseline
    return index if made_here else ancient(index)


def transformer_options(wildcards):
    """Wan-I2V is sampled as a whole, by diffusers' own pipeline."""
    setting = setting_of(wildcards)
    folder, lora = FILES.setting_transformer(setting), FILES.setting_lora(setting)
    return [
        *(["--transformer", folder] if folder else []),
        *(["--lora", f"{lora}:{setting.alpha}"] if lora else []),
    ]


def pipeline_weights(*loras, transformer=None):
    return Weights(
        lora=list(loras), transformer=transformer, dtype=CONFIG.sample.dtype
    ).model_dump_json()


def scored_manifests(wildcards):
    """The lists of the videos that a scoring job takes: whole sampling jobs."""
    place = (wildcards.study, wildcards.setting)
    return FILES.setting_manifests(*place)[
        int(wildcards.shard) :: FILES.score_shards(*place)
    ]


def study_params(study):
    """What scripts read the scores of a study by."""
    return {
        "sheet": CONFIG.experiments,
        "folder": FILES.path("scores", study),
        # The tables have one training seed; the effects name theirs.
        "seeds": CONFIG.effects.seeds if study == "effects" else [SEED],
        "subset": FILES.subset(study),
    }


def folders_of(wildcards, input):
    return list(dict.fromkeys(str(Path(file).parent) for file in input))


def weights_of(wildcards):
    """What a compared model needs beyond the base model."""
    if wildcards.model == WAN_I2V:
        return f"{CONFIG.baseline.path}/model_index.json"
    return FILES.main_weights if wildcards.model == FILES.main.model else []


def label_options(wildcards):
    labels = {s.model: s.model_label for s in FILES.compared}
    return ["--label", labels[wildcards.model]]


def drift_options(wildcards):
    if wildcards.model == WAN_I2V:
        return ["--other", f"{CONFIG.baseline.path}/transformer"]
    if FILES.main.rank is None:
        return ["--other", FILES.main_weights]
    return ["--lora", FILES.main_weights, "--lora-scale", FILES.main.alpha]


def shown_samples(*settings):
    return {
        "suite": FILES.suite_info,
        "samples": [
            f for s in settings for f in FILES.setting_manifests("tables", s.name)
        ],
    }


# Where jobs find their environments: Snakemake's own, conda's, or the image's.
SDM = workflow.deployment_settings.deployment_method
CONDA = DeploymentMethod.CONDA in SDM
APPTAINER = DeploymentMethod.APPTAINER in SDM
IMAGE = find_shipped("envs/pusa.sif", HOME)

if CONDA and APPTAINER:
    raise WorkflowError(
        "--sdm: found conda and apptainer, expected one of them: the image has its environments"
    )
if APPTAINER and not Path(IMAGE).is_file():
    raise WorkflowError(
        f"--sdm apptainer: found no image {IMAGE}, expected the one that envs/Dockerfile makes; "
        "docs/cluster.md has the commands"
    )


containerized: IMAGE


# Every job but downloads runs with the hub switched off; a user's own HF_HUB_OFFLINE is kept for
# those.
PREFIX = "export PUSA_HUB_OFFLINE=${{HF_HUB_OFFLINE:-0}} HF_HUB_OFFLINE=1; set -euo pipefail; "
if CONDA:
    # Conda's environments lack this package. They find the one that is read here in a folder that
    # has nothing else of its environment.
    ALONE = Path(".snakemake/package").absolute()
    if workflow.is_main_process:
        ALONE.mkdir(parents=True, exist_ok=True)
        (ALONE / "pusa").unlink(missing_ok=True)
        (ALONE / "pusa").symlink_to(PACKAGE / "pusa")
    PREFIX += f"export PYTHONPATH={quote(str(ALONE))}; "
shell.prefix(PREFIX)
