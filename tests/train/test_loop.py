"""Whole trainings of two iterations on the fixture's cache, in this process and as torchrun's."""

import json
import shutil

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pusa.data.cache import LatentCache
from pusa.models.folder import digest_weights
from pusa.models.load import load_transformer
from pusa.models.lora import lora_info, merge_lora
from pusa.models.lora_formats import open_lora
from pusa.train import loop as train
from pusa.train.step import draw_batch, draw_clips, training_loss
from tests.training import (
    LEARNING_RATE,
    finish,
    join,
    process_group,
    settings_of,
    start_processes,
    start_torchrun,
)


@pytest.fixture(scope="module", autouse=True)
def alone():
    with process_group():
        yield


@pytest.fixture(scope="module")
def run_here(tmp_path_factory, latent_cache, model):
    """A function that trains in this process and returns the run's folder."""

    def run(**changes):
        folder = tmp_path_factory.mktemp("run")
        out, settings = folder / "out", settings_of(**changes)
        train.train(latent_cache, model / "transformer", out, settings, state=folder / "state")
        assert not (folder / "state").exists()
        return out

    return run


@pytest.fixture(scope="module")
def one(run_here):
    """One process, the batch in one piece."""
    return run_here(micro_batch=4)


@pytest.fixture(scope="module")
def accumulated(run_here):
    """The batch in four pieces, with gradient checkpointing."""
    return run_here(micro_batch=1, gradient_checkpointing=True, iterations=[1, 2])


@pytest.fixture(scope="module")
def synchronous(run_here):
    """One timestep per clip, and a warm-up of four iterations."""
    return run_here(micro_batch=4, p_async=0.0, warmup=4, iterations=[1, 2])


@pytest.fixture(scope="module")
def full(run_here):
    return run_here(method="full", rank=None, micro_batch=4, objective="authors")


def tensors(run, iteration=2):
    return load_file(run / f"iteration_{iteration}.safetensors")


def whole(run, iteration=2):
    return load_transformer(run / f"iteration_{iteration}").state_dict()


def distance(a, b):
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a)


def assert_same(a, b):
    """Equal up to the order of sums.

    AdamW divides a gradient by its own size: one of nearly zero, whose sign rounding decides,
    moves a weight by up to the learning rate in either way. So all but one weight in a
    hundred agree closely, and none is further off than two iterations' steps in both ways.
    """
    assert a.keys() == b.keys()
    gap = torch.cat([(a[name] - b[name]).abs().flatten() for name in a])
    assert (gap > 1e-4 * LEARNING_RATE + 1e-6).float().mean() < 0.01
    assert gap.max() < 4.1 * LEARNING_RATE


def assert_same_log(first, second):
    columns = ["iteration", "loss", "learning_rate", "gradient_norm"]
    a, b = (pd.read_csv(run / "training.csv")[columns] for run in (first, second))
    pd.testing.assert_frame_equal(a, b, rtol=1e-3, atol=2e-6)


@pytest.mark.slow
def test_number_of_processes_does_not_matter(one, tmp_path, latent_cache, model):
    """As the workflow does: two processes with half of the batch each."""
    finish(start_torchrun(2, latent_cache, model / "transformer", tmp_path))
    two = tmp_path / "out"
    assert_same(tensors(one), tensors(two))
    assert_same_log(one, two)
    a, b = (pd.read_csv(run / "validation.csv") for run in (one, two))
    pd.testing.assert_frame_equal(a, b, rtol=1e-3)


def test_accumulation_and_checkpointing_do_not_matter(one, accumulated):
    assert_same(tensors(one), tensors(accumulated))


@pytest.mark.parametrize("offload", ["optimizer", "activations", "both"])
def test_offload_does_not_matter(one, run_here, offload):
    offloaded = run_here(micro_batch=4, offload=offload, gradient_checkpointing=True)
    assert_same(tensors(one), tensors(offloaded))
    assert_same_log(one, offloaded)


def test_inputs_of_blocks_wait_in_the_hosts_memory(monkeypatch, run_here, model):
    moved = []

    def move(*, pin_memory):
        assert not pin_memory  # there is no GPU to copy from
        return torch.autograd.graph.saved_tensors_hooks(lambda t: moved.append(t) or t, lambda t: t)

    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", move)
    run_here(micro_batch=4, offload="activations", gradient_checkpointing=True)
    sizes = [tuple(t.shape) for t in moved]
    config = load_transformer(model / "transformer", torch.float32, "cpu").config
    dim = config.num_attention_heads * config.attention_head_dim
    inputs = [size for size in sizes if size[0] == 4 and size[-1] == dim and len(size) == 4]
    assert len(inputs) >= 2 * config.num_layers  # of two iterations


