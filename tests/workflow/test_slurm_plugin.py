"""The plugin's own polls and submissions, with programs that answer as Slurm's do."""

import asyncio
import logging
from types import SimpleNamespace

import pytest
import snakemake_executor_plugin_slurm as plugin

from pusa import slurm


class NoLimit:
    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        return None


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Sets what ``squeue`` and ``scontrol`` print, or that they fail."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(plugin, "query_job_status", plugin.query_job_status)
    monkeypatch.setattr(plugin.Executor, "run_jobs", plugin.Executor.run_jobs)

    def set_programs(**answers):
        for name, answer in answers.items():
            printed = "exit 1" if answer is None else f"printf '{answer}'"
            (tmp_path / name).write_text(f"#!/bin/sh\n{printed}\n")
            (tmp_path / name).chmod(0o755)

    set_programs(scontrol="MinJobAge = 300 sec\n")
    return set_programs


@pytest.fixture
def executor(caplog):
    """As much of the plugin's executor as a poll needs, and what it reports."""
    caplog.set_level(logging.WARNING)
    settings = SimpleNamespace(
        init_seconds_before_status_checks=40, status_attempts=2, keep_successful_logs=True
    )
    executor = SimpleNamespace(
        workflow=SimpleNamespace(executor_settings=settings),
        logger=logging.getLogger("test"),
        status_rate_limiter=NoLimit(),
        run_uuid="run",
        get_status_command=lambda: "squeue",
        next_seconds_between_status_checks=40,
        reported=[],
        _preemption_warning=False,
        _status_query_cycle_rows=[],
        _status_query_calls=0,
        _status_query_failures=0,
        _status_query_total_seconds=0.0,
        _status_query_min_seconds=None,
        _status_query_max_seconds=0.0,
    )
    executor.report_job_success = lambda job: executor.reported.append((job.external_jobid, "done"))
    executor.report_job_error = lambda job, **_: executor.reported.append(
        (job.external_jobid, "failed")
    )
    return executor


def poll(executor, *jobs):
    """The jobs that the plugin goes on to watch."""

    async def collect():
        active = [SimpleNamespace(external_jobid=job, aux={}) for job in jobs]
        return [j.external_jobid async for j in plugin.Executor.check_active_jobs(executor, active)]

    return asyncio.run(collect())


def test_plugin_alone_forgets_jobs_of_which_it_hears_nothing(programs, executor):
    """Should this fail, the plugin is mended, and `pusa.slurm` has a reason less."""
    programs(squeue=None)
    assert poll(executor, "1", "2") == []


def test_jobs_are_kept_while_slurm_does_not_answer(programs, executor, caplog):
    slurm.be_patient()
    programs(squeue=None)
    assert poll(executor, "1", "2") == ["1", "2"]
    assert "Slurm does not answer; its jobs are asked for again later." in caplog.text
    programs(squeue="1|RUNNING\\n2|COMPLETED\\n")
    assert poll(executor, "1", "2") == ["1"]
    assert executor.reported == [("2", "done")]


def test_job_that_stays_preempted_has_failed(programs, executor):
    """Slurm runs it again with `PreemptMode=REQUEUE`, and with CANCEL never."""
    slurm.be_patient()
    programs(squeue="1|PREEMPTED\\n2|PREEMPTED\\n")
    assert poll(executor, "1", "2") == ["1", "2"]
    programs(squeue="1|PENDING\\n2|PREEMPTED\\n")
    assert poll(executor, "1", "2") == ["1"]
    assert executor.reported == [("2", "failed")]
    programs(squeue="1|PREEMPTED\\n")
    assert poll(executor, "1") == ["1"]


def test_nothing_is_submitted_while_the_controller_is_away(programs, executor, monkeypatch, caplog):
    submitted, looks = [], []
    monkeypatch.setattr(plugin.Executor, "run_jobs", lambda self, jobs: submitted.extend(jobs))

    def sleep(seconds):
        looks.append(seconds)
        assert not submitted
        if len(looks) == 2:
            programs(scontrol="Slurmctld(primary) at login is UP\\n")

    monkeypatch.setattr(slurm.time, "sleep", sleep)
    slurm.be_patient()
    programs(scontrol="Slurmctld(primary) at login is DOWN\\n")
    plugin.Executor.run_jobs(executor, ["a", "b"])
    assert looks == [slurm.SECONDS_TO_ASK] * 2 and submitted == ["a", "b"]
    assert "controller is away; 2 jobs wait for it" in caplog.text
