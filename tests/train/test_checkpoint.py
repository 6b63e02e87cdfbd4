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

FULL = {"method": "full", "rank": None, "dtype": "bfloat16"}


@pytest.fixture(scope="module", autouse=True)
def alone():
    with process_group():
        yield


@pytest.fixture(scope="module")
def train_here(latent_cache, model):
    """A function that trains in this process, in a folder's ``out`` and ``state``."""

    def run(folder, minutes=0, **changes):
        train.train(
            latent_cache,
            model / "transformer",
            folder / "out",
            settings_of(**{"iterations": [2, 14], **changes}),
            state=folder / "state",
            minutes=minutes,
        )

    return run


@pytest.fixture(scope="module")
def stop_here(train_here):
    """The same, stopped after some iterations by a clock that moves when looked at."""

    def run(folder, **changes):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedError) as error:
            patch.setattr(resume, "time", ticking())
            train_here(folder, minutes=1, **changes)
        done = logged(folder)
        assert checkpoint_of(folder).name == f"checkpoint-{done}"
        assert str(error.value).endswith(
            f", with its 1 minutes nearly over ({done} of them now); run the same command to go on"
        )
        return done

    return run


def ticking():
    """A clock that is a second later whenever it is asked, from the start of this process."""
    now = psutil.Process().create_time()

    def tick():
        nonlocal now
        now += 1
        return now

    return SimpleNamespace(time=tick, monotonic=tick)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory, stop_here):
    """A training stopped after its first listed iteration, to be copied and not changed."""
    folder = tmp_path_factory.mktemp("unfinished")
    assert 2 < stop_here(folder) < 14
    return folder


@pytest.fixture
def folder(unfinished, tmp_path):
    return shutil.copytree(unfinished, tmp_path / "copy")


def logged(folder):
    """How many iterations a training at work has logged."""
    file = folder / "state/training.csv"
    return file.read_text().count("\n") - 1 if file.exists() else 0


def wait_until_logged(folder, iteration, alive):
    while logged(folder) < iteration:
        assert alive()
        time.sleep(0.005)


def checkpoint_of(folder):
    (checkpoint,) = (folder / "state").glob("checkpoint-*")
    return checkpoint


def assert_identical(first, second):
    """The same files; weights and validation to the bit, and all that is not time or memory."""
    files = [sorted(run.glob("out/**/[!e]*")) for run in (first, second)]  # no events.out.*
    for a, b in zip(*files, strict=True):
        assert a.relative_to(first) == b.relative_to(second)
        if a.is_file() and a.name not in ("training.csv", "run.json"):
            assert a.read_bytes() == b.read_bytes(), a
    columns = ["iteration", "loss", "learning_rate", "gradient_norm"]
    a, b = (pd.read_csv(run / "out/training.csv") for run in (first, second))
    pd.testing.assert_frame_equal(a[columns], b[columns], check_exact=True)
    for table in (a, b):
        assert list(table["iteration"]) == list(range(1, len(table) + 1))
        assert table["elapsed_seconds"].is_monotonic_increasing
        assert (table[["clips_per_second", "memory_gib"]] > 0).all(axis=None)


