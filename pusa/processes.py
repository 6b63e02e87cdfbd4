"""Processes that outlive the one that started them: another Snakemake's jobs, a torchrun's."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

#: Set in every job of the workflow, see workflow/rules/common.smk.
MARK = "PUSA_HUB_OFFLINE"
#: Seconds in which a job is to end; a training saves a checkpoint first.
PATIENCE = 600


def find_workflows() -> list[psutil.Process]:
    """Other Snakemakes that work in this folder."""
    family = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [p for p in _here() if _is_snakemake(p) and p.pid not in family]


def find_orphans() -> list[psutil.Process]:
    """Processes of jobs in this folder whose Snakemake was killed."""
    return [
        p for p in _here() if MARK in p.environ() and not any(map(_is_snakemake, [p, *p.parents()]))
    ]


def end_orphans() -> None:
    """End what a killed Snakemake left at work, as it would write what is written again.

    Raises:
        OSError: that names a process which does not end.
    """
    orphans = find_orphans()
    if not orphans:
        return
    named = "; ".join(describe(process) for process in orphans)
    print(f"ending what a killed run left at work: {named}", file=sys.stderr)
    for process in orphans:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(orphans, timeout=PATIENCE)
    if alive:
        raise OSError(
            f"a killed run left at work: {describe(alive[0])}, which does not end; kill it"
        )


def end_with_torchrun() -> None:
    """Let this process end as soon as the torchrun that started it was killed.

    Processes that still meet would wait for one another for ever, and others go on unseen.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    torchrun = os.getppid()

    def watch() -> None:
        while os.getppid() == torchrun:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)  # upon which a training saves a checkpoint

    threading.Thread(target=watch, daemon=True).start()


def describe(process: psutil.Process) -> str:
    """Number and command, as far as it is there."""
    with suppress(psutil.NoSuchProcess):
        return f"process {process.pid} ({' '.join(process.cmdline())[:80]})"
    return f"process {process.pid}"


def _here() -> Iterator[psutil.Process]:
    """Processes of this user in this folder."""
    folder = Path.cwd()
    for process in psutil.process_iter():
        # It may end meanwhile, or be another user's.
        with suppress(psutil.Error, OSError):
            if Path(process.cwd()) == folder and process.pid != os.getpid():
                process.environ()  # which others' processes refuse
                yield process


def _is_snakemake(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "snakemake" in (Path(word).name for word in process.cmdline()[:4])
    return False
