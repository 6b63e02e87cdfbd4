"""Training with the FAFM objective on DeepSpeed, from cached latents only.

A LoRA is trained with PEFT on ZeRO-2, the whole transformer on ZeRO-3. The same loop runs in one
process on a CPU and on the GPUs of several nodes. Every random number is drawn from the seed,
the iteration and the sample's place in the batch, so that neither the number of processes, nor
an earlier iteration, nor a stop on the way changes what an iteration sees.
"""

import gc
import json
import logging
import math
import os
import shutil
import sys
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported

import deepspeed
import torch.distributed as dist
from peft import LoraConfig, get_peft_model_state_dict
from tqdm import tqdm

from pusa.config import TrainSettings
from pusa.data.cache import LatentCache
from pusa.digests import digest_folder
from pusa.flow import TRAIN_TIMESTEPS, fafm_loss, interpolate, loss_weight, sample_sigma
from pusa.models.folder import (
    check_rank,
    digest_text_encoder,
    digest_weights,
    read_part,
    weight_files,
)
from pusa.models.load import load_transformer
from pusa.models.lora import METADATA_KEY, LoraInfo, save_lora
from pusa.models.stream import TensorLayout, read_header, write_tensors
from pusa.records import describe_device
from pusa.train.checkpoint import (
    StopWatch,
    claim,
    clear,
    find_checkpoint,
    publish,
    raise_once,
    read_checkpoint,
    replaced_step,
    together,
    write_checkpoint,
)
from pusa.train.log import TrainLog

#: Timestep distribution and loss weighting of each objective.
OBJECTIVES = {"paper": ("uniform", "none"), "authors": ("shifted", "gaussian")}
#: Attention and feed-forward linears of every block (the authors' targets, diffusers' names).
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
#: Noise levels of the validation loss.
VALIDATION_SIGMAS = (0.2, 0.4, 0.6, 0.8, 0.95)