@pytest.mark.parametrize(
    "changes",
    [{}, {"offload": "optimizer"}, {"lora_dtype": "bfloat16"}, FULL],
    ids=["lora", "offload", "bfloat16", "full"],
)
def test_goes_on_to_the_bit(tmp_path, train_here, stop_here, changes):
    """Also if fewer iterations are asked for on the way; what else is in the folder is left."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train_here(whole, **changes)
    assert not (whole / "state").exists()
    (stopped / "state").mkdir(parents=True)
    (stopped / "state/notes.txt").write_text("mine")
    assert 2 < stop_here(stopped, iterations=[2, 50], **changes) < 14
    assert not list((stopped / "out").glob("iteration*"))  # kept where Snakemake removes nothing
    assert 45 < pd.read_csv(stopped / "state/training.csv")["elapsed_seconds"].iloc[-1] < 60
    train_here(stopped, **changes)
    assert_identical(whole, stopped)
    assert [p.name for p in (stopped / "state").iterdir()] == ["notes.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, FULL], ids=["lora", "full"])
def test_killed_at_random(tmp_path, latent_cache, model, changes):
    """Two processes: asked to stop once, then killed, then left to their end."""

    def start(folder):
        options = {"iterations": [5, 100], **changes}
        files = (latent_cache, model / "transformer", folder)
        return start_processes(2, *files, checkpoint_every=10, **options)

    join(start(tmp_path / "whole"))
    folder = tmp_path / "killed"

    training = start(folder)
    wait_until_logged(folder, random.randint(12, 30), training[0].is_alive)
    os.kill(training[-1].pid, signal.SIGTERM)  # one process: all stop after the same iteration
    join(training, exit_code=1)
    stopped = logged(folder)
    assert checkpoint_of(folder).name == f"checkpoint-{stopped}"

    training = start(folder)
    wait_until_logged(folder, stopped + random.randint(5, 25), training[0].is_alive)
    for process in training:
        process.kill()
    join(training, exit_code=-signal.SIGKILL)
    assert 5 < logged(folder) < 100

    join(start(folder))
    assert_identical(tmp_path / "whole", folder)


@pytest.mark.slow
def test_torchrun_asked_to_stop(tmp_path, latent_cache, model):
    """As a scheduler asks: torchrun alone, which tells its processes."""
    files = (latent_cache, model / "transformer", tmp_path)
    torchrun = start_torchrun(2, *files, iterations=[5, 150])
    wait_until_logged(tmp_path, 1, lambda: torchrun.poll() is None)
    torchrun.terminate()
    errors = finish(torchrun, exit_code=1)
    stopped = logged(tmp_path)
    assert errors == [
        f"error: stopped at iteration {stopped} of 150, at a signal ({stopped} of them "
        "now); run the same command to go on"
    ]
    assert checkpoint_of(tmp_path).name == f"checkpoint-{stopped}"


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False], ids=["training", "starting"])
def test_torchrun_killed(tmp_path, latent_cache, model, training):
    """Its processes would wait for one another for half an hour, or train on unseen."""
    files = (latent_cache, model / "transformer", tmp_path)
    torchrun = start_torchrun(2, *files, iterations=[500])
    if training:
        wait_until_logged(tmp_path, 1, lambda: torchrun.poll() is None)
    else:
        while len(children := psutil.Process(torchrun.pid).children()) < 2:
            time.sleep(0.1)
        while not all(child.num_threads() > 1 for child in children):  # they watch it
            time.sleep(0.1)
    children = psutil.Process(torchrun.pid).children()
    torchrun.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    assert not training or checkpoint_of(tmp_path).name == f"checkpoint-{logged(tmp_path)}"


def test_budget_too_short_to_start(tmp_path, train_here):
    with pytest.raises(ValueError, match=r"a budget of 0\.01 minutes leaves no time for an iter"):
        train_here(tmp_path, minutes=0.01)
    assert logged(tmp_path) == 0


def test_signal_is_taken_only_while_training():
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
def test_damaged_checkpoint(folder, name, damage):
    run = record_of(folder)["run"]
    damage(checkpoint_of(folder) / name)
    with pytest.raises(ValueError, match=rf"{name} is damaged \(.*delete the state folder"):
        resume.read_checkpoint(resume.find_checkpoint(folder / "state", run)[0])


def record_of(folder):
    return json.loads((checkpoint_of(folder) / "checkpoint.json").read_text())


def test_damage_is_no_reason_to_delete(folder, train_here):
    flip(checkpoint_of(folder) / "process-00000.safetensors")
    with pytest.raises(ValueError, match="its checksum differs"):
        train_here(folder)
    assert checkpoint_of(folder).is_dir()


def test_missing_weights(folder, train_here):
    (folder / "state/iteration_2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"iteration_2\.safetensors is missing.*delete the state"):
        train_here(folder)


def test_other_settings_are_refused_and_nothing_is_lost(unfinished, train_here):
    before = sorted(p.name for p in (unfinished / "state").iterdir())
    message = r"is of another run \(rank 2 -> 3\); set that back .* or delete the state folder"
    with pytest.raises(ValueError, match=message):
        train_here(unfinished, rank=3)
    assert sorted(p.name for p in (unfinished / "state").iterdir()) == before


def test_a_setting_that_is_newer_than_the_checkpoint_had_its_default(folder):
    record, state = record_of(folder), folder / "state"
    older = {key: value for key, value in record["run"].items() if key != "warmup"}
    text = json.dumps(record | {"run": older})
    (checkpoint_of(folder) / "checkpoint.json").write_text(text)
    assert resume.find_checkpoint(state, older | {"warmup": 0})[0] == checkpoint_of(folder)
    with pytest.raises(ValueError, match=r"is of another run \(warmup 0 -> 7\)"):
        resume.find_checkpoint(state, older | {"warmup": 7})


def test_checkpoint_of_other_processes_is_refused(unfinished):
    record, state = record_of(unfinished), unfinished / "state"
    assert resume.find_checkpoint(state, record["run"]) == (checkpoint_of(unfinished), record)
    with pytest.raises(ValueError, match=r"\(processes 1 -> 8\)"):
        resume.find_checkpoint(state, {**record["run"], "processes": 8})


def test_one_training_at_a_time(tmp_path, train_here):
    (tmp_path / "state").mkdir()
    with (tmp_path / "state/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"another training is at work in .*state"):
            train_here(tmp_path)


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
