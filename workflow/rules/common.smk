# Configuration and experiments sheet, checked, and what rules of all stages share.
import sys
from pathlib import Path

from snakemake.cli import parse_args
from snakemake.exceptions import WorkflowError

from pusa.score import arithmetic as pusa_aggregate
from pusa import config as pusa_config
from pusa import experiments as pusa_experiments
from pusa.models import folder as pusa_model_folder
from pusa.report import plan as pusa_plan
from pusa.data import suite as pusa_suite
from pusa.sample import tasks as pusa_tasks

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
    # A downloaded folder may have been copied here by hand, and not whole.
    DOWNLOADED = Path(config["model"]["path"]) / "download.json"
    if config["model"]["source"] == "folder" or DOWNLOADED.exists():
        pusa_model_folder.check_model_folder(config["model"]["path"])
    # Wan-I2V, which the paper compares with, where the sheet has a row of it.
    WITH_BASELINE = pusa_experiments.asks_for_baseline(EXPERIMENTS)
    if WITH_BASELINE:
        DOWNLOADED = Path(config["baseline"]["path"]) / "download.json"
        if config["baseline"]["source"] == "folder" or DOWNLOADED.exists():
            pusa_model_folder.check_baseline_folder(config["baseline"]["path"])
    # Prompts of each kind, in the whole suite and in the sheet's subset of it.
    PROMPTS = pusa_config.prompt_counts(config)
    pusa_tasks.check_clips(config)
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
BASELINE = Path(config["baseline"]["path"]) if WITH_BASELINE else None
LORA = config["lora"]
DATASET = Path(config["dataset"]["path"]) if TRAINED else None
SUITE = Path(config["suite"]["path"])
SUITE_INFO = SUITE / "vbench2_i2v_full_info.json"
TRAIN = config["train"]
SAMPLE = config["sample"]
SCORE = config["score"]
VBENCH = SCORE["scorer"] == "vbench"
WEIGHTS = Path(SCORE["weights"])
# Jobs that score one and the same videos: VBench's nine, each with networks of its own.
SCORED = pusa_aggregate.NAMES if VBENCH else ["all"]
CLIP = config["clip"]
GPU = config["device"] == "cuda"
# The prompts of rows that say subset.
SUBSET = PROMPTS["subset"]


wildcard_constraints:
    study="tables|effects",
    run=r"[a-z0-9_]+-(rank\d+|full)-seed\d+",
    setting=r"[a-z0-9_.-]+",
    dimension="[a-z0-9_]+",
    shard=r"\d+",
    task="[a-z0-9_]+",
    model="[a-z0-9_]+",


def on(gpu, cpu):
    """What a job asks a cluster for, on a GPU with the paper's model or on a CPU with a tiny one.

    On a CPU no memory is asked for, which 0 stands for: a node of unknown size refuses any.
    """
    return gpu if GPU else cpu


# Minutes and megabytes of the steps that take seconds.
SMALL = {"mem_mb": on(gpu=4_000, cpu=0), "runtime": 30}


if workflow.is_main_process:
    # Whether jobs will run is not known yet while rules are read, but for the command line.
    _, arguments = parse_args(sys.argv[1:])
    if arguments.dryrun:
        plan = pusa_plan.describe_plan(config, EXPERIMENTS, PROMPTS)
        print(plan, file=sys.stderr)

    # Videos are not outputs, so that an interrupted job keeps those it finished; but when one is
    # deleted later, its manifest goes too, so that the job runs again and makes just that one.
    looks = ("dryrun", "lint", "summary", "detailed_summary", "report", "unlock")
    if not any(getattr(arguments, mode) for mode in looks):
        for _manifest in RESULTS.glob("samples/*/*/*.csv"):
            if not pusa_suite.is_complete(_manifest):
                _manifest.unlink()