def test_bfloat16_lora(one, run_here):
    """Its weights are rounded for the computation, and what the optimizer adds up is not."""
    rounded = run_here(micro_batch=4, lora_dtype="bfloat16")
    assert all(t.dtype == torch.bfloat16 for t in tensors(rounded).values())
    a, b = (pd.read_csv(run / "training.csv") for run in (one, rounded))
    assert list(a["loss"]) != list(b["loss"])
    assert list(b["loss"]) == pytest.approx(list(a["loss"]), rel=0.01)


def test_what_diffusers_keeps_in_float32_stays_so(monkeypatch, run_here):
    seen = {}
    start = train.start_engine

    def keep(settings, model, world):
        before = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
        started = start(settings, model, world)
        after = dict(model.named_parameters())
        for name, parameter in before.items():
            torch.testing.assert_close(after[name], parameter, rtol=0, atol=0)
            seen[name] = after[name].dtype
        return started

    monkeypatch.setattr(train, "start_engine", keep)
    run_here(micro_batch=4, dtype="bfloat16", lora_dtype="bfloat16")
    assert {d for n, d in seen.items() if "time_embedder" in n} == {torch.float32}
    assert {d for n, d in seen.items() if "attn1.to_q.base_layer.weight" in n} == {torch.bfloat16}


def test_bfloat16_base(one, run_here):
    bfloat16 = run_here(micro_batch=4, dtype="bfloat16")
    assert all(t.dtype == torch.float32 for t in tensors(bfloat16).values())
    a, b = (pd.read_csv(run / "training.csv") for run in (one, bfloat16))
    assert list(a["loss"]) != list(b["loss"])
    assert list(b["loss"]) == pytest.approx(list(a["loss"]), rel=0.01)


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


def test_full_fine_tuning_changes_every_weight(full, model, new_transformer):
    base = load_transformer(model / "transformer").state_dict()
    trained = new_transformer(seed=1).from_pretrained(full / "iteration_2").state_dict()
    assert trained.keys() == base.keys()
    assert all(distance({"": base[name]}, {"": trained[name]}) > 1e-4 for name in base)
    table = pd.read_csv(full / "training.csv")
    assert table["loss"][1] < table["loss"][0]
    with safe_open(full / "iteration_2/diffusion_pytorch_model.safetensors", "pt") as file:
        info = json.loads(file.metadata()["pusa"])
    assert (info["base"], info["iteration"]) == (digest_weights(model / "transformer"), 2)
    assert info["objective"] == "authors"


@pytest.mark.slow
def test_full_fine_tuning_on_two_processes(full, tmp_path, latent_cache, model):
    options = {"method": "full", "rank": None, "objective": "authors"}
    options |= {"micro_batch": 1, "gradient_checkpointing": True}
    join(start_processes(2, latent_cache, model / "transformer", tmp_path, **options))
    assert_same(whole(full), whole(tmp_path / "out"))
    assert_same_log(full, tmp_path / "out")


