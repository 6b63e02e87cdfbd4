"""Keeps Snakemake's Slurm plugin from losing its jobs while Slurm's controller is away.

Faults of snakemake-executor-plugin-slurm 2.8.0, as docs/slurm-plugin.md reports them, are mended at
the plugin's own functions. Once it does so itself, this module and its call in
workflow/rules/checks.smk go.
"""

import subprocess
import time
from collections.abc import Awaitable, Callable

SECONDS_TO_ASK = 20  # between two looks for a controller that is away

#: The states of jobs by their numbers, and the seconds that the answer took; None without one.
Answer = tuple[dict[str, str] | None, float | None]


def be_patient() -> None:
    """Have the plugin keep its jobs when Slurm does not answer, and submit none meanwhile."""
    import snakemake_executor_plugin_slurm as plugin

    plugin.query_job_status = _keeping(plugin.query_job_status)
    plugin.Executor.run_jobs = _waiting(plugin.Executor.run_jobs)


def _keeping(query: Callable[..., Awaitable[Answer]]) -> Callable[..., Awaitable[Answer]]:
    """After a query that fails the plugin forgets all jobs; one that tells of none keeps them."""
    preempted: set[str] = set()

    async def query_job_status(command, logger) -> Answer:
        states, seconds = await query(command, logger)
        if states is None:
            logger.warning("Slurm does not answer; its jobs are asked for again later.")
            return {}, 0.0
        # One that Slurm means to run again is pending soon; one that it cancelled stays so, for
        # which the plugin waits for ever.
        now = {job for job, state in states.items() if state == "PREEMPTED"}
        states |= dict.fromkeys(now & preempted, "CANCELLED")
        preempted.clear()
        preempted.update(now)
        return states, seconds

    return query_job_status


def _waiting(run_jobs: Callable[..., None]) -> Callable[..., None]:
    """A submission that finds no controller costs a job one of its attempts, within seconds."""

    def patient_run_jobs(self, jobs) -> None:
        if not controller_answers():
            self.logger.warning(f"Slurm's controller is away; {len(jobs)} jobs wait for it.")
            while not controller_answers():
                time.sleep(SECONDS_TO_ASK)
        run_jobs(self, jobs)

    return patient_run_jobs


def controller_answers() -> bool:
    """Whether any of the controllers that ``scontrol ping`` asks is up."""
    asked = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False)
    return " UP" in asked.stdout
