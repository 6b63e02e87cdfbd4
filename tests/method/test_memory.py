"""What is counted, against what is measured on a CPU in two ways, and an independent count."""

import gc
import json
import re
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from pusa import memory
from pusa.config import MemorySettings, Size, TrainSettings
from pusa.memory import GIB, LiveBytes, add_deepspeed, count_encoding, count_sampling, count_step
from pusa.models.load import decode_latents, encode_pixels
from pusa.sampler import model_velocity
from pusa.train import engine as engines
from pusa.train.step import training_loss
from pusa.transformer import VTAWanTransformer3DModel
from tests.conftest import build_vae
from tests.mini import ROOT
from tests.training import process_group

WAN = "Wan-AI/Wan2.1-T2V-14B-Diffusers"
#: Small, but large enough for activations to show beside what a CPU's kernels take.
TRANSFORMER = {
    "num_attention_heads": 4,
    "attention_head_dim": 48,
    "ffn_dim": 512,
    "num_layers": 4,
    "in_channels": 16,
    "text_dim": 64,
}
SETTINGS = MemorySettings(
    frames=17,
    height=192,
    width=192,
    text_tokens=16,
    rank=32,
    total_batch=1,
    dtype="float32",
    lora_dtype="float32",
)
LATENTS = (1, 16, 5, 24, 24)


def measure(function, *there):
    """Bytes that a call takes at most beside modules and tensors that are there.

    Of living storages; and by torch's profiler, which sees every allocation.
    """
    known = [
        tensor
        for one in there
        for tensor in ([*one.parameters(), *one.buffers()] if hasattr(one, "buffers") else [one])
    ]
    gc.collect()
    with LiveBytes(known, device="cpu") as live:
        function()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        torch.empty(1)
        with record_function("measured"):
            function()
    return live.peak, allocated(profiler)


