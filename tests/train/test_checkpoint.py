"""Trainings that are stopped, killed or damaged, and go on to the very same weights."""

import fcntl
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
from safetensors.torch import load_file, save_file

from pusa.train import checkpoint as resume
from pusa.train import loop as train
from tests.training import (
    finish,
    join,
    process_group,
    settings_of,
    start_processes,
    start_torchrun,
)

SAVED = (5, 150)
SETTINGS = {"iterations": list(SAVED), "micro_batch": 2}
NAMES = [f"iteration_{i}.safetensors" for i in SAVED]


@pytest.fixture(scope="module", autouse=True)
def alone():
    with process_group():
        yield


@pytest.fixture(scope="module")
def train_here(latent_cache, model):
    """A function that trains in this process, in a folder's ``out`` and ``state``."""

    def run(folder, checkpoint_every=50, minutes=0, **changes):
        train.train(
            latent_cache,
            model / "transformer",
            folder / "out",
            settings_of(checkpoint_every=checkpoint_every, **{**SETTINGS, **changes}),
            state=folder / "state",
            minutes=minutes,
        )

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory, train_here):
    """An uninterrupted training in one process."""
    folder = tmp_path_factory.mktemp("whole")
    train_here(folder)
    return folder


def logged(folder):
    """How many iterations a training at work has logged."""
    file = folder / "state/training.csv"
    return file.read_text().count("\n") - 1 if file.exists() else 0


def wait_until_logged(folder, iteration, alive):
    while logged(folder) < iteration:
        assert alive()
        time.sleep(0.005)


def assert_identical(first, second):
    """The same files; weights and validation to the bit, and all that is not time or memory."""
    assert {p.name for p in (first / "out").iterdir()} == {
        p.name for p in (second / "out").iterdir()
    }
    for name in [*NAMES, "validation.csv"]:
        assert (first / "out" / name).read_bytes() == (second / "out" / name).read_bytes(), name
    columns = ["iteration", "loss", "learning_rate", "gradient_norm"]
    a, b = (pd.read_csv(folder / "out/training.csv") for folder in (first, second))
    pd.testing.assert_frame_equal(a[columns], b[columns], check_exact=True)
    for table in (a, b):
        assert list(table["iteration"]) == list(range(1, SAVED[-1] + 1))
        assert table["elapsed_seconds"].is_monotonic_increasing
        assert (table[["clips_per_second", "memory_gib"]] > 0).all(axis=None)
    assert not (second / "state").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random(tmp_path, latent_cache, model, processes):
    """Asked to stop once, then killed, then left to its end."""

    def start(folder):
        files = (latent_cache, model / "transformer", folder)
        return start_processes(processes, *files, checkpoint_every=10, **SETTINGS)

    join(start(tmp_path / "whole"))
    folder = tmp_path / "killed"

    training = start(folder)
    wait_until_logged(folder, random.randint(12, 30), training[0].is_alive)
    os.kill(training[-1].pid, signal.SIGTERM)  # one process: all stop after the same iteration
    join(training, exit_code=1)
    stopped = logged(folder)
    assert checkpoint_of(folder).name == f"checkpoint-{stopped}"
    assert not (folder / "out" / NAMES[0]).exists()  # kept where Snakemake does not remove it

    training = start(folder)
    wait_until_logged(folder, stopped + random.randint(5, 25), training[0].is_alive)
    for process in training:
        process.kill()
    join(training, exit_code=-signal.SIGKILL)
    assert SAVED[0] < logged(folder) < SAVED[-1]

    join(start(folder))
    assert_identical(tmp_path / "whole", folder)


@pytest.mark.slow
def test_torchrun_asked_to_stop(tmp_path, latent_cache, model):
    """As a scheduler asks: torchrun alone, which tells its processes."""
    torchrun = start_torchrun(2, latent_cache, model / "transformer", tmp_path, **SETTINGS)
    wait_until_logged(tmp_path, 1, lambda: torchrun.poll() is None)
    torchrun.terminate()
    errors = finish(torchrun, exit_code=1)
    stopped = logged(tmp_path)
    assert errors == [
        f"error: stopped at iteration {stopped} of {SAVED[-1]}, at a signal ({stopped} of them "
        "now); run the same command to go on"
    ]
    assert checkpoint_of(tmp_path).name == f"checkpoint-{stopped}"


