"""Training with the FAFM objective on DeepSpeed, from cached latents only.

A LoRA is trained with PEFT on ZeRO-2, the whole transformer on ZeRO-3. The same loop runs in one
process on a CPU and on the GPUs of several nodes; what an iteration sees depends neither on the
number of processes nor on a stop on the way (`pusa.train.step`).
"""

import gc
import json
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm import tqdm

from pusa.config import TrainSettings
from pusa.data.cache import LatentCache
from pusa.digests import digest_folder
from pusa.models.folder import (
    check_rank,
    digest_text_encoder,
    digest_weights,
    read_part,
    weight_files,
)
from pusa.models.load import load_transformer
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
from pusa.train.engine import (
    agree,
    join_processes,
    peak_memory_gib,
    prepare,
    start_engine,
    stop_engine,
)
from pusa.train.log import TrainLog
from pusa.train.step import run_iteration, validate
from pusa.train.weights import save_weights, weights_of


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
    process, world, device = join_processes()
    first = process == 0
    watch = StopWatch(minutes)
    micro = settings.micro_batch or max(1, settings.total_batch // world)
    settings = settings.model_copy(update={"micro_batch": micro})
    with together():
        data = LatentCache(cache)
        if first:  # tens of gigabytes are digested, which the others then need not do
            _check(settings, data, transformer, out, state, world)
            digest_weights(transformer)
    with together():
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
        engine, adamw = start_engine(settings, model, world)
        clips, held_out = data.split(settings.validation_clips)
        if first and (siblings := len(data) - len(clips) - len(held_out)):
            print(f"{siblings} clips with captions of held-out ones are left out", file=sys.stderr)
        if checkpoint:
            with together():
                tensors = read_checkpoint(checkpoint)
            with replaced_step(adamw, tensors):  # the last iteration's, made once more
                run_iteration(engine, data, clips, settings, start)

        stack.enter_context(watch)
        if not checkpoint:
            with watch.measure("validation"):
                losses = validate(engine, data, held_out, settings)
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
                values = run_iteration(engine, data, clips, settings, iteration)
            if iteration in settings.iterations:
                with watch.measure("validation"):
                    losses = validate(engine, data, held_out, settings)
                    save_weights(engine, state, settings, transformer, base, iteration)
                if first:
                    log.validation(iteration, losses)

            ahead = ["iteration", "checkpoint"]
            if iteration + 1 in settings.iterations:
                ahead.append("validation")
            reason, memory = agree([watch.reason(ahead), peak_memory_gib()], device)
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
    stop_engine(engine)
    del engine, adamw, model
    gc.collect()


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
        file = weights_of(state, settings, iteration)
        if iteration <= start and not file.exists():
            raise ValueError(
                f"{file} is missing, though {state} has a checkpoint of iteration {start}; "
                "delete the state folder to train anew"
            )


def _load_model(settings: TrainSettings, transformer, device: torch.device) -> torch.nn.Module:
    torch.manual_seed(settings.seed)  # of the LoRA's first weights
    model = load_transformer(transformer, getattr(torch, settings.dtype), device).train()
    return prepare(model, settings)


def _require_time(watch: StopWatch, device: torch.device) -> None:
    """Refuse a budget that starting has used up: a job resubmitted for ever would get nowhere."""
    (reason,) = agree([watch.reason([])], device)
    if reason == 1:
        raise_once(
            ValueError(
                f"a budget of {watch.minutes:g} minutes leaves no time for an iteration: "
                f"starting took {watch.elapsed():.0f} s"
            )
        )