def test_full_fine_tuning_in_bfloat16(full, run_here):
    options = {"method": "full", "rank": None, "micro_batch": 4, "objective": "authors"}
    run = run_here(**options, dtype="bfloat16", offload="optimizer")
    saved = load_file(run / "iteration_2/diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    a, b = (pd.read_csv(r / "training.csv") for r in (full, run))
    assert list(b["loss"]) == pytest.approx(list(a["loss"]), rel=0.01)


def test_learning_rate_and_warmup(accumulated, synchronous):
    """AdamW's first step moves a weight by the learning rate, whatever its gradient."""
    for run, rate in ((accumulated, LEARNING_RATE), (synchronous, LEARNING_RATE / 4)):
        steps = [t.abs().max() for name, t in tensors(run, 1).items() if "lora_B" in name]
        assert max(steps).item() == pytest.approx(rate, rel=1e-3)
        assert min(steps).item() == pytest.approx(rate, rel=0.05)
        assert pd.read_csv(run / "training.csv")["learning_rate"][0] == pytest.approx(rate)


def test_gradient_norm(one, latent_cache, model):
    """As autograd has it, without DeepSpeed; the authors' objective weighs the same batch."""
    settings = settings_of(micro_batch=4)
    transformer = train._load_model(settings, model / "transformer", torch.device("cpu"))

    class Engine(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, *args, **kwargs):
            return transformer(*args, **kwargs)

    batch = draw_batch(LatentCache(latent_cache), FIVE, settings, 1, range(4))
    loss = training_loss(Engine(), *batch, settings)
    loss.backward()
    squares = [p.grad.square().sum() for p in transformer.parameters() if p.grad is not None]
    first = pd.read_csv(one / "training.csv").iloc[0]
    assert first["gradient_norm"] == pytest.approx(sum(squares).sqrt().item(), rel=1e-4)
    assert first["loss"] == pytest.approx(loss.item(), rel=1e-4)
    weighted = training_loss(Engine(), *batch, settings_of(objective="authors"))
    assert abs(weighted - loss) > 1e-3


def test_metadata(one, synchronous, model):
    info = lora_info(open_lora(one / "iteration_2.safetensors"))
    assert (info.rank, info.lora_alpha, info.iteration) == (2, 2, 2)
    assert (info.p_async, info.vectorized, info.objective) == (1.0, True, "paper")
    assert info.base == digest_weights(model / "transformer")
    other = lora_info(open_lora(synchronous / "iteration_2.safetensors"))
    assert (other.p_async, other.vectorized) == (0.0, False)


def test_p_async_decides_what_is_learnt(one, synchronous):
    losses = [pd.read_csv(run / "training.csv")["loss"] for run in (one, synchronous)]
    assert abs(losses[0][0] - losses[1][0]) > 1e-3  # before any step: other noise levels
    assert distance(tensors(one), tensors(synchronous)) > 1e-3


def test_authors_objective_draws_shifted_levels(latent_cache):
    data = LatentCache(latent_cache)
    u = 1 - torch.arange(1000) / 1000
    grid = 5 * u / (1 + 4 * u)
    _, _, sigma, _ = draw_batch(data, FIVE, settings_of(objective="authors"), 1, range(4))
    assert ((sigma.flatten()[:, None] - grid).abs().min(dim=1).values < 1e-6).all()


def test_validation_does_not_depend_on_the_run(one, synchronous):
    first = [
        pd.read_csv(run / "validation.csv").query("iteration == 0")["value"].tolist()
        for run in (one, synchronous)
    ]
    assert first[0] == first[1]


def test_saved_iterations(one, accumulated):
    assert [p.name for p in sorted(one.glob("*.safetensors"))] == ["iteration_2.safetensors"]
    assert distance(tensors(accumulated, 1), tensors(accumulated, 2)) > 1e-3
    assert lora_info(open_lora(accumulated / "iteration_1.safetensors")).iteration == 1


def test_result_merges(one, model, tmp_path):
    lora = one / "iteration_2.safetensors"
    merge_lora(model / "transformer", lora, tmp_path / "merged", lora_scale=1.4)


# The batch of an iteration


FIVE = [0, 1, 2, 3, 4]  # clips to train on, of six


def test_what_is_left_out_is_not_drawn():
    settings, some = settings_of(total_batch=3), [0, 2, 3]
    assert sorted(draw_clips(some, settings, 1, range(3))) == some


def test_an_epoch_takes_every_training_clip_once(latent_cache):
    data, settings = LatentCache(latent_cache), settings_of(total_batch=5)
    held_out = data.latents(5)
    for epoch in (1, 2):
        x0, x1, sigma, _ = draw_batch(data, FIVE, settings, epoch, range(5))
        found = sorted(next(i for i in range(6) if torch.equal(x, data.latents(i))) for x in x0)
        assert found == [0, 1, 2, 3, 4]
        assert not any(torch.equal(x, held_out) for x in x0)
        assert x1.shape == x0.shape
        assert len(sigma.unique()) == 15


def test_noise_and_levels_never_repeat(latent_cache):
    data, settings = LatentCache(latent_cache), settings_of()
    batches = [draw_batch(data, FIVE, settings, i, range(4)) for i in (1, 2, 3)]
    for part in (1, 2):
        values = torch.cat([batch[part] for batch in batches]).flatten(1)
        assert len(values.unique(dim=0)) == 12
    other = draw_batch(data, FIVE, settings_of(seed=1), 1, range(4))
    assert not torch.equal(other[1], batches[0][1])


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_batch": 3}, r"total_batch 4 is not a multiple of 1 processes x .*micro_batch 3"),
        ({"validation_clips": 6}, r"holds 6 clips, expected more than the 6 of train\.validation"),
        ({"rank": 25}, r"rank: found 25, expected at most 24, the smallest dimension"),
    ],
)
def test_impossible_settings(tmp_path, latent_cache, model, changes, message):
    with pytest.raises(ValueError, match=message):
        train.train(
            latent_cache,
            model / "transformer",
            tmp_path / "run",
            settings_of(**changes),
            state=tmp_path / "state",
        )
    assert not list(tmp_path.iterdir())


