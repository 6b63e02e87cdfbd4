"""Starting trainings, in this process or in others, for several test files."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch.multiprocessing

LEARNING_RATE = 0.01
#: `pusa.config.TrainSettings`.
SETTINGS = {
    "method": "lora",
    "rank": 2,
    "iterations": [2],
    "objective": "paper",
    "p_async": 1.0,
    "learning_rate": LEARNING_RATE,
    "warmup": 0,
    "total_batch": 4,
    "micro_batch": 2,
    "shift": 5.0,
    "validation_clips": 1,
    "gradient_checkpointing": False,
    "dtype": "float32",
    "lora_dtype": "float32",
    "offload": "none",
    "seed": 0,
}


def settings_of(**changes):
    from pusa.config import TrainSettings

    return TrainSettings.read(SETTINGS | changes)


@contextmanager
def process_group():
    """Make this process the only one of a training, for as many trainings as wanted."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in _environment(0, 1, _free_port()).items():
            patch.setenv(key, value)
        yield


def start_processes(processes, cache, transformer, folder, checkpoint_every=50, **changes):
    """Train in ``folder/out`` and ``folder/state`` with processes that need not import anything."""
    multiprocessing.set_forkserver_preload(["pusa.train.loop"])
    arguments = (processes, _free_port(), cache, transformer, folder, checkpoint_every, changes)
    return torch.multiprocessing.start_processes(
        _train, arguments, processes, join=False, start_method="forkserver"
    ).processes


def _train(rank, processes, port, cache, transformer, folder, checkpoint_every, changes):
    from pusa.train import loop as train

    os.environ.update(_environment(rank, processes, port))
    torch.set_num_threads(1)
    out, state = folder / "out", folder / "state"
    settings = settings_of(checkpoint_every=checkpoint_every, **changes)
    train.train(cache, transformer, out, settings, state=state)


def join(processes, exit_code=0):
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [exit_code] * len(processes)


def start_torchrun(processes, cache, transformer, folder, checkpoint_every=50, **changes):
    """The same as the workflow does it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "-m", "pusa", "train"]
    command += [str(cache), str(transformer), str(folder / "out")]
    settings = json.dumps({**SETTINGS, "checkpoint_every": checkpoint_every, **changes})
    command += ["--state", str(folder / "state"), "--settings", settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(torchrun, exit_code=0):
    """Wait for torchrun, and return the errors that were reported."""
    _, printed = torchrun.communicate()
    assert torchrun.returncode == exit_code, printed[-3000:]
    return [line for line in printed.splitlines() if line.startswith("error: ")]


def _environment(rank, processes, port):
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in values.items()}}


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
