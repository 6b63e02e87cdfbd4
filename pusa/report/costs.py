"""What a run took: GPU-hours and money per stage, added up from Snakemake's benchmark files."""

from pathlib import Path

import pandas as pd

TRAINING = "train"
#: What is counted, for readers.
ATTEMPTS = (
    "A training counts with all its attempts; of other jobs the attempt that finished, on Slurm "
    "sacct has the rest."
)


def measure_costs(
    benchmarks: str | Path,
    runs: list[Path],
    *,
    gpus: dict[str, int],
    main_run: str,
    usd_per_gpu_hour: float | None,
) -> pd.DataFrame:
    """Hours, GPU-hours and cost of every stage, and of the main model's training alone.

    A benchmark file times the attempt that finished. A training may have taken several; its
    log counts the seconds of all of them, each up to the last iteration that it logged. A job whose
    benchmark was deleted counts nowhere, but for a training, by its log.

    Args:
        benchmarks: folder with a ``<stage>.tsv``, or a folder ``<stage>`` of such, per stage.
        runs: folders of the training runs, with their ``training.csv``.
        gpus: GPUs of one job of each stage; none where a stage is not named.
        main_run: name of the run that the main setting's weights come from.

    Returns:
        Columns ``stage, jobs, hours, gpu_hours, usd``, with a last row ``total``. ``usd`` is
        empty where no price is given.
    """
    benchmarks = Path(benchmarks)
    stages = {Path(TRAINING): []} if runs else {}
    for file in sorted(benchmarks.rglob("*.tsv")):
        stages.setdefault(Path(file.relative_to(benchmarks).parts[0]), []).append(file)
    rows = []
    for entry, files in sorted(stages.items()):
        # Jobs by their path: shards of all settings have the same file names.
        stage, seconds = entry.stem, {f.relative_to(benchmarks): job_seconds(f) for f in files}
        if stage == TRAINING:
            for run in runs:
                job = Path(stage, f"{run.name}.tsv")
                seconds[job] = training_seconds(benchmarks / job, run)
            mine = {job: s for job, s in seconds.items() if job.stem == main_run}
            rows.append(_row(f"{stage}: {main_run}", mine, gpus.get(stage, 0)))
        rows.append(_row(stage, seconds, gpus.get(stage, 0)))
    table = pd.DataFrame(rows, columns=["stage", "jobs", "hours", "gpu_hours"])
    stages = table[~table["stage"].str.contains(": ")]
    total = {"stage": "total", **stages[["jobs", "hours", "gpu_hours"]].sum()}
    table = pd.concat([table, pd.DataFrame([total])]).astype({"jobs": int})
    return table.assign(
        usd=None if usd_per_gpu_hour is None else table["gpu_hours"] * usd_per_gpu_hour
    )


def _row(stage: str, seconds: dict[Path, float], gpus: int) -> dict:
    hours = sum(seconds.values()) / 3600
    return {"stage": stage, "jobs": len(seconds), "hours": hours, "gpu_hours": hours * gpus}


def job_seconds(file: Path) -> float:
    """How long a job took, by Snakemake's benchmark of it."""
    return float(pd.read_csv(file, sep="\t")["s"].sum())


def training_seconds(file: Path, run: Path) -> float:
    """How long all attempts of a training took, by its benchmark and its log."""
    logged = float(pd.read_csv(run / "training.csv")["elapsed_seconds"].iloc[-1])
    return max(job_seconds(file), logged) if file.exists() else logged


def describe_costs(costs: pd.DataFrame) -> str:
    """One sentence for a caption: the main model's training, and everything."""
    total = costs[costs["stage"] == "total"].iloc[0]
    training = costs[costs["stage"].str.startswith(f"{TRAINING}: ")]
    parts = [("everything in this folder", total)]
    if not training.empty:
        parts.insert(0, ("training this model", training.iloc[0]))
    told = "; ".join(f"{what} took {_amount(row)}" for what, row in parts)
    return f"Cost: {told} (the paper states about $500 for training its model)."


def _amount(row: pd.Series) -> str:
    if not row["gpu_hours"]:
        return f"{row['hours']:.2f} hours of jobs without a GPU"
    price = "" if pd.isna(row["usd"]) else f", ${row['usd']:,.2f}"
    return f"{row['gpu_hours']:,.1f} GPU-hours{price}"
