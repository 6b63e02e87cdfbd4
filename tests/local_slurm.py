"""A real Slurm on this machine, from Debian's `slurm-wlm` and `munge`, for a while.

    with local_slurm(folder) as environment: ...
    python tests/local_slurm.py snakemake --cores 2 --profile slurm --configfile config/demo.yaml

Its daemons listen on ports of their own and keep everything in one folder, so that a Slurm that
the machine already has is not disturbed. Jobs run as root, without cgroups or accounting.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

SECONDS_TO_START = 60
CONFIGURATION = """\
ClusterName=local
SlurmctldHost={host}
SlurmUser=root
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# Seconds between a job's SIGTERM and its SIGKILL.
KillWait=5
# Seconds for which finished jobs are remembered; by default fewer than a busy machine may take.
MinJobAge=3600
OverTimeLimit={over_time_limit}
ReturnToService=2
# A node has as many processors as it says below, whatever the machine has.
SlurmdParameters=config_overrides
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus}\n"


def why_not() -> str | None:
    """Why a Slurm cannot be started here, or None."""
    missing = [name for name in ("munged", "slurmctld", "slurmd") if find(name) is None]
    if missing:
        return f"needs {', '.join(missing)} (apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "needs root, to start slurmctld and slurmd"


def find(daemon: str) -> str | None:
    return shutil.which(daemon, path=f"{os.environ['PATH']}:/usr/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def local_slurm(
    folder: Path, *, nodes: int = 1, cpus: int = 2, over_time_limit: int = 0
) -> Iterator[dict[str, str]]:
    """Start the daemons in a new ``folder``; yield the environment for Slurm's commands.

    Args:
        over_time_limit: minutes for which a job may go on beyond its time limit.
    """
    host = socket.gethostname().split(".")[0]
    names = [f"node{n}" for n in range(nodes)]
    for name in ("bin", "state", *names):
        (folder / name).mkdir(parents=True)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            folder=folder, host=host, port=free_port(), over_time_limit=over_time_limit
        )
        + "".join(NODE.format(node=n, host=host, port=free_port(), cpus=cpus) for n in names)
    )
    # Inside a job, Snakemake's Slurm plugin takes SLURM_CONF away from srun, which would then
    # look for the machine's own Slurm.
    srun = folder / "bin/srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={configuration} exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{srun.parent}:{os.environ['PATH']}",
        "SLURM_CONF": str(configuration),
    }
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    munged = [
        *(find("munged"), "--foreground"),
        "--force",  # the folder may lie in one that others can write to, such as /tmp
        f"--key-file={key}",
        f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munged.pid",
        f"--seed-file={folder}/munged.seed",
        f"--log-file={folder}/munged.log",
    ]
    slurmds = [[find("slurmd"), "-D", "-N", name] for name in names]
    with ExitStack() as running:
        output = running.enter_context((folder / "daemons.log").open("wb"))
        for command in (munged, [find("slurmctld"), "-D"], *slurmds):
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            running.callback(stop, process)
        wait_until_idle(environment, folder, nodes)
        try:
            yield environment
        finally:
            # Jobs would outlive the slurmd that started them.
            subprocess.run(["scancel", "--user=root"], env=environment, check=True)
            wait_until_idle(environment, folder, nodes)


def stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until_idle(environment: dict[str, str], folder: Path, nodes: int) -> None:
    command = ["sinfo", "--noheader", "--Node", "--format=%T"]
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        states = subprocess.run(command, env=environment, capture_output=True, text=True)
        if states.stdout.split() == ["idle"] * nodes:
            return
        time.sleep(0.2)
    raise RuntimeError(
        f"nodes are not idle after {SECONDS_TO_START} s: {states.stdout or states.stderr}"
        f"see {folder}/*.log"
    )


if __name__ == "__main__":
    if reason := why_not():
        sys.exit(f"error: {reason}")
    with (
        tempfile.TemporaryDirectory() as folder,
        local_slurm(Path(folder) / "slurm") as environment,
    ):
        done = subprocess.run(sys.argv[1:], env=environment)
    sys.exit(done.returncode)
