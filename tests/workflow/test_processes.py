import os
import subprocess
import sys
import time

import psutil
import pytest

from pusa import processes
from pusa.processes import MARK, describe, end_orphans, find_orphans, find_workflows

#: A process that starts a job, and ends or stays.
STARTER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[2], "job"])
time.sleep(float(sys.argv[3]))
"""
WAITS = "import time; time.sleep(100)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(100)"


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A function that starts a job in a folder of its own, from a process of some name."""
    monkeypatch.chdir(tmp_path)
    started = []

    def call(job, *, starter, stays, mark=MARK):
        command = [sys.executable, "-c", STARTER, starter, job, "100" if stays else "0"]
        process = psutil.Popen(command, env=os.environ | {mark: "0"})
        started.append(process)
        if not stays:
            process.wait()
        for _ in range(200):
            commands = ((p, p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
            if found := [p for p, words in commands if words[2:] == [job, "job"]]:
                started.extend(found)
                return found[0]
            time.sleep(0.05)
        raise AssertionError("the job did not start")

    yield call
    for process in started:
        if process.is_running():
            process.kill()


def test_a_job_whose_snakemake_was_killed_is_ended(start, capsys):
    job = start(WAITS, starter="snakemake", stays=False)
    assert find_orphans() == [job]
    end_orphans()
    assert not job.is_running()
    assert f"left at work: process {job.pid} (" in capsys.readouterr().err
    end_orphans()
    assert capsys.readouterr().err == ""


def test_a_job_that_does_not_end_is_named(start, monkeypatch):
    job = start(STUBBORN, starter="snakemake", stays=False)
    time.sleep(0.5)  # until it does not listen
    monkeypatch.setattr(processes, "PATIENCE", 0.2)
    with pytest.raises(OSError, match=f"process {job.pid} .* does not end; kill it"):
        end_orphans()


def test_jobs_of_a_living_snakemake_are_left_alone(start):
    start(WAITS, starter="snakemake", stays=True)
    assert find_orphans() == []
    [found] = find_workflows()
    assert "snakemake" in found.cmdline()


def test_what_is_not_of_the_workflow_is_left_alone(start):
    """Such as a `pusa generate` in another terminal."""
    start(WAITS, starter="shell", stays=False, mark="OTHER")
    assert find_orphans() == find_workflows() == []


def test_another_folder_is_none_of_our_business(start, tmp_path, monkeypatch):
    start(WAITS, starter="snakemake", stays=False)
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    assert find_orphans() == []


def test_a_process_that_is_gone_has_its_number():
    process = psutil.Popen(["true"])
    process.wait()
    assert describe(process) == f"process {process.pid}"


def test_the_lock_of_a_working_snakemake_is_not_taken_away(start):
    """By the workflow itself, of which the lock's folder alone is another."""
    from tests.mini import ROOT, activated

    start(WAITS, starter="snakemake", stays=True)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile")]
    for link in ("config", "pusa", "workflow"):
        os.symlink(ROOT / link, link)
    done = subprocess.run(
        [*command, "--unlock", "--configfile", "config/demo.yaml"],
        capture_output=True,
        text=True,
        env=activated(dict(os.environ)),
    )
    assert done.returncode != 0
    assert "is at work here, so that its lock is not taken away" in done.stderr
