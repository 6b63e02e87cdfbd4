"""LoRA training with the FAFM objective: PEFT on DeepSpeed ZeRO-2, from cached latents only.

The same loop runs in one process on a CPU and on several GPUs. Every random number is drawn
from the seed, the iteration and the sample's place in the batch, so that neither the number
of processes nor an earlier iteration changes what an iteration sees.
"""

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported

import deepspeed
import torch.distributed as dist
from peft import LoraConfig, get_peft_model_state_dict
from tqdm import tqdm

from pusa.cache import LatentCache
from pusa.flow import (
    TRAIN_TIMESTEPS,
    LossWeighting,
    TimestepDistribution,
    fafm_loss,
    interpolate,
    loss_weight,
    sample_sigma,
)
from pusa.lora import LoraInfo, fingerprint, save_lora
from pusa.models import load_transformer

#: Attention and feed-forward linears of every block (the authors' targets, diffusers' names).
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
#: Noise levels of the validation loss.
VALIDATION_SIGMAS = (0.2, 0.4, 0.6, 0.8, 0.95)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What decides a LoRA, apart from the base and the data."""

    rank: int  # PEFT's alpha equals it, so that a LoRA's natural scale is 1
    iterations: tuple[int, ...]  # those that are saved; the last ends the training
    p_async: float
    learning_rate: float
    warmup: int
    total_batch: int
    micro_batch: int  # per process and forward pass
    timesteps: TimestepDistribution
    weighting: LossWeighting
    shift: float  # of the shifted distribution and the gaussian weighting
    validation_clips: int  # the last of the cache, never trained on
    gradient_checkpointing: bool
    seed: int


def train_lora(
    cache: str | Path,
    transformer: str | Path,
    out: str | Path,
    settings: TrainSettings,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Train and write ``iteration_<i>.safetensors``, ``training.csv`` and ``validation.csv``.

    Started by torchrun, one process per device. The batch is ``total_batch`` whatever their
    number; gradient accumulation makes up the difference.

    Raises:
        ValueError: if the batch cannot be divided, or the cache has too few clips.
        FloatingPointError: at the first loss that is not finite.
    """
    out = Path(out)
    # On a CPU DeepSpeed would compile a shared-memory helper on first use: half a minute, a
    # compiler, and a lock that a killed job leaves behind, for reductions that gloo does too.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo")
    world, process = dist.get_world_size(), dist.get_rank()
    if settings.total_batch % (world * settings.micro_batch):
        raise ValueError(
            f"train.total_batch {settings.total_batch} is not a multiple of {world} processes x "
            f"train.micro_batch {settings.micro_batch}"
        )
    data = LatentCache(cache)
    clips = len(data) - settings.validation_clips
    if clips < 1:
        raise ValueError(
            f"{cache} holds {len(data)} clips, expected more than the "
            f"{settings.validation_clips} of train.validation_clips"
        )

    torch.manual_seed(settings.seed)
    model = load_transformer(transformer, dtype).train()
    model.requires_grad_(False)
    model.add_adapter(
        LoraConfig(
            r=settings.rank, lora_alpha=settings.rank, target_modules=list(TARGETS), bias="none"
        )
    )
    if settings.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()  # LoRA weights stay float32 on a bfloat16 base
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate)
    accumulation = settings.total_batch // (world * settings.micro_batch)
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            "train_batch_size": settings.total_batch,
            "train_micro_batch_size_per_gpu": settings.micro_batch,
            "gradient_accumulation_steps": accumulation,
            "zero_optimization": {"stage": 2},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
        },
    )
    base = fingerprint(transformer)
    own = range(process * settings.micro_batch, (process + 1) * settings.micro_batch)

    with _Log(out, enabled=process == 0) as log:
        log.validation(0, _validate(engine, data, clips, settings))
        progress = tqdm(
            range(1, settings.iterations[-1] + 1),
            desc=f"rank {settings.rank}",
            disable=process != 0,
            mininterval=5,
        )
        for iteration in progress:
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * min(1, iteration / max(1, settings.warmup))
            losses = []
            for micro in range(accumulation):
                places = [micro * world * settings.micro_batch + i for i in own]
                loss = _step(engine, data, clips, settings, iteration, places)
                losses.append(loss)
            loss = torch.stack(losses).mean()
            dist.all_reduce(loss, dist.ReduceOp.SUM)
            log.training(iteration, loss.item() / world)
            if iteration in settings.iterations:
                log.validation(iteration, _validate(engine, data, clips, settings))
                if process == 0:
                    info = LoraInfo(
                        rank=settings.rank,
                        lora_alpha=settings.rank,
                        targets=TARGETS,
                        base=base,
                        iteration=iteration,
                        p_async=settings.p_async,
                        vectorized=settings.p_async > 0,
                    )
                    tensors = get_peft_model_state_dict(engine.module, adapter_name="default")
                    save_lora(out / f"iteration_{iteration}.safetensors", tensors, info)
    dist.barrier()
    dist.destroy_process_group()


