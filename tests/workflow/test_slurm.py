"""The workflow through sbatch, on a real Slurm that is started for these tests."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from tests.local_slurm import local_slurm, why_not
from tests.mini import ROOT, activated, command, snakemake, write_mini

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.skipif(why_not() is not None, reason=f"Slurm {why_not()}"),
]
# The profile asks Slurm every minute, and tries four times; its other lines hold as they are.
PROFILE = ("--profile", "slurm", "--slurm-init-seconds-before-status-checks", "2")
ONCE = (*PROFILE, "--retries", "0")
SECONDS_TO_WAIT = 300


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment of a Slurm that leaves it to the trainer to keep to its time limit."""
    folder = tmp_path_factory.mktemp("slurm") / "daemons"
    with local_slurm(folder, nodes=2, over_time_limit=9) as environment:
        yield activated(environment)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Holds the latents that the first test caches, for the others."""
    return tmp_path_factory.mktemp("results")


@contextmanager
def running(cluster, config: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen, Path]]:
    """Snakemake at work, and its output; interrupted if it still is when the block is left."""
    output = config.with_suffix(".log")
    with output.open("w") as file:
        process = subprocess.Popen(
            command(config, *arguments), cwd=ROOT, env=cluster, stdout=file, stderr=file
        )
    try:
        yield process, output
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, output: Path) -> None:
    """Wait until a condition holds, while Snakemake is at work."""
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, output.read_text()[-4000:]
        time.sleep(0.2)


def logged(run: Path) -> pd.DataFrame:
    """Complete rows of a training's log, while it is at work."""
    file = run / "training.csv"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return pd.DataFrame([line.split(",") for line in lines[1:] if line.endswith("\n")])


def slurm_jobs(cluster, state: str, show: str = "%A") -> list[str]:
    """One value for each job in a state, the latest first."""
    listed = ["squeue", "--noheader", f"--format={show}", f"--states={state}", "--sort=-i"]
    return subprocess.check_output(listed, env=cluster, text=True).split()


def test_workflow_goes_through_sbatch_to_its_tables(cluster, results):
    """Its training runs on two nodes."""
    table = results / "tables/table1.csv"
    config = write_mini(results, train={"nodes": 2, "processes": 1})
    finished = snakemake(config, *ONCE, "--", str(table), environment=cluster)
    assert finished.returncode == 0, finished.stdout[-4000:]
    ours = "pusa, rank 4, iteration 4, alpha 1.4, 2 steps"
    assert ours in set(pd.read_csv(table)["model"])
    # every step was a job of Slurm's, but for those that put two files of scores together
    steps = int(re.search(r"of (\d+) steps", finished.stdout)[1])
    local = re.findall(r"^localrule (\w+):", finished.stdout, re.MULTILINE)
    assert set(local) == {"gather_scores"}
    jobs = sorted(slurm_jobs(cluster, "completed", "%D"))
    assert jobs == ["1"] * (steps - len(local) - 1) + ["2"]


def test_next_attempt_of_a_training_goes_on(cluster, results):
    """Stopped first by its own budget, then killed: `retries` submits it again, both times."""
    name = "pusa-rank4-seed1"
    train = {"seed": 1, "checkpoint_every": 1}
    config = write_mini(results, "long", iteration=100_000, train=train)
    state, log = results / "training" / name, results / f"logs/train/{name}.log"
    limits = ("--retries", "2", "--set-resources", "train_pusa_rank4_seed1:runtime=1")
    target = str(results / "trained" / name / "training.csv")
    with running(cluster, config, *PROFILE, *limits, "--", target) as snakemake:
        stopped = "with its 1 minutes nearly over"
        wait_for(lambda: log.exists() and stopped in log.read_text(), *snakemake)
        first = logged(state)
        wait_for(lambda: len(logged(state)) > len(first), *snakemake)
        assert logged(state)[: len(first)].equals(first)

        (job,) = slurm_jobs(cluster, "running")
        subprocess.run(["scancel", "--signal=KILL", f"{job}.0"], env=cluster, check=True)
        wait_for(lambda: job in slurm_jobs(cluster, "failed"), *snakemake)
        second = logged(state)
        wait_for(lambda: len(logged(state)) > len(second), *snakemake)
        # its last iteration may have been logged and not yet checkpointed
        kept = len(second) - 1
        assert kept >= len(first) and logged(state)[:kept].equals(second[:kept])


def test_second_call_finishes_what_was_cancelled(cluster, results):
    name = "pusa-rank4-seed2"
    config = write_mini(results, "short", iteration=40, train={"seed": 2, "checkpoint_every": 5})
    out, state = results / "trained" / name, results / "training" / name
    target = str(out / "training.csv")
    with running(cluster, config, *ONCE, "--", target) as (process, output):
        wait_for(lambda: len(logged(state)) > 5, process, output)
        (job,) = slurm_jobs(cluster, "running")
        subprocess.run(["scancel", job], env=cluster, check=True)
        assert process.wait(SECONDS_TO_WAIT) == 1
    assert f"SLURM-job '{job}' failed, SLURM status is: 'CANCELLED'" in output.read_text()
    assert not (out / "training.csv").exists()

    first = logged(state)
    finished = snakemake(config, *ONCE, "--", target, environment=cluster)
    assert finished.returncode == 0, finished.stdout[-4000:]
    assert logged(out)[0].astype(int).tolist() == list(range(1, 41))
    checkpointed = len(first) // 5 * 5
    assert logged(out)[:checkpointed].equals(first[:checkpointed])
    assert (out / "iteration_40.safetensors").exists()


def test_jobs_are_not_lost_while_the_controller_is_away(cluster, results):
    name = "pusa-rank4-seed3"
    config = write_mini(results, "away", iteration=20, train={"seed": 3, "checkpoint_every": 5})
    state, out = results / "training" / name, results / "trained" / name
    controller = int(Path(cluster["SLURM_CONF"]).with_name("slurmctld.pid").read_text())
    with running(cluster, config, *ONCE, "--", str(out / "training.csv")) as (process, output):
        wait_for(lambda: len(logged(state)) > 2, process, output)
        os.kill(controller, signal.SIGSTOP)
        try:
            wait_for(lambda: "Slurm does not answer" in output.read_text(), process, output)
        finally:
            os.kill(controller, signal.SIGCONT)
        assert process.wait(SECONDS_TO_WAIT) == 0, output.read_text()[-4000:]
    assert len(logged(out)) == 20
