"""Commands that train, merge and convert LoRAs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pusa.cli.options import Device, app, choose_device, takes_settings
from pusa.config import Dtype, MemorySettings, TrainSettings
from pusa.processes import end_with_torchrun


@app.command()
@takes_settings
def train(
    cache: Path,
    transformer: Path,
    out: Path,
    settings: TrainSettings,
    state: Annotated[Path, typer.Option(help="Folder for what a stopped run goes on from.")],
    minutes: Annotated[
        float, typer.Option(min=0, help="Wall-clock budget of this start; 0 is none.")
    ] = 0,
    device: Device = None,
) -> None:
    """Train on a latent CACHE; start with torchrun, one process per device.

    Stopped, by a signal or its budget, the same command goes on from the last checkpoint.
    """
    end_with_torchrun()  # first, as imports take seconds
    choose_device(device)
    from pusa.train import loop

    loop.train(cache, transformer, out, settings, state=state, minutes=minutes)


@app.command()
@takes_settings
def memory(
    settings: MemorySettings,
    model: Annotated[
        str, typer.Argument(help="Model folder, or a known repository, which is not read.")
    ] = "Wan-AI/Wan2.1-T2V-14B-Diffusers",
) -> None:
    """Count what one GPU must hold to train, sample, encode and decode with MODEL.

    It takes seconds, and neither a GPU nor weights. A training that does not fit is an error,
    which says what would help.
    """
    from pusa import memory as counting

    transformer, vae = counting.read_sizes(model)
    trains = settings.method == "full" or settings.rank is not None
    step = counting.count_step(transformer, settings) if trains else None
    for line in counting.describe_memory(transformer, vae, settings, step):
        print(line)
    if step is not None:
        counting.require_fit(transformer, settings, step)


@app.command()
def merge(
    base: Annotated[Path, typer.Option(help="Transformer folder.")],
    lora: Annotated[Path, typer.Option(help="LoRA file of any known format.")],
    lora_scale: Annotated[float, typer.Option(help="The paper's alpha.")],
    out: Annotated[Path, typer.Option(help="Folder to write, new or empty.")],
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            help="Type to write, but for what diffusers keeps in float32: the one that the result "
            "is loaded in takes the least room and loses nothing. Each tensor's own if absent."
        ),
    ] = None,
) -> None:
    """Merge a LoRA into a transformer, one tensor at a time."""
    import torch

    from pusa.models.lora import merge_lora

    merge_lora(base, lora, out, lora_scale=lora_scale, dtype=dtype and getattr(torch, dtype))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="LoRA of any known format.")],
    out: Annotated[Path, typer.Argument(help="File to write, .safetensors.")],
    to: Annotated[Literal["diffusers", "comfy", "authors"], typer.Option()],
    rank: Annotated[int | None, typer.Option(help="Refuse a LoRA of another rank.")] = None,
) -> None:
    """Write the LoRA file IN with the tensor names that others read."""
    from pusa.models.lora import convert_lora, lora_info

    before, after = convert_lora(source, out, to=to, rank=rank)
    per_frame = {True: "yes", False: "no", None: "unknown"}[lora_info(after).vectorized]
    print(
        f"{before.format} to {after.format}: {len(before.layout)} tensors in, "
        f"{len(after.layout)} out, {len(after.modules)} modules, rank {after.rank}"
    )
    print(f"trained with a timestep per frame, so image-to-video: {per_frame}")