def _step(engine, data, clips, settings: TrainSettings, iteration: int, places) -> torch.Tensor:
    """One micro-batch: forward, backward, and the optimizer's step when it is due."""
    x0, x1, sigma, prompt = _draw_batch(data, clips, settings, iteration, places)
    x0, x1, sigma, prompt = (t.to(engine.device) for t in (x0, x1, sigma, prompt))
    prediction = _predict(engine, interpolate(x0, x1, sigma), sigma, prompt)
    loss = fafm_loss(prediction, x0, x1, loss_weight(sigma, settings.weighting, settings.shift))
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"loss is {loss.item()} at iteration {iteration}, batch places {list(places)}"
        )
    engine.backward(loss)
    engine.step()
    return loss.detach()


def _predict(engine, latents, sigma, prompt) -> torch.Tensor:
    dtype = engine.module.dtype
    output = engine(latents.to(dtype), TRAIN_TIMESTEPS * sigma, prompt.to(dtype), return_dict=False)
    return output[0]


def _draw_batch(data: LatentCache, clips: int, settings: TrainSettings, iteration: int, places):
    """Clips, noise, noise levels and prompts of some places of an iteration's batch."""
    samples = []
    for place in places:
        position = (iteration - 1) * settings.total_batch + place
        epoch, offset = divmod(position, clips)
        order = torch.randperm(clips, generator=_generator(settings.seed, 0, epoch))
        generator = _generator(settings.seed, 1, position)
        i = int(order[offset])
        x0 = data.latents(i)
        sigma = sample_sigma(
            1,
            x0.shape[1],
            p_async=settings.p_async,
            distribution=settings.timesteps,
            shift=settings.shift,
            generator=generator,
        )[0]
        x1 = torch.randn(x0.shape, generator=generator)
        samples.append((x0, x1, sigma, data.prompt_embeds(i)))
    return tuple(torch.stack(tensors) for tensors in zip(*samples, strict=True))


@torch.no_grad()
def _validate(engine, data: LatentCache, clips: int, settings: TrainSettings) -> dict[str, float]:
    """Mean squared velocity error on held-out clips at fixed noise, three ways.

    ``asynchronous``: every frame its own noise level (what FAFM trains). ``image_to_video``:
    the first frame clean and not counted, the others at one level. ``synchronous``: one level
    for all frames (what the base was trained for; a rise means that it is being forgotten).
    """
    if settings.validation_clips == 0:
        return {}
    engine.eval()
    names = ("asynchronous", "image_to_video", "synchronous")
    errors = {name: torch.zeros((), device=engine.device) for name in names}
    for n in range(dist.get_rank(), settings.validation_clips, dist.get_world_size()):
        i = clips + n
        generator = _generator(12345, 2, n)  # the same for every run, so that runs compare
        x0 = data.latents(i)[None]
        x1 = torch.randn(x0.shape, generator=generator)
        level = VALIDATION_SIGMAS[n % len(VALIDATION_SIGMAS)]
        equal = torch.full((1, x0.shape[2]), level)
        first_clean = equal.clone()
        first_clean[:, 0] = 0
        random = torch.rand(1, x0.shape[2], generator=generator)
        x0, x1 = x0.to(engine.device), x1.to(engine.device)
        prompt = data.prompt_embeds(i)[None].to(engine.device)
        for name, sigma in zip(names, (random, first_clean, equal), strict=True):
            sigma = sigma.to(engine.device)
            prediction = _predict(engine, interpolate(x0, x1, sigma), sigma, prompt)
            counted = slice(1, None) if name == "image_to_video" else slice(None)
            error = fafm_loss(prediction[:, :, counted], x0[:, :, counted], x1[:, :, counted])
            errors[name] = errors[name] + error
    engine.train()
    for error in errors.values():
        dist.all_reduce(error, dist.ReduceOp.SUM)
    return {name: error.item() / settings.validation_clips for name, error in errors.items()}


def _generator(*key: int) -> torch.Generator:
    """A generator of its own for every key; equal keys draw equal numbers."""
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + part + 1) % 2**63
    return torch.Generator().manual_seed(seed)


class _Log:
    """The run's two CSV files; process 0 writes, the others are silent."""

    def __init__(self, out: Path, *, enabled: bool):
        self._out, self._enabled, self._files = out, enabled, []

    def __enter__(self):
        if self._enabled:
            self._out.mkdir(parents=True, exist_ok=True)
            self._files = [
                (self._out / f"{name}.csv").open("w", newline="", buffering=1)
                for name in ("training", "validation")
            ]
            self._training, self._validation = (csv.writer(f) for f in self._files)
            self._training.writerow(["iteration", "loss"])
            self._validation.writerow(["iteration", "loss", "value"])
        return self

    def __exit__(self, *_):
        for file in self._files:
            file.close()

    def training(self, iteration: int, loss: float) -> None:
        if self._enabled:
            self._training.writerow([iteration, f"{loss:.6f}"])

    def validation(self, iteration: int, losses: dict[str, float]) -> None:
        if self._enabled:
            for name, value in losses.items():
                self._validation.writerow([iteration, name, f"{value:.6f}"])