def allocated(profiler):
    """The highest of the profiler's totals while ``measured`` ran, beside the one before."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(file))
        trace = json.loads(file.read_text())["traceEvents"]
    span = next(e for e in trace if e.get("name") == "measured" and e.get("ph") == "X")
    totals = sorted(
        (e["ts"], e["args"]["Total Allocated"]) for e in trace if e.get("name") == "[memory]"
    )
    before = [total for at, total in totals if at < span["ts"]]
    within = [total for at, total in totals if 0 <= at - span["ts"] <= span["dur"]]
    return max(within) - before[-1]


@pytest.fixture(autouse=True)
def plain_linear(monkeypatch):
    """ZeRO-3 of another test leaves a linear layer of its own, which keeps other tensors."""
    monkeypatch.setattr(torch.nn.functional, "linear", torch._C._nn.linear)


@pytest.fixture
def small_buckets(monkeypatch):
    """DeepSpeed's buckets so small that a training of this size fills several of them."""
    monkeypatch.setattr(memory, "BUCKET", 100_000)
    monkeypatch.setattr(memory, "LIVE", 100_000)
    monkeypatch.setattr(memory, "SUB_GROUP", 400_000)
    sizes = {"reduce_bucket_size": 100_000, "allgather_bucket_size": 100_000}
    sizes |= {"stage3_max_live_parameters": 100_000, "sub_group_size": 400_000}
    initialize = engines.deepspeed.initialize

    def start(config, **arguments):
        config["zero_optimization"] |= sizes
        return initialize(config=config, **arguments)

    monkeypatch.setattr(engines.deepspeed, "initialize", start)
    # As on a GPU: the other kind makes tensors of its own in every step.
    adamw = torch.optim.AdamW
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda parameters, lr, fused: adamw(parameters, lr=lr, fused=True)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_checkpointing": False, "dtype": "bfloat16", "total_batch": 2, "micro_batch": 1},
        {"rank": 128, "height": 64, "width": 64},  # most in the optimizer's step
        {"dtype": "bfloat16", "lora_dtype": "bfloat16"},
        {"rank": 128, "height": 64, "width": 64, "lora_dtype": "bfloat16"},
        {"method": "full", "rank": None},
    ],
    ids=str,
)
def test_training_as_measured(small_buckets, changes):
    """An iteration of the real loop, DeepSpeed and all, from the second on."""
    settings = SETTINGS.model_copy(update=changes)
    counted = sum(add_deepspeed(count_step(TRANSFORMER, settings), settings).values()) * GIB
    train = settings.part(TrainSettings, iterations=[1], micro_batch=1)
    with process_group(), LiveBytes(device="cpu") as held:
        engines.join_processes()
        engine, _ = engines.start_engine(train, engines.prepare(build(train.dtype), train), 1)

        def iterate():
            for _ in range(settings.total_batch):
                x0 = torch.randn(*LATENTS[:3], settings.height // 8, settings.width // 8)
                sigma, prompt = torch.rand(1, 5), torch.randn(1, 16, 64)
                loss = training_loss(engine, x0, torch.randn_like(x0), sigma, prompt, train)
                engine.backward(loss)
                engine.step()

        iterate()
        gc.collect()
        before = held.live
        held.peak = before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            torch.empty(1)
            with record_function("measured"):
                iterate()
        peak = held.peak
        engines.stop_engine(engine)
    assert counted == pytest.approx(peak, rel=0.1)
    assert counted == pytest.approx(before + allocated(profiler), rel=0.1)


def build(dtype):
    model = memory.build_transformer(TRANSFORMER, dtype, TRANSFORMER["num_layers"])
    weights = VTAWanTransformer3DModel.from_config(TRANSFORMER).state_dict()
    model = model.to_empty(device="cpu").train()
    model.rope = VTAWanTransformer3DModel.from_config(TRANSFORMER).rope  # not in the state
    model.load_state_dict(weights)
    return model


def test_sampling_as_measured():
    """A forward pass; sampling has two of them, one after the other."""
    settings = SETTINGS.model_copy(update={"sample_dtype": "float32"})
    model = VTAWanTransformer3DModel.from_config(TRANSFORMER).eval()
    vae = build_vae().eval()
    inputs = (torch.randn(LATENTS), 1000 * torch.rand(1, 5), torch.randn(1, 16, 64))
    weights = sum(p.nbytes for part in (model, vae) for p in part.parameters())
    sampling, _ = count_sampling(TRANSFORMER, dict(vae.config), settings)
    for measured in measure(
        torch.no_grad()(partial(model_velocity(model), *inputs)), model, *inputs
    ):
        assert sampling * GIB == pytest.approx(weights + measured, rel=0.1)


def test_encoding_and_decoding_as_measured(monkeypatch):
    """By living storages alone: a CPU's convolution unfolds its input within itself."""
    size, vae = Size(frames=17, height=192, width=192), build_vae().eval()
    monkeypatch.setattr(memory, "ENCODED_PIXELS", 1)
    weights = sum(p.nbytes for p in vae.parameters())
    pixels = torch.rand(1, 3, 17, 192, 192)
    encoding = count_encoding(dict(vae.config), size) * GIB - weights - pixels.nbytes
    measured, _ = measure(partial(encode_pixels, vae, pixels), vae, pixels)
    assert encoding == pytest.approx(measured, rel=0.1)
    settings = SETTINGS.model_copy(update={"sample_dtype": "float32"})
    model = sum(p.nbytes for p in build("float32").parameters())
    decoding = count_sampling(TRANSFORMER, dict(vae.config), settings)[1] * GIB - model - weights
    latents = torch.randn(LATENTS)
    measured, _ = measure(partial(decode_latents, vae, latents), vae, latents)
    assert decoding == pytest.approx(measured, rel=0.1)


def test_other_depths_lie_on_the_line(monkeypatch):
    line = count_step(TRANSFORMER | {"num_layers": 9}, SETTINGS)
    monkeypatch.setattr(memory, "DEPTHS", (8, 9))
    assert line == count_step(TRANSFORMER | {"num_layers": 9}, SETTINGS)


@pytest.mark.parametrize(
    ("height", "width", "lora_dtype", "step_gib", "inputs_gib", "forward_gib"),
    [
        (480, 832, "float32", 66, 12.5, 3.8),
        (480, 832, "bfloat16", 56, 12.5, 3.8),
        (720, 1280, "float32", 105, 28.8, 8.7),
        (720, 1280, "bfloat16", 88, 28.8, 8.7),
    ],
)
def test_an_independent_count(height, width, lora_dtype, step_gib, inputs_gib, forward_gib):
    """Rank 512 on the 14B model, checkpointing on the GPU, one clip.

    Made by others on the meta device, before optimizer shards: of a step, of its 40 block inputs,
    and of a forward pass alone.
    """
    transformer, vae = memory.read_sizes(WAN)
    settings = MemorySettings(
        frames=81, height=height, width=width, rank=512, lora_dtype=lora_dtype, processes=8
    )
    step = count_step(transformer, settings)
    assert (step.frozen + step.trained + step.activations) / GIB == pytest.approx(step_gib, abs=0.5)
    assert step.block * step.layers / GIB == pytest.approx(inputs_gib, abs=0.05)
    held = step.frozen + sum(p.nbytes for p in memory._build_vae(vae).parameters())
    forward = count_sampling(transformer, vae, settings)[0] - held / GIB
    # Beside the pass there are the sampler's latents, of some MiB, and its prompt embeddings.
    assert forward == pytest.approx(forward_gib, abs=0.15)


def test_a_training_that_cannot_fit_says_what_helps():
    settings = MemorySettings(
        frames=81,
        height=720,
        width=1280,
        rank=512,
        processes=2,
        micro_batch=2,
        gradient_checkpointing=False,
        dtype="float32",
    )
    transformer, _ = memory.read_sizes("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    step = count_step(transformer, settings)
    with pytest.raises(ValueError, match="rank 512 at 1280x720x81 on 2 GPUs takes") as error:
        memory.require_fit(transformer, settings, step)
    _, told = str(error.value).split("what helps: ")
    helps = dict(re.findall(r"(?:^|, )([^,()]+(?:\([^)]*x[^)]*\))?) \((\d+\.\d) less\)", told))
    assert [*helps] == [
        "train.gradient_checkpointing: true",
        "train.offload: optimizer",
        "train.dtype: bfloat16",
        "rank 256 in the experiments sheet",
        "train.micro_batch: 1",
        "4 processes (train.nodes x train.processes)",
        "a clip of 832x480",
        "clip.frames: 41",
    ]
    less = settings.model_copy(update={"offload": "optimizer"})
    takes = [sum(add_deepspeed(step, s).values()) for s in (settings, less)]
    assert float(helps["train.offload: optimizer"]) == pytest.approx(takes[0] - takes[1], abs=0.06)
    memory.require_fit(transformer, settings.model_copy(update={"gpu_memory": 2000.0}), step)


def test_unknown_model():
    with pytest.raises(ValueError, match="model a/b: found no such folder, expected a model"):
        memory.read_sizes("a/b")


@pytest.mark.slow
def test_table_of_what_fits_is_current(tmp_path):
    page = ROOT / "docs/reproduce.md"
    copy = tmp_path / "reproduce.md"
    copy.write_text(page.read_text())
    memory.write_fits(copy)
    assert copy.read_text() == page.read_text()