def train(
    cache: str | Path,
    transformer: str | Path,
    out: str | Path,
    settings: TrainSettings,
    *,
    state: str | Path,
    minutes: float = 0,
) -> None:
    """Train and write each listed iteration and the logs to ``out``.

    An iteration is ``iteration_<i>.safetensors``, a LoRA, or for the full method a transformer
    folder ``iteration_<i>``; the logs are ``training.csv``, ``validation.csv``, ``tensorboard/``;
    ``run.json`` says what was run, and on what.

    Started by torchrun, one process per device, on any number of nodes that share a file system.
    The batch is ``total_batch`` whatever their number; gradient accumulation makes up the
    difference.

    Until the end all but TensorBoard's files stay in the folder ``state``, with a checkpoint every
    ``checkpoint_every`` iterations. Stopped in any way, the same call goes on from there and ends
    with the very weights of an uninterrupted run (on a CPU, with as many processes).

    Args:
        minutes: wall-clock budget, from the start of the process; 0 is none.

    Raises:
        FileNotFoundError: if something of the cache or the transformer is missing.
        ValueError: if settings, cache and transformer do not fit together, the budget is too
            short to start, or a checkpoint is damaged.
        FloatingPointError: at the first loss or gradient that is not finite.
        InterruptedError: if stopped by SIGTERM, SIGINT or the budget, after a checkpoint.
    """
    out, state = Path(out), Path(state)
    process, world, device = _join_processes()
    first = process == 0
    watch = StopWatch(minutes)
    micro = settings.micro_batch or max(1, settings.total_batch // world)
    settings = settings.model_copy(update={"micro_batch": micro})
    with together():
        data = LatentCache(cache)
        _check(settings, data, transformer, out, state, world)
        base = digest_weights(transformer)
        run = {**settings.model_dump(), "base": base, "cache": data.digest(), "processes": world}
        # What must not change on the way; what is saved, and how often, changes no iteration.
        saving = ("iterations", "checkpoint_every")
        fixed = {key: value for key, value in run.items() if key not in saving}

    with ExitStack() as stack:
        with together():
            if first:
                stack.enter_context(claim(state))
            checkpoint, record = find_checkpoint(state, fixed)
            start = record["iteration"]
            watch.longest |= record["longest"]
            _require_saved(settings, state, start)
        with together():
            if first:
                if not checkpoint:
                    clear(state)
                log = stack.enter_context(TrainLog(state, out / "tensorboard", start=start))
        with together():
            model = _load_model(settings, transformer, device)
        engine, adamw = _start_engine(settings, model, world)
        clips, held_out = data.split(settings.validation_clips)
        if first and (siblings := len(data) - len(clips) - len(held_out)):
            print(f"{siblings} clips with captions of held-out ones are left out", file=sys.stderr)
        if checkpoint:
            with together():
                tensors = read_checkpoint(checkpoint)
            with replaced_step(adamw, tensors):  # the last iteration's, made once more
                _iterate(engine, data, clips, settings, start)

        stack.enter_context(watch)
        if not checkpoint:
            with watch.measure("validation"):
                losses = _validate(engine, data, held_out, settings)
            if first:
                log.validation(0, losses)
        _require_time(watch, device)
        last = settings.iterations[-1]
        progress = tqdm(
            range(start + 1, last + 1),
            desc=f"rank {settings.rank}" if settings.rank else "full",
            initial=start,
            total=last,
            disable=not first,
            mininterval=5,
        )
        for iteration in progress:
            with watch.measure("iteration"):
                values = _iterate(engine, data, clips, settings, iteration)
            if iteration in settings.iterations:
                with watch.measure("validation"):
                    losses = _validate(engine, data, held_out, settings)
                    _save(engine, state, settings, transformer, base, iteration)
                if first:
                    log.validation(iteration, losses)

            ahead = ["iteration", "checkpoint"]
            if iteration + 1 in settings.iterations:
                ahead.append("validation")
            reason, memory = _agree([watch.reason(ahead), _memory_gib()], device)
            if first:
                elapsed = log.elapsed_before + watch.elapsed()
                log.training(iteration, **values, memory_gib=memory, elapsed_seconds=elapsed)
            if iteration == last:
                continue  # and not break, for the bar's last step
            # With a budget, the first checkpoint tells how long one takes.
            unknown = minutes and "checkpoint" not in watch.longest
            if reason or unknown or iteration % settings.checkpoint_every == 0:
                if first:
                    log.flush()
                with watch.measure("checkpoint"):
                    record = {"iteration": iteration, "run": fixed, "longest": watch.longest}
                    write_checkpoint(adamw, state, record)
            if reason:
                why = "at a signal" if reason == 2 else f"with its {minutes:g} minutes nearly over"
                raise_once(
                    InterruptedError(
                        f"stopped at iteration {iteration} of {last}, {why} "
                        f"({iteration - start} of them now); run the same command to go on"
                    )
                )
        with together():
            if first:
                finished = datetime.now(UTC).isoformat(timespec="seconds")
                told = {**run, "device": describe_device(device.type), "finished": finished}
                (state / "run.json").write_text(json.dumps(told, indent=1) + "\n")
                publish(state, out)
    # A thread of gloo's that lets go of a tensor while Python shuts down aborts the process, and
    # a finished training would count as failed. The threads end with all references to the group.
    engine.destroy()
    deepspeed.comm.destroy_process_group()
    del engine, adamw, model
    gc.collect()


def _join_processes() -> tuple[int, int, torch.device]:
    """Return this process's number over all nodes, how many there are, and its device."""
    if "RANK" not in os.environ:
        raise ValueError("training is started by torchrun, one process per device: no RANK is set")
    deepspeed.logger.setLevel(logging.WARNING)
    # On a CPU DeepSpeed would compile a shared-memory helper on first use: half a minute, a
    # compiler, and a lock that a killed job leaves behind, for reductions that gloo does too.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if device.index >= torch.cuda.device_count():
            raise ValueError(
                f"this node has {torch.cuda.device_count()} GPUs, too few for a process number "
                f"{device.index}; set train.processes to the GPUs of a node"
            )
        torch.cuda.set_device(device)
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo")
    return dist.get_rank(), dist.get_world_size(), device


def _check(
    settings: TrainSettings, data: LatentCache, transformer, out: Path, state: Path, world: int
) -> None:
    """Refuse what cannot be trained, from headers and configs alone."""
    if settings.total_batch % (world * settings.micro_batch):
        raise ValueError(
            f"train.total_batch {settings.total_batch} is not a multiple of {world} processes x "
            f"train.micro_batch {settings.micro_batch}"
        )
    data.split(settings.validation_clips)
    inner, outer = sorted((out.resolve(), state.resolve()), key=lambda p: -len(p.parts))
    if inner.is_relative_to(outer):
        raise ValueError(
            f"the state folder {state} and the output folder {out} must not hold one another"
        )
    _check_encoded_by(data, Path(transformer).parent)
    config = read_part(transformer, "transformer")
    weight_files(transformer)
    if settings.rank is not None:
        check_rank(settings.rank, transformer)
    for what, found, key in (
        ("latent channels", data.latents(0).shape[0], "in_channels"),
        ("prompt embedding dimensions", data.prompt_embeds(0).shape[-1], "text_dim"),
    ):
        if found != config[key]:
            raise ValueError(
                f"{data.folder} has {found} {what}, but {transformer} takes {config[key]}; "
                "cache the clips with the same model"
            )


def _check_encoded_by(data: LatentCache, model: Path) -> None:
    """Refuse what another VAE or text encoder has encoded than the transformer's neighbours."""
    digests = {
        "vae": lambda: digest_folder(model / "vae"),
        "text_encoder": lambda: digest_text_encoder(model),
    }
    for part, digest in digests.items():
        # A transformer may stand alone, and a released cache does not tell.
        if part in data.made and (model / part).is_dir() and data.made[part] != digest():
            raise ValueError(
                f"{data.folder} was encoded by another {part} than {model / part}, by the SHA-256 "
                "of their files; cache the clips with the same model"
            )


def _require_saved(settings: TrainSettings, state: Path, start: int) -> None:
    for iteration in settings.iterations:
        file = _weights_of(state, settings, iteration)
        if iteration <= start and not file.exists():
            raise ValueError(
                f"{file} is missing, though {state} has a checkpoint of iteration {start}; "
                "delete the state folder to train anew"
            )


def _load_model(settings: TrainSettings, transformer, device: torch.device) -> torch.nn.Module:
    torch.manual_seed(settings.seed)  # of the LoRA's first weights
    model = load_transformer(transformer, getattr(torch, settings.dtype), device).train()
    return prepare(model, settings)


def prepare(model: torch.nn.Module, settings: TrainSettings) -> torch.nn.Module:
    """Give a transformer what is trained of it, a LoRA or all weights, and checkpointing."""
    if settings.method == "lora":
        model.requires_grad_(False)
        model.add_adapter(
            LoraConfig(
                r=settings.rank, lora_alpha=settings.rank, target_modules=list(TARGETS), bias="none"
            )
        )
        for parameter in model.parameters():
            if parameter.requires_grad:  # of either type on a base of either
                parameter.data = parameter.data.to(getattr(torch, settings.lora_dtype))
    if settings.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def _start_engine(settings: TrainSettings, model: torch.nn.Module, world: int):
    parameters = [p for p in model.parameters() if p.requires_grad]
    on_gpu = parameters[0].is_cuda
    if on_gpu and (settings.dtype, settings.lora_dtype) == ("bfloat16", "float32"):
        # PEFT multiplies in its weights' float32: as TF32, which has more digits than the base's
        # bfloat16 and is several times as fast.
        torch.set_float32_matmul_precision("high")
    adamw = torch.optim.AdamW(parameters, lr=settings.learning_rate, fused=on_gpu or None)
    zero = {"stage": 2 if settings.method == "lora" else 3}
    if settings.offload in ("optimizer", "both"):
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    config = {
        "train_batch_size": settings.total_batch,
        "train_micro_batch_size_per_gpu": settings.micro_batch,
        "gradient_accumulation_steps": settings.total_batch // (world * settings.micro_batch),
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if (settings.dtype if settings.method == "full" else settings.lora_dtype) == "bfloat16":
        # bfloat16 weights for the computation beside float32 ones for the optimizer.
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    # DeepSpeed then casts all weights, also those that diffusers keeps in float32.
    frozen = [(p, p.data) for p in model.parameters() if not p.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, optimizer=adamw, config=config)
    for parameter, data in frozen:
        parameter.data = data
    return engine, adamw


def _iterate(engine, data: LatentCache, clips: list[int], settings: TrainSettings, iteration: int):
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
        with _offloaded(settings, engine.device):
            loss = _loss(engine, *_draw_batch(data, clips, settings, iteration, places), settings)
        engine.backward(loss)
        losses[n] = loss.detach()
        if n + world < len(losses):
            engine.step()  # no step yet: it counts the micro-batches
    dist.all_reduce(losses)
    if not losses.isfinite().all():
        n = int((~losses.isfinite()).nonzero()[0])
        places = range(n * size, (n + 1) * size)
        drawn = [data.clips[i] for i in _draw_clips(clips, settings, iteration, places)]
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


def _offloaded(settings: TrainSettings, device: torch.device) -> AbstractContextManager:
    """Where the inputs of checkpointed blocks wait for the backward pass."""
    if settings.offload in ("activations", "both"):
        return torch.autograd.graph.save_on_cpu(pin_memory=device.type == "cuda")
    return nullcontext()


def _loss(engine, x0, x1, sigma, prompt, settings: TrainSettings) -> torch.Tensor:
    x0, x1, sigma, prompt = (t.to(engine.device) for t in (x0, x1, sigma, prompt))
    prediction = _predict(engine, interpolate(x0, x1, sigma), sigma, prompt, settings)
    _, weighting = OBJECTIVES[settings.objective]
    return fafm_loss(prediction, x0, x1, loss_weight(sigma, weighting, settings.shift))


def _predict(engine, latents, sigma, prompt, settings: TrainSettings) -> torch.Tensor:
    dtype = getattr(torch, settings.dtype)
    output = engine(latents.to(dtype), TRAIN_TIMESTEPS * sigma, prompt.to(dtype), return_dict=False)
    return output[0]


def _draw_clips(clips: list[int], settings: TrainSettings, iteration: int, places) -> list[int]:
    """Which clips are at some places of an iteration's batch."""
    drawn = []
    for place in places:
        epoch, offset = divmod((iteration - 1) * settings.total_batch + place, len(clips))
        order = torch.randperm(len(clips), generator=_generator(settings.seed, 0, epoch))
        drawn.append(clips[int(order[offset])])
    return drawn


def _draw_batch(
    data: LatentCache, clips: list[int], settings: TrainSettings, iteration: int, places
):
    """Clips, noise, noise levels and prompts of some places of an iteration's batch."""
    distribution, _ = OBJECTIVES[settings.objective]
    samples = []
    for place, i in zip(places, _draw_clips(clips, settings, iteration, places), strict=True):
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
def _validate(
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


def _weights_of(folder: Path, settings: TrainSettings, iteration: int) -> Path:
    suffix = ".safetensors" if settings.method == "lora" else ""
    return folder / f"iteration_{iteration}{suffix}"


def _save(engine, folder: Path, settings: TrainSettings, transformer, base: str, iteration: int):
    out = _weights_of(folder, settings, iteration)
    info = {
        "base": base,
        "iteration": iteration,
        "objective": settings.objective,
        "p_async": settings.p_async,
        "vectorized": settings.p_async > 0,
    }
    if settings.method == "full":
        _save_transformer(engine, transformer, out, info)
        return
    with together():
        if dist.get_rank() == 0:
            tensors = get_peft_model_state_dict(engine.module, adapter_name="default")
            rank = settings.rank
            save_lora(out, tensors, LoraInfo(rank=rank, lora_alpha=rank, targets=TARGETS, **info))


def _save_transformer(engine, base: str | Path, out: Path, info: dict) -> None:
    """Write a transformer folder with the base's configuration and shards.

    The weights have the type they are computed with. They are gathered one at a time, and
    process 0 holds a shard of them.
    """
    partial = out.with_name(f".partial-{out.name}")
    parameters = dict(engine.module.named_parameters())
    first = dist.get_rank() == 0
    with together():
        if first:
            for leftover in (out, partial):
                shutil.rmtree(leftover, ignore_errors=True)
            partial.mkdir()
            for file in Path(base).glob("*.json"):
                shutil.copyfile(file, partial / file.name)
    for file in weight_files(base):
        tensors = {}
        for name in read_header(file)[0]:
            with deepspeed.zero.GatheredParameters([parameters[name]]):
                if first:
                    tensors[name] = parameters[name].detach().to("cpu", copy=True)
        with together():
            if first:
                layout = {n: TensorLayout(t.dtype, tuple(t.shape)) for n, t in tensors.items()}
                metadata = {"format": "pt", METADATA_KEY: json.dumps(info)}
                write_tensors(partial / file.name, layout, tensors.__getitem__, metadata)
    with together():
        if first:
            os.replace(partial, out)


def _agree(values: list[float], device: torch.device) -> list[float]:
    """The largest of each value over all processes, so that all decide alike."""
    largest = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


def _require_time(watch: StopWatch, device: torch.device) -> None:
    """Refuse a budget that starting has used up: a job resubmitted for ever would get nowhere."""
    (reason,) = _agree([watch.reason([])], device)
    if reason == 1:
        raise_once(
            ValueError(
                f"a budget of {watch.minutes:g} minutes leaves no time for an iteration: "
                f"starting took {watch.elapsed():.0f} s"
            )
        )


def _memory_gib() -> float:
    """Most memory allocated so far on this process's GPU, or held by it on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return psutil.Process().memory_info().rss / 2**30


def _generator(*key: int) -> torch.Generator:
    """A generator of its own for every key; equal keys draw equal numbers."""
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + part + 1) % 2**63
    return torch.Generator().manual_seed(seed)