@pytest.fixture
def stopped(tmp_path, train_here, monkeypatch):
    """A folder with a training stopped by its budget, at a clock that moves when looked at."""
    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(resume, "time", ticking())
        with pytest.raises(InterruptedError) as error:
            train_here(folder, minutes=2)
    iteration = logged(folder)
    assert SAVED[0] < iteration < 100
    assert str(error.value) == (
        f"stopped at iteration {iteration} of {SAVED[-1]}, with its 2 minutes nearly over "
        f"({iteration} of them now); run the same command to go on"
    )
    return folder


def ticking():
    """A clock that is a second later whenever it is asked, from the start of this process."""
    now = psutil.Process().create_time()

    def tick():
        nonlocal now
        now += 1
        return now

    return SimpleNamespace(time=tick, monotonic=tick)


def checkpoint_of(folder):
    (checkpoint,) = (folder / "state").glob("checkpoint-*")
    return checkpoint


def test_budget(stopped, train_here, whole):
    assert checkpoint_of(stopped).name == f"checkpoint-{logged(stopped)}"
    seconds = pd.read_csv(stopped / "state/training.csv")["elapsed_seconds"].iloc[-1]
    assert 90 < seconds < 120
    train_here(stopped)
    assert_identical(whole, stopped)


def test_budget_too_short_to_start(tmp_path, train_here):
    with pytest.raises(ValueError, match=r"a budget of 0\.01 minutes leaves no time for an iter"):
        train_here(tmp_path, minutes=0.01)
    assert logged(tmp_path) == 0


def test_signal_is_taken_only_while_training(whole):
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with resume.StopWatch(0) as watch:
        assert watch.reason([]) == 0
        signal.raise_signal(signal.SIGTERM)
        assert watch.reason([]) == 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_budget_looks_ahead(monkeypatch):
    clock = SimpleNamespace(time=lambda: started + 50, monotonic=iter([0.0, 3.0, 0, 1]).__next__)
    started = psutil.Process().create_time()
    monkeypatch.setattr(resume, "time", clock)
    watch = resume.StopWatch(1)  # ends after 54 s, of which 50 are over
    for _ in range(2):
        with watch.measure("iteration"):
            pass
    assert watch.longest == {"iteration": 3}
    assert watch.reason(["iteration", "checkpoint"]) == 0
    watch.longest["checkpoint"] = 2
    assert watch.reason(["iteration", "checkpoint"]) == 1


@pytest.mark.slow
def test_full_fine_tuning_goes_on(tmp_path, train_here, monkeypatch):
    full = {"method": "full", "rank": None, "dtype": "bfloat16", "iterations": [2, 20]}
    train_here(tmp_path / "whole", **full)
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(resume, "time", ticking())
        train_here(tmp_path / "stopped", minutes=1, **full)
    assert 2 <= logged(tmp_path / "stopped") < 20
    train_here(tmp_path / "stopped", **full)
    for name in ("iteration_2", "iteration_20"):
        a, b = (tmp_path / n / "out" / name for n in ("whole", "stopped"))
        assert {p.name for p in a.iterdir()} == {p.name for p in b.iterdir()}
        for file in a.iterdir():
            assert file.read_bytes() == (b / file.name).read_bytes(), file


@pytest.mark.slow
def test_offloaded_state_goes_on(tmp_path, train_here, monkeypatch):
    options = {"offload": True, "iterations": [20]}
    train_here(tmp_path / "whole", **options)
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(resume, "time", ticking())
        train_here(tmp_path / "stopped", minutes=1, **options)
    train_here(tmp_path / "stopped", **options)
    a, b = (tmp_path / n / "out/iteration_20.safetensors" for n in ("whole", "stopped"))
    assert a.read_bytes() == b.read_bytes()


