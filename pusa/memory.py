"""What one GPU must hold, counted before there is one: training, sampling, encoding, decoding.

Our own modules run on PyTorch's meta device, whose tensors have a shape and take no memory, while
the sizes of living storages are added up. No weights are needed, and two depths of the transformer
give the rest by a straight line. What DeepSpeed holds beside them is a formula, as no process
stands for several; it follows ``deepspeed/runtime/zero`` of release 0.19.8. Sizes are GiB.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pusa.clip import count_latent_frames
from pusa.config import MemorySettings, Size, TrainSettings
from pusa.data.cache import ENCODED_PIXELS
from pusa.flow import TRAIN_TIMESTEPS, fafm_loss, interpolate, sigma_grid
from pusa.models.folder import read_part
from pusa.models.load import decode_latents, encode_pixels, latent_shape
from pusa.sampler import model_velocity, sample_latents
from pusa.speed import KNOWN_SHAPES, LATENT_CHANNELS, LATENT_STRIDE
from pusa.train.engine import prepare
from pusa.transformer import VTAWanTransformer3DModel

#: Assumed for what no count sees: the driver, CUDA's context, workspaces of its libraries.
RESERVED_GIB = 2.0
#: Depths of the transformer that are run; the others lie on a line through them.
DEPTHS = (2, 4)
#: DeepSpeed's `reduce_bucket_size`, `stage3_max_live_parameters` and `sub_group_size`, elements.
BUCKET, LIVE, SUB_GROUP = 500_000_000, 1_000_000_000, 1_000_000_000
#: Bytes of a float32 master weight and AdamW's two moments; of a float32 gradient.
OPTIMIZER, GRADIENT = 12, 4
GIB = 2**30


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations make on a device, for as long as each of them lives.

    Args:
        known: tensors that are there before, and do not count.
    """

    def __init__(self, known: Iterable[torch.Tensor] = (), device: str = "meta"):
        super().__init__()
        self.device = device
        self.live, self.peak = 0, 0
        self._sizes: dict[int, int] = {}
        for tensor in known:
            self._add(tensor, counts=False)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self.device:
                self._add(tensor)
        return made

    def _add(self, tensor: torch.Tensor, *, counts: bool = True) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._sizes:
            return
        self._sizes[storage._cdata] = storage.nbytes() if counts else 0
        self.live += self._sizes[storage._cdata]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, storage._cdata).atexit = False

    def _remove(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


class _FlashAttention(torch.autograd.Function):
    """What a flash kernel makes and keeps; the meta kernel would make the matrix of all scores."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query)
        logsumexp = query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx, _):
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@contextmanager
def flash_attention() -> Iterator[None]:
    """Let every attention, in a backward pass too, make and keep what a flash kernel would."""
    attention = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = lambda query, key, value, **_: _FlashAttention.apply(
        query, key, value
    )
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = attention


# What is run


@dataclass(frozen=True)
class Step:
    """A training step of one process without DeepSpeed, in bytes."""

    frozen: int
    trained: int
    elements: int  # of what is trained
    activations: int  # with the gradients of the block at work
    block: int  # of these, what one block leaves for its backward pass
    layers: int


def count_step(transformer: dict[str, Any], settings: MemorySettings) -> Step:
    """Count a forward and a backward pass of a transformer's config, as `pusa.train.step` has it.

    Gradients are taken away as soon as they are made, as ZeRO does.
    """
    low, high = (_count_step(transformer, settings, depth) for depth in DEPTHS)
    layers = transformer["num_layers"]
    per_block = [(b - a) / (DEPTHS[1] - DEPTHS[0]) for a, b in zip(low, high, strict=True)]
    at = [int(a + (layers - DEPTHS[0]) * b) for a, b in zip(low, per_block, strict=True)]
    return Step(*at, block=int(per_block[-1]), layers=layers)


def _count_step(
    transformer: dict[str, Any], settings: MemorySettings, layers: int
) -> tuple[int, int, int, int]:
    train = settings.part(TrainSettings, iterations=[1])
    model = build_transformer(transformer, train.dtype, layers).train()
    with torch.device("meta"):
        model = prepare(model, train)
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(_forget_gradient)
    x0, prompt = _inputs(transformer, settings, _micro_batch(settings))
    dtype = getattr(torch, train.dtype)
    with LiveBytes(model.parameters()) as memory, flash_attention():
        x1, sigma = torch.empty_like(x0), x0.new_empty(len(x0), x0.shape[2])
        latents = interpolate(x0, x1, sigma).to(dtype)
        timestep = TRAIN_TIMESTEPS * sigma
        prediction = model(latents, timestep, prompt.to(dtype), return_dict=False)[0]
        fafm_loss(prediction, x0, x1).backward()
    size = _bytes(trained)
    frozen = _bytes(model.parameters()) - size
    return frozen, size, sum(p.numel() for p in trained), memory.peak


def _forget_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def count_sampling(
    transformer: dict[str, Any], vae: dict[str, Any], settings: MemorySettings
) -> tuple[float, float]:
    """GiB at most while a job samples, and while it decodes what it sampled.

    Transformer and VAE lie on the GPU at once.
    """
    peaks, sizes = [], []
    for layers in DEPTHS:
        model = build_transformer(transformer, settings.sample_dtype, layers)
        noise, prompt = _inputs(transformer, settings, settings.batch_size)
        with LiveBytes(model.parameters()) as memory, flash_attention():
            sample_latents(
                model_velocity(model),
                noise,
                sigma_grid(1),
                multipliers=torch.ones(noise.shape[2]),
                condition=torch.empty_like(noise),
                prompt_embeds=prompt,
                negative_embeds=torch.empty_like(prompt),
                guidance_scale=2.0,  # any but 1, which takes one pass
            )
        peaks.append(memory.peak)
        sizes.append(_bytes(model.parameters()))
    per_block = (sizes[1] - sizes[0]) / (DEPTHS[1] - DEPTHS[0])
    weights = sizes[0] + (transformer["num_layers"] - DEPTHS[0]) * per_block
    decoder = _build_vae(vae)
    held = weights + _bytes(decoder.parameters())
    latents = torch.empty(settings.batch_size, *latent_shape(decoder, settings), device="meta")
    decoding = _peak_without_gradients(decode_latents, decoder, latents)
    return (held + max(peaks)) / GIB, (held + decoding) / GIB


def count_encoding(vae: dict[str, Any], size: Size) -> float:
    """GiB at most while clips are encoded, as many at once as `pusa.data.cache` takes."""
    encoder = _build_vae(vae)
    clips = max(1, ENCODED_PIXELS // (size.frames * size.height * size.width))
    pixels = torch.empty(clips, 3, size.frames, size.height, size.width, device="meta")
    peak = pixels.nbytes + _peak_without_gradients(encode_pixels, encoder, pixels)
    return (_bytes(encoder.parameters()) + peak) / GIB


def _peak_without_gradients(function: Callable, vae: AutoencoderKLWan, given: torch.Tensor) -> int:
    with LiveBytes([*vae.parameters(), given]) as memory, flash_attention():
        function(vae, given)
    return memory.peak


def build_transformer(config: dict[str, Any], dtype: str, layers: int) -> VTAWanTransformer3DModel:
    """A transformer without memory for its weights, of the types that `from_pretrained` makes."""
    with torch.device("meta"):
        model = VTAWanTransformer3DModel.from_config({**config, "num_layers": layers})
    kept = {*model._keep_in_fp32_modules}
    for name, parameter in model.named_parameters():
        if kept.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(getattr(torch, dtype))
    return model


def _build_vae(config: dict[str, Any]) -> AutoencoderKLWan:
    with torch.device("meta"):
        return AutoencoderKLWan.from_config(config).eval()


def _inputs(
    transformer: dict[str, Any], settings: MemorySettings, clips: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and prompt embeddings in float32, as they come from their caches."""
    frames, side = count_latent_frames(settings.frames), LATENT_STRIDE
    size = (frames, settings.height // side, settings.width // side)
    latents = torch.empty(clips, transformer["in_channels"], *size, device="meta")
    text = (clips, settings.text_tokens, transformer["text_dim"])
    return latents, torch.empty(text, device="meta")


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _micro_batch(settings: MemorySettings) -> int:
    return settings.micro_batch or max(1, settings.total_batch // settings.processes)


# What DeepSpeed holds beside it


def add_deepspeed(step: Step, settings: MemorySettings) -> dict[str, float]:
    """GiB on each GPU by what takes them, at the moment of a training when most is needed.

    What ``offload`` moves is the host's: masters, moments and gradients, and the inputs of all
    blocks but the one at work.
    """
    if _moves(settings, "activations"):
        left = step.activations - step.block * (step.layers - 1)
        step = replace(step, activations=left, block=0)
    moments = _zero3(step, settings) if settings.method == "full" else _zero2(step, settings)
    most = max(moments, key=lambda moment: sum(moment.values()))
    return {name: size / GIB for name, size in most.items()}


def _zero2(step: Step, settings: MemorySettings) -> list[dict[str, float]]:
    """Moments of a training with ZeRO-2, from the second iteration on.

    Every process has all weights, and its share of float32 masters and moments. A backward pass
    copies gradients to a bucket of fixed size; a full one is reduced in a copy, and this process's
    share of it goes to a buffer for all of its gradients. The optimizer's step copies that, in
    float32.
    """
    share = 0 if _moves(settings, "optimizer") else step.elements / settings.processes
    held = {
        "weights": step.frozen,
        "LoRA": step.trained,
        "optimizer": OPTIMIZER * share,
    }
    bucket = BUCKET * step.trained / step.elements
    gradients = step.trained / step.elements * share
    # Of earlier micro-batches of an iteration, which are added to.
    earlier = gradients if settings.total_batch > settings.processes * _micro_batch(settings) else 0
    blocks = math.ceil(BUCKET / step.elements * step.layers)  # until a bucket is full
    moments = [
        held | {"gradients": bucket + earlier, "activations": step.activations},
        held | {"gradients": bucket + min(bucket, step.trained) + gradients + earlier},
        held | {"gradients": gradients + GRADIENT * share},
    ]
    if blocks < step.layers:
        left = step.activations - blocks * step.block
        moments.append(held | {"gradients": 2 * bucket + gradients + earlier, "activations": left})
    return moments


def _zero3(step: Step, settings: MemorySettings) -> list[dict[str, float]]:
    """Moments of a training of all weights with ZeRO-3.

    Every process has its share of weights, float32 masters and moments, and float32 gradients;
    beside them the gathered weights of the blocks at work, and a bucket and its copy. Before it is
    shared, each process has read the whole model.
    """
    share = step.elements / settings.processes
    size = step.trained / step.elements
    bucket = size * BUCKET
    gathered = size * min(LIVE, step.elements) if settings.processes > 1 else 0
    held = {"weights": size * share, "optimizer": 0, "gradients": bucket}
    if not _moves(settings, "optimizer"):
        held["optimizer"] = OPTIMIZER * share
        held["gradients"] += GRADIENT * share
    copied = 0 if _moves(settings, "optimizer") else GRADIENT * min(SUB_GROUP, share)
    return [
        {"weights": step.trained},
        {
            "weights": held["weights"] + gathered,
            "optimizer": held["optimizer"],
            "gradients": held["gradients"] + bucket,
            "activations": step.activations,
        },
        held | {"gradients": held["gradients"] + copied},
    ]


# In words


def describe_memory(
    transformer: dict[str, Any], vae: dict[str, Any], settings: MemorySettings, step: Step | None
) -> list[str]:
    """What a GPU must hold, a line for the training step, if there is one, and one for the rest."""
    sampling, decoding = count_sampling(transformer, vae, settings)
    needs = {"sampling": sampling, "decoding": decoding, "encoding": count_encoding(vae, settings)}
    others = (
        f"{what} {gib:.1f} GiB{'' if _fits(gib, settings) else ' (does not fit)'}"
        for what, gib in needs.items()
    )
    lines = [", ".join(others)]
    if step is not None:
        parts = add_deepspeed(step, settings)
        told = ", ".join(f"{what} {gib:.1f}" for what, gib in parts.items())
        lines.insert(0, f"{_name(settings)} {sum(parts.values()):.1f} GiB: {told}")
    return lines


def require_fit(transformer: dict[str, Any], settings: MemorySettings, step: Step) -> None:
    """Refuse a training that needs more than a GPU has.

    Raises:
        ValueError: that names the keys that would help, and how much less each makes it.
    """
    needed = sum(add_deepspeed(step, settings).values())
    if _fits(needed, settings):
        return
    helps = []
    for what, changes in _changes(settings):
        changed = settings.model_copy(update=changes)
        shared = changes.keys() <= {"offload", "processes", "micro_batch"} and (
            _micro_batch(changed) == _micro_batch(settings)
        )
        other = step if shared else count_step(transformer, changed)
        less = needed - sum(add_deepspeed(other, changed).values())
        if less > 0.05:
            helps.append(f"{what} ({less:.1f} less)")
    raise ValueError(
        f"{_name(settings)} takes {needed:.1f} GiB of each, expected at most "
        f"{settings.gpu_memory - RESERVED_GIB:g}: resources.gpu_memory {settings.gpu_memory:g} but "
        f"for the {RESERVED_GIB:g} of CUDA; what helps: {', '.join(helps) or 'no key'}"
    )


def _changes(settings: MemorySettings) -> Iterator[tuple[str, dict[str, Any]]]:
    """What may take less memory: in words, and as settings."""
    if not settings.gradient_checkpointing:
        yield "train.gradient_checkpointing: true", {"gradient_checkpointing": True}
    for what in ("activations", "optimizer", "both"):
        if what != settings.offload and (settings.gradient_checkpointing or what == "optimizer"):
            yield f"train.offload: {what}", {"offload": what}
    if settings.dtype == "float32":
        yield "train.dtype: bfloat16", {"dtype": "bfloat16"}
    if settings.lora_dtype == "float32" and settings.method == "lora":
        yield "train.lora_dtype: bfloat16", {"lora_dtype": "bfloat16"}
    if settings.rank and settings.rank > 1:
        rank = settings.rank // 2
        yield f"rank {rank} in the experiments sheet", {"rank": rank}
    if (clips := _micro_batch(settings)) > 1:
        yield "train.micro_batch: 1", {"micro_batch": 1}
    processes = 2 * settings.processes
    if settings.total_batch % (processes * clips) == 0:
        micro = {"processes": processes, "micro_batch": clips}
        yield f"{processes} processes (train.nodes x train.processes)", micro
    if settings.height * settings.width > 480 * 832:
        yield "a clip of 832x480", {"height": 480, "width": 832}
    frames = settings.frames // 8 * 4 + 1
    if frames < settings.frames:
        yield f"clip.frames: {frames}", {"frames": frames}


def _moves(settings: MemorySettings, what: str) -> bool:
    return settings.offload in (what, "both")


def _name(settings: MemorySettings) -> str:
    what = f"rank {settings.rank}" if settings.method == "lora" else "all weights"
    size = f"{settings.width}x{settings.height}x{settings.frames}"
    gpus = "1 GPU" if settings.processes == 1 else f"{settings.processes} GPUs"
    return f"training of {what} at {size} on {gpus}"


def _fits(gib: float, settings: MemorySettings) -> bool:
    return gib + RESERVED_GIB <= settings.gpu_memory


def read_sizes(model: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configs of a model's transformer and VAE.

    Args:
        model: a model folder, or the name of a known repository.

    Raises:
        ValueError: if it is neither.
    """
    folder = Path(model)
    if folder.is_dir():
        return read_part(folder / "transformer", "transformer"), read_part(folder / "vae", "vae")
    if model not in KNOWN_SHAPES:
        raise ValueError(
            f"model {model}: found no such folder, expected a model folder or one of "
            f" {', '.join(KNOWN_SHAPES)}"
        )
    shape = KNOWN_SHAPES[model]
    transformer = {
        "num_attention_heads": shape.dim // 128,
        "attention_head_dim": 128,
        "ffn_dim": shape.ffn_dim,
        "num_layers": shape.layers,
        "in_channels": LATENT_CHANNELS,
        "text_dim": 4096,
    }
    return transformer, {}  # the VAE of diffusers' defaults


def describe_fits() -> str:
    """The table of what fits, Markdown."""
    memories, gpus = (24, 48, 80, 141), (1, 2, 4, 8)
    lines = [
        f"| model, clip, rank, LoRA | {' | '.join(f'{m} GB' for m in memories)} | GiB on 8 |",
        f"|---|{'---|' * (len(memories) + 1)}",
    ]
    clips = {"832x480x81": (81, 480, 832), "1280x720x81": (81, 720, 1280)}
    moved = ("none", "activations", "both")
    dtypes = ("bfloat16", "float32")
    for model, (clip, size), rank, dtype in product(
        KNOWN_SHAPES, clips.items(), (256, 512), dtypes
    ):
        frames, height, width = size
        settings = MemorySettings(
            frames=frames, height=height, width=width, rank=rank, lora_dtype=dtype, micro_batch=1
        )
        step = count_step(read_sizes(model)[0], settings)

        def count(processes: int, offload: str, step=step, settings=settings) -> float:
            changed = settings.model_copy(update={"processes": processes, "offload": offload})
            return sum(add_deepspeed(step, changed).values())

        def fewest(memory: int, offload: str, count=count) -> str:
            fitting = (n for n in gpus if count(n, offload) + RESERVED_GIB <= memory)
            return str(next(fitting, "-"))

        cells = [" / ".join(fewest(gib, offload) for offload in moved) for gib in memories]
        cells.append(" / ".join(f"{count(8, offload):.0f}" for offload in moved))
        name = model.removeprefix("Wan-AI/Wan2.1-T2V-").removesuffix("-Diffusers")
        lines.append(f"| {name}, {clip}, {rank}, {dtype} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_fits(page: Path) -> None:
    """Write the table of what fits into a page, between its two marks."""
    start, end = "<!-- memory: written by python -m pusa.memory -->\n", "<!-- end of memory -->"
    before, _, rest = page.read_text().partition(start)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{start}{describe_fits()}\n{end}{after}")


if __name__ == "__main__":
    write_fits(Path("docs/reproduce.md"))