@pytest.fixture
def other_cache(tmp_path, latent_cache):
    """A copy of the cache, to be spoilt."""
    return shutil.copytree(latent_cache, tmp_path / "cache")


def change(file, function):
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file({n: function(n, t).contiguous() for n, t in load_file(file).items()}, file, metadata)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("latents-00000", r"cache has 8 latent channels, but .*transformer takes 16; cache the"),
        ("captions", r"cache has 8 prompt embedding dimensions, but .*transformer takes \d+"),
    ],
)
def test_cache_of_another_model(tmp_path, other_cache, model, file, message):
    narrow = {"latents-00000": lambda _, t: t[:8], "captions": lambda _, t: t[:, :8]}[file]
    change(other_cache / f"{file}.safetensors", narrow)
    arguments = (other_cache, model / "transformer", tmp_path / "run", settings_of())
    with pytest.raises(ValueError, match=message):
        train.train(*arguments, state=tmp_path / "state")


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_cache_that_another_model_encoded(tmp_path, latent_cache, model, part):
    """Of the same shapes, so that the latents do not show it."""
    other = shutil.copytree(model, tmp_path / "model")
    file = next((other / part).glob("*.safetensors"))
    save_file({n: 1.01 * t for n, t in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"was encoded by another {part} than .*model/{part},"):
        train.train(
            latent_cache,
            other / "transformer",
            tmp_path / "run",
            settings_of(),
            state=tmp_path / "state",
        )


def test_damaged_cache(tmp_path, other_cache, model):
    arguments = (other_cache, model / "transformer", tmp_path / "run", settings_of())
    shard = other_cache / "latents-00000.safetensors"
    whole_shard = shard.read_bytes()
    shard.write_bytes(whole_shard[:-100])
    with pytest.raises(ValueError, match=r"latents-00000\.safetensors is damaged .*cache the"):
        train.train(*arguments, state=tmp_path / "state")
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"latents-00000\.safetensors is missing"):
        train.train(*arguments, state=tmp_path / "state")
    shard.write_bytes(whole_shard)
    save_file({"0": torch.zeros(1)}, shard)
    with pytest.raises(ValueError, match=r"latents-00000\.safetensors lacks clip 1, which"):
        train.train(*arguments, state=tmp_path / "state")


@pytest.mark.parametrize(("out", "state"), [("a", "a"), ("a", "a/state"), ("a/out", "a")])
def test_folders_apart(tmp_path, latent_cache, model, out, state):
    with pytest.raises(ValueError, match="must not hold one another"):
        train.train(
            latent_cache,
            model / "transformer",
            tmp_path / out,
            settings_of(),
            state=tmp_path / state,
        )


def test_without_torchrun(monkeypatch, tmp_path, latent_cache, model):
    monkeypatch.delenv("RANK")
    arguments = (latent_cache, model / "transformer", tmp_path / "run", settings_of())
    with pytest.raises(ValueError, match="started by torchrun"):
        train.train(*arguments, state=tmp_path / "state")


@pytest.mark.slow
def test_loss_that_is_not_finite(tmp_path, other_cache, model):
    """One of two processes meets it; both stop before the step, and one of them says why."""
    settings = settings_of(micro_batch=1)
    # Four of five clips are drawn in iteration 1: the poisoned one is met in iteration 2, first.
    first = draw_clips(FIVE, settings, 1, range(4))
    poisoned = next(i for i in range(5) if i not in first)
    assert draw_clips(FIVE, settings, 2, range(4))[0] == poisoned
    shard = other_cache / "latents-00000.safetensors"
    change(shard, lambda name, t: t * float("nan") if name == str(poisoned) else t)
    files = (other_cache, model / "transformer", tmp_path)
    errors = finish(start_torchrun(2, *files, checkpoint_every=1, micro_batch=1), exit_code=1)
    file = LatentCache(other_cache).clips[poisoned]["file"]
    # Threads of the other process that still run may write behind it, without a new line.
    assert [
        line.removesuffix("terminate called without an active exception") for line in errors
    ] == [
        f"error: the loss is nan at iteration 2, with the clips {file} "
        f"(tensor {poisoned} of latents-00000.safetensors)"
    ]
    assert len(pd.read_csv(tmp_path / "state/training.csv")) == 1
    assert (tmp_path / "state/checkpoint-1/checkpoint.json").exists()
    assert not (tmp_path / "out/training.csv").exists()