def truncate(file):
    file.write_bytes(file.read_bytes()[:-8])


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def swap(file):
    """A readable file of other contents."""
    save_file({n: t * 2 for n, t in load_file(file).items()}, file, {"sha256": "0"})


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("process-00000.safetensors", truncate),
        ("process-00000.safetensors", flip),
        ("process-00000.safetensors", swap),
        ("process-00000.safetensors", Path.unlink),
        ("checkpoint.json", truncate),
        ("checkpoint.json", Path.unlink),
    ],
)
def test_damaged_checkpoint(finished_parts, tmp_path, train_here, name, damage):
    folder = shutil.copytree(finished_parts, tmp_path / "copy")
    damage(checkpoint_of(folder) / name)
    with pytest.raises(ValueError, match=rf"{name} is damaged \(.*delete the state folder"):
        train_here(folder)
    assert checkpoint_of(folder).is_dir()


@pytest.fixture(scope="module")
def finished_parts(tmp_path_factory, train_here):
    """A training stopped after its first listed iteration, to be copied and not changed."""
    folder = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(resume, "time", ticking())
        train_here(folder, minutes=1)
    assert logged(folder) > SAVED[0]
    return folder


@pytest.mark.parametrize("name", [NAMES[0], "training.csv"])
def test_missing_part(finished_parts, tmp_path, train_here, name):
    folder = shutil.copytree(finished_parts, tmp_path / "copy")
    (folder / "state" / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} .*delete the state folder"):
        train_here(folder)


def test_other_settings_are_refused_and_nothing_is_lost(finished_parts, tmp_path, train_here):
    folder = shutil.copytree(finished_parts, tmp_path / "copy")
    before = sorted(p.name for p in (folder / "state").iterdir())
    message = r"is of another run \(rank 2 -> 3\); set that back .* or delete the state folder"
    with pytest.raises(ValueError, match=message):
        train_here(folder, rank=3)
    assert sorted(p.name for p in (folder / "state").iterdir()) == before


def test_more_iterations_may_be_asked_for_on_the_way(finished_parts, tmp_path, train_here):
    folder = shutil.copytree(finished_parts, tmp_path / "copy")
    done = logged(folder)
    train_here(folder, iterations=[SAVED[0], done + 1])
    assert (folder / "out" / f"iteration_{done + 1}.safetensors").exists()


def test_checkpoint_of_other_processes_is_refused(finished_parts):
    checkpoint = checkpoint_of(finished_parts)
    run = json.loads((checkpoint / "checkpoint.json").read_text())["run"]
    assert resume.find_checkpoint(checkpoint.parent, run) == checkpoint
    with pytest.raises(ValueError, match=r"\(processes 1 -> 8\)"):
        resume.find_checkpoint(checkpoint.parent, {**run, "processes": 8})


def test_one_training_at_a_time(tmp_path, train_here):
    (tmp_path / "state").mkdir()
    with (tmp_path / "state/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"another training is at work in .*state"):
            train_here(tmp_path)


def test_nothing_else_in_the_state_folder_is_touched(tmp_path, train_here):
    (tmp_path / "state").mkdir()
    (tmp_path / "state/notes.txt").write_text("mine")
    train_here(tmp_path, iterations=[1])
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["notes.txt"]


def test_publish_replaces(tmp_path):
    """Also where an earlier publication was cut off."""
    state, out = tmp_path / "state", tmp_path / "out"
    for folder in (state / "iteration_1", out / "iteration_1", out / ".partial-iteration_1"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(folder.parent.name)
    for name in ("training.csv", "validation.csv", "iteration_2.safetensors"):
        (state / name).write_text("new")
        (out / name).write_text("old")
    resume.publish(state, out)
    assert (out / "iteration_1/config.json").read_text() == "state"
    assert {p.name for p in out.iterdir()} == {
        "iteration_1",
        "iteration_2.safetensors",
        "training.csv",
        "validation.csv",
    }
    assert all(p.read_text() == "new" for p in out.iterdir() if p.is_file())
    assert not state.exists()
