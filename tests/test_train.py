"""Whole trainings of two iterations, started as the workflow does, on the fixture's cache."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pusa.cache import LatentCache
from pusa.lora import fingerprint, merge_lora, read_lora

LEARNING_RATE = 0.01
SETTINGS = {
    "rank": 2,
    "learning-rate": LEARNING_RATE,
    "total-batch": 4,
    "validation-clips": 1,
    "iteration": 2,
}


@pytest.fixture(scope="module")
def launch(tmp_path_factory, latent_cache, model):
    """A function that trains with some processes and returns the run's folder."""

    def start(name, processes, **options):
        out = tmp_path_factory.mktemp("runs") / name
        options = {**SETTINGS, **{k.replace("_", "-"): v for k, v in options.items()}}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes), "-m", "pusa", "train-lora"]
        command += [str(latent_cache), str(model / "transformer"), str(out)]
        for key, value in options.items():
            for v in value if isinstance(value, list) else [value]:
                command += [f"--{key}"] if v is True else [f"--{key}", str(v)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return out

    return start


@pytest.fixture(scope="module")
def one(launch):
    """One process, the batch in one piece."""
    return launch("one", 1, micro_batch=4)


@pytest.fixture(scope="module")
def two(launch):
    """Two processes with half of the batch each, and weights saved on the way."""
    return launch("two", 2, micro_batch=2, iteration=[1, 2])


@pytest.fixture(scope="module")
def accumulated(launch):
    """One process, the batch in four pieces, with gradient checkpointing."""
    return launch("accumulated", 1, micro_batch=1, gradient_checkpointing=True)


@pytest.fixture(scope="module")
def synchronous(launch):
    """One timestep per clip, and a warm-up of four iterations."""
    return launch("synchronous", 1, micro_batch=4, p_async=0, warmup=4, iteration=[1, 2])


def tensors(run, iteration=2):
    return load_file(run / f"iteration_{iteration}.safetensors")


def distance(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


def assert_same(first, second):
    """Equal up to the order of sums.

    AdamW divides a gradient by its own size: one of nearly zero, whose sign rounding decides,
    moves a weight by up to the learning rate in either way. So all but one weight in a
    hundred agree closely, and none is further off than two iterations' steps in both ways.
    """
    a, b = tensors(first), tensors(second)
    assert a.keys() == b.keys()
    gap = torch.cat([(a[name] - b[name]).abs().flatten() for name in a])
    assert (gap > 1e-4 * LEARNING_RATE + 1e-6).float().mean() < 0.01
    assert gap.max() < 4.1 * LEARNING_RATE


def test_number_of_processes_does_not_matter(one, two):
    assert_same(one, two)
    for name in ("training", "validation"):
        a, b = (pd.read_csv(run / f"{name}.csv") for run in (one, two))
        b = b[b["iteration"].isin(a["iteration"])].reset_index(drop=True)
        if name == "validation":
            a = a[a["iteration"] != 2].reset_index(drop=True)
            b = b[b["iteration"] == 0].reset_index(drop=True)
        pd.testing.assert_frame_equal(a, b, rtol=1e-3, atol=2e-6)


def test_accumulation_and_checkpointing_do_not_matter(one, accumulated):
    assert_same(one, accumulated)


def test_exactly_the_lora_is_trained(one, model):
    base = load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")
    linears = ["ffn.net.0.proj", "ffn.net.2"]
    linears += [f"attn{n}.{part}" for n in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")]
    expected = {}
    for block in range(2):
        for linear in linears:
            name = f"blocks.{block}.{linear}"
            rows, columns = base[f"{name}.weight"].shape
            expected[f"transformer.{name}.lora_A.weight"] = (2, columns)
            expected[f"transformer.{name}.lora_B.weight"] = (rows, 2)
    found = tensors(one)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == expected
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert all(tensor.abs().max() > 0 for tensor in found.values())  # B left zero


def test_learning_rate_and_warmup(two, synchronous):
    """AdamW's first step moves a weight by the learning rate, whatever its gradient."""
    for run, rate in ((two, LEARNING_RATE), (synchronous, LEARNING_RATE / 4)):
        steps = [t.abs().max() for name, t in tensors(run, 1).items() if "lora_B" in name]
        assert max(steps).item() == pytest.approx(rate, rel=1e-3)
        assert min(steps).item() == pytest.approx(rate, rel=0.05)


def test_metadata(one, synchronous, model):
    _, info = read_lora(one / "iteration_2.safetensors")
    assert (info.rank, info.lora_alpha, info.iteration) == (2, 2, 2)
    assert (info.p_async, info.vectorized) == (1.0, True)
    assert info.base == fingerprint(model / "transformer")
    with safe_open(synchronous / "iteration_2.safetensors", framework="pt") as file:
        other = json.loads(file.metadata()["pusa"])
    assert (other["p_async"], other["vectorized"]) == (0.0, False)


def test_p_async_decides_what_is_learnt(one, synchronous):
    losses = [pd.read_csv(run / "training.csv")["loss"] for run in (one, synchronous)]
    assert abs(losses[0][0] - losses[1][0]) > 1e-3  # before any step: other noise levels
    assert distance(tensors(one), tensors(synchronous)) > 1e-3


def test_logs(one, two):
    training = pd.read_csv(one / "training.csv")
    assert list(training["iteration"]) == [1, 2]
    assert training["loss"].notna().all()
    for run, iterations in ((one, [0, 2]), (two, [0, 1, 2])):
        validation = pd.read_csv(run / "validation.csv")
        table = validation.pivot(index="iteration", columns="loss", values="value")
        assert list(table.index) == iterations
        assert set(table.columns) == {"asynchronous", "image_to_video", "synchronous"}


def test_validation_does_not_depend_on_the_run(one, synchronous):
    first = [
        pd.read_csv(run / "validation.csv").query("iteration == 0")["value"].tolist()
        for run in (one, synchronous)
    ]
    assert first[0] == first[1]


def test_saved_iterations(one, two):
    assert [p.name for p in sorted(one.glob("*.safetensors"))] == ["iteration_2.safetensors"]
    assert distance(tensors(two, 1), tensors(two, 2)) > 1e-3
    assert read_lora(two / "iteration_1.safetensors")[1].iteration == 1


def test_same_seed_is_bit_identical(launch, one):
    again = launch("again", 1, micro_batch=4)
    for name in ("training.csv", "validation.csv"):
        assert (again / name).read_bytes() == (one / name).read_bytes(), name
    # Not the file's bytes: safetensors writes the entries of its metadata in any order.
    first, second = tensors(one), tensors(again)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_result_merges(one, model, tmp_path):
    lora = one / "iteration_2.safetensors"
    merge_lora(model / "transformer", lora, tmp_path / "merged", lora_scale=1.4)


# In this process: the batch of an iteration, and errors before the first of them


@pytest.fixture(scope="module")
def train():
    from pusa import train

    return train


def settings_of(train, **changes):
    values = {
        "rank": 2,
        "iterations": (1,),
        "p_async": 1.0,
        "learning_rate": 0.01,
        "warmup": 0,
        "total_batch": 4,
        "micro_batch": 2,
        "timesteps": "uniform",
        "weighting": "none",
        "shift": 5.0,
        "validation_clips": 1,
        "gradient_checkpointing": False,
        "seed": 0,
    }
    return train.TrainSettings(**{**values, **changes})


def test_an_epoch_takes_every_training_clip_once(train, latent_cache):
    data, settings = LatentCache(latent_cache), settings_of(train, total_batch=5)
    held_out = data.latents(5)
    for epoch in (1, 2):
        x0, x1, sigma, _ = train._draw_batch(data, 5, settings, epoch, range(5))
        found = sorted(next(i for i in range(6) if torch.equal(x, data.latents(i))) for x in x0)
        assert found == [0, 1, 2, 3, 4]
        assert not any(torch.equal(x, held_out) for x in x0)
        assert x1.shape == x0.shape
        assert len(sigma.unique()) == 15


def test_noise_and_levels_never_repeat(train, latent_cache):
    data, settings = LatentCache(latent_cache), settings_of(train)
    batches = [train._draw_batch(data, 5, settings, i, range(4)) for i in (1, 2, 3)]
    for part in (1, 2):
        values = torch.cat([batch[part] for batch in batches]).flatten(1)
        assert len(values.unique(dim=0)) == 12
    other = train._draw_batch(data, 5, settings_of(train, seed=1), 1, range(4))
    assert not torch.equal(other[1], batches[0][1])


@pytest.fixture(scope="module")
def process_group(train):
    """This process as the only one of a training."""
    patch = pytest.MonkeyPatch()
    for key, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": 29731}.items():
        patch.setenv(key, str(value))
    patch.setenv("MASTER_ADDR", "127.0.0.1")
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    patch.undo()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_batch": 3}, r"total_batch 4 is not a multiple of 1 processes x .*micro_batch 3"),
        ({"validation_clips": 6}, r"holds 6 clips, expected more than the 6 of train\.validation"),
    ],
)
def test_impossible_settings(train, process_group, tmp_path, latent_cache, model, changes, message):
    with pytest.raises(ValueError, match=message):
        train.train_lora(
            latent_cache, model / "transformer", tmp_path / "run", settings_of(train, **changes)
        )
    assert not (tmp_path / "run").exists()
