"""What one iteration does: its clips and noise, the FAFM loss, the step; and the validation loss.

Every random number is drawn from the seed, the iteration and the sample's place in the batch, so
that neither the number of processes, nor an earlier iteration, nor a stop on the way changes what
an iteration sees.
"""

import math
import time
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist

from pusa.config import TrainSettings
from pusa.data.cache import LatentCache
from pusa.flow import TRAIN_TIMESTEPS, fafm_loss, interpolate, loss_weight, sample_sigma
from pusa.train.checkpoint import raise_once

#: Timestep distribution and loss weighting of each objective.
OBJECTIVES = {"paper": ("uniform", "none"), "authors": ("shifted", "gaussian")}
#: Noise levels of the validation loss.
VALIDATION_SIGMAS = (0.2, 0.4, 0.6, 0.8, 0.95)


def run_iteration(
    engine, data: LatentCache, clips: list[int], settings: TrainSettings, iteration: int
) -> dict[str, float]:
    """One iteration: the batch in micro-batches, and the optimizer's step; what is to be logged."""
    started = time.monotonic()
    world, process, size = dist.get_world_size(), dist.get_rank(), settings.micro_batch
    rate = settings.learning_rate * min(1, iteration / max(1, settings.warmup))
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    # A loss for each micro-batch of all processes, so that all know which one was not finite.
    losses = torch.zeros(settings.total_batch // size, dtype=torch.float64, device=engine.device)
    for n in range(process, len(losses), world):
        places = range(n * size, (n + 1) * size)
        with offloaded(settings, engine.device):
            loss = training_loss(
                engine, *draw_batch(data, clips, settings, iteration, places), settings
            )
        engine.backward(loss)
        losses[n] = loss.detach()
        if n + world < len(losses):
            engine.step()  # no step yet: it counts the micro-batches
    dist.all_reduce(losses)
    if not losses.isfinite().all():
        n = int((~losses.isfinite()).nonzero()[0])
        places = range(n * size, (n + 1) * size)
        drawn = [data.clips[i] for i in draw_clips(clips, settings, iteration, places)]
        raise_once(
            FloatingPointError(
                f"the loss is {losses[n].item()} at iteration {iteration}, with the clips "
                + "; ".join(f"{c['file']} (tensor {c['name']} of {c['shard']})" for c in drawn)
            )
        )
    engine.step()
    norm = float(engine.get_global_grad_norm())
    if not math.isfinite(norm):  # then DeepSpeed has not made the step
        raise_once(FloatingPointError(f"the gradient's norm is {norm} at iteration {iteration}"))
    return {
        "loss": losses.mean().item(),
        "learning_rate": rate,
        "gradient_norm": norm,
        "clips_per_second": settings.total_batch / (time.monotonic() - started),
    }


def offloaded(settings: TrainSettings, device: torch.device) -> AbstractContextManager:
    """Where the inputs of checkpointed blocks wait for the backward pass."""
    if settings.offload in ("activations", "both"):
        return torch.autograd.graph.save_on_cpu(pin_memory=device.type == "cuda")
    return nullcontext()


def training_loss(engine, x0, x1, sigma, prompt, settings: TrainSettings) -> torch.Tensor:
    """The FAFM loss of some clips (Eq. 11), as the objective weighs it.

    Args:
        x0: latents, ``(batch, channels, frames, height, width)``; ``x1`` their noise.
        sigma: noise levels, ``(batch, frames)``.
        prompt: embeddings, ``(batch, tokens, dim)``.
    """
    x0, x1, sigma, prompt = (t.to(engine.device) for t in (x0, x1, sigma, prompt))
    prediction = _predict(engine, interpolate(x0, x1, sigma), sigma, prompt, settings)
    _, weighting = OBJECTIVES[settings.objective]
    return fafm_loss(prediction, x0, x1, loss_weight(sigma, weighting, settings.shift))


def _predict(engine, latents, sigma, prompt, settings: TrainSettings) -> torch.Tensor:
    dtype = getattr(torch, settings.dtype)
    output = engine(latents.to(dtype), TRAIN_TIMESTEPS * sigma, prompt.to(dtype), return_dict=False)
    return output[0]


def draw_clips(clips: list[int], settings: TrainSettings, iteration: int, places) -> list[int]:
    """Which clips are at some places of an iteration's batch."""
    drawn = []
    for place in places:
        epoch, offset = divmod((iteration - 1) * settings.total_batch + place, len(clips))
        order = torch.randperm(len(clips), generator=_generator(settings.seed, 0, epoch))
        drawn.append(clips[int(order[offset])])
    return drawn


def draw_batch(
    data: LatentCache, clips: list[int], settings: TrainSettings, iteration: int, places
):
    """Clips, noise, noise levels and prompts of some places of an iteration's batch."""
    distribution, _ = OBJECTIVES[settings.objective]
    samples = []
    for place, i in zip(places, draw_clips(clips, settings, iteration, places), strict=True):
        generator = _generator(settings.seed, 1, (iteration - 1) * settings.total_batch + place)
        x0 = data.latents(i)
        sigma = sample_sigma(
            1,
            x0.shape[1],
            p_async=settings.p_async,
            distribution=distribution,
            shift=settings.shift,
            generator=generator,
        )[0]
        x1 = torch.randn(x0.shape, generator=generator)
        samples.append((x0, x1, sigma, data.prompt_embeds(i)))
    return tuple(torch.stack(tensors) for tensors in zip(*samples, strict=True))


@torch.no_grad()
def validate(
    engine, data: LatentCache, held_out: list[int], settings: TrainSettings
) -> dict[str, float]:
    """Mean squared velocity error on held-out clips at fixed noise, three ways.

    ``asynchronous``: every frame its own noise level (what FAFM trains). ``image_to_video``:
    the first frame clean and not counted, the others at one level. ``synchronous``: one level
    for all frames (what the base was trained for; a rise means that it is being forgotten).
    """
    if not held_out:
        return {}
    engine.eval()
    names = ("asynchronous", "image_to_video", "synchronous")
    errors = {name: torch.zeros((), device=engine.device) for name in names}
    # As many rounds for each process, since ZeRO-3 gathers weights from all in each: where a
    # process has no clip left, it repeats one without counting it.
    world = dist.get_world_size()
    for first in range(0, len(held_out), world):
        n = first + dist.get_rank()
        counted_clip = n < len(held_out)
        n %= len(held_out)
        i = held_out[n]
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
            prediction = _predict(engine, interpolate(x0, x1, sigma), sigma, prompt, settings)
            frames = slice(1, None) if name == "image_to_video" else slice(None)
            error = fafm_loss(prediction[:, :, frames], x0[:, :, frames], x1[:, :, frames])
            errors[name] = errors[name] + error * counted_clip
    engine.train()
    for error in errors.values():
        dist.all_reduce(error, dist.ReduceOp.SUM)
    return {name: error.item() / len(held_out) for name, error in errors.items()}


def _generator(*key: int) -> torch.Generator:
    """A generator of its own for every key; equal keys draw equal numbers."""
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + part + 1) % 2**63
    return torch.Generator().manual_seed(seed)
