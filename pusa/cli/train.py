"""Commands that train, merge and convert LoRAs."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from pusa.cli.options import Device, Precision, app, choose_device


@app.command()
def train_lora(
    cache: Path,
    transformer: Path,
    out: Path,
    state: Annotated[Path, typer.Option(help="Folder for what a stopped run goes on from.")],
    iteration: Annotated[list[int], typer.Option(help="Iteration to save; several may be given.")],
    learning_rate: Annotated[float, typer.Option()] = 1e-5,
    method: Annotated[
        Literal["lora", "full"], typer.Option(help="A LoRA, or all weights on ZeRO-3.")
    ] = "lora",
    rank: Annotated[int | None, typer.Option(help="Of a LoRA.")] = None,
    objective: Annotated[
        Literal["paper", "authors"],
        typer.Option(help="Uniform timesteps, unweighted; or shifted ones, gaussian weight."),
    ] = "paper",
    p_async: Annotated[
        float, typer.Option(min=0, max=1, help="PTSS: probability of a timestep per frame.")
    ] = 1,
    shift: Annotated[float, typer.Option(help="Of the authors' objective.")] = 5.0,
    warmup: Annotated[int, typer.Option(min=0, help="Iterations of rising learning rate.")] = 0,
    total_batch: Annotated[
        int, typer.Option(min=1, help="Clips per iteration, all processes.")
    ] = 8,
    micro_batch: Annotated[
        int, typer.Option(min=1, help="Clips per process and forward pass.")
    ] = 1,
    validation_clips: Annotated[int, typer.Option(min=0, help="Last clips, held out.")] = 32,
    gradient_checkpointing: Annotated[bool, typer.Option("--gradient-checkpointing")] = False,
    offload: Annotated[bool, typer.Option("--offload", help="Optimizer in host memory.")] = False,
    dtype: Annotated[
        Precision, typer.Option(help="Of the frozen base; for full, of the computation.")
    ] = "float32",
    seed: Annotated[int, typer.Option()] = 0,
    checkpoint_every: Annotated[
        int, typer.Option(min=1, help="Iterations between two checkpoints.")
    ] = 50,
    minutes: Annotated[
        float, typer.Option(min=0, help="Wall-clock budget of this start; 0 is none.")
    ] = 0,
    device: Device = None,
) -> None:
    """Train on a latent CACHE; start with torchrun, one process per device.

    Stopped, by a signal or its budget, the same command goes on from the last checkpoint.
    """
    choose_device(device)
    from pusa.train import loop as train

    settings = train.TrainSettings(
        method=method,
        rank=rank,
        iterations=tuple(iteration),
        objective=objective,
        p_async=p_async,
        learning_rate=learning_rate,
        warmup=warmup,
        total_batch=total_batch,
        micro_batch=micro_batch,
        shift=shift,
        validation_clips=validation_clips,
        gradient_checkpointing=gradient_checkpointing,
        dtype=dtype,
        offload=offload,
        seed=seed,
    )
    train.train(
        cache,
        transformer,
        out,
        settings,
        state=state,
        checkpoint_every=checkpoint_every,
        minutes=minutes,
    )
    # DeepSpeed keeps gloo's threads alive, and one that lets go of a tensor while Python shuts down
    # aborts the process: a finished training would count as failed. So Python does not shut down.
    sys.stderr.flush()
    os._exit(0)


@app.command()
def merge_lora(
    base: Annotated[Path, typer.Option(help="Transformer folder.")],
    lora: Annotated[Path, typer.Option(help="LoRA file of any known format.")],
    scale: Annotated[float, typer.Option(help="lora_scale, the paper's alpha.")],
    out: Annotated[Path, typer.Option(help="Folder to write, new or empty.")],
) -> None:
    """Merge a LoRA into a transformer, one tensor at a time."""
    from pusa.models import lora as lora_files

    lora_files.merge_lora(base, lora, out, lora_scale=scale)


@app.command()
def convert_lora(
    source: Annotated[Path, typer.Argument(metavar="IN", help="LoRA of any known format.")],
    out: Annotated[Path, typer.Argument(help="File to write, .safetensors.")],
    to: Annotated[Literal["diffusers", "comfy", "authors"], typer.Option()],
    rank: Annotated[int | None, typer.Option(help="Refuse a LoRA of another rank.")] = None,
) -> None:
    """Write the LoRA file IN with the tensor names that others read."""
    from pusa.models import lora as lora_files

    before, after = lora_files.convert_lora(source, out, to=to, rank=rank)
    per_frame = {True: "yes", False: "no", None: "unknown"}[lora_files.lora_info(after).vectorized]
    print(
        f"{before.format} to {after.format}: {len(before.layout)} tensors in, "
        f"{len(after.layout)} out, {len(after.modules)} modules, rank {after.rank}"
    )
    print(f"trained with a timestep per frame, so image-to-video: {per_frame}")
