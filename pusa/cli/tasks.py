"""The command that makes the videos of the paper's zero-shot tasks."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pusa.cli.options import (
    Device,
    Frames,
    Height,
    Precision,
    Width,
    app,
    choose_device,
    torch_dtype,
)
from pusa.tasks import TASKS

TaskName = StrEnum("TaskName", {name: name for name in TASKS})


@app.command()
def sample_task(
    task: TaskName,
    dataset: Annotated[Path, typer.Argument(help="Folder with metadata.csv and clips.")],
    model: Path,
    manifest: Path,
    clips: Annotated[int, typer.Option(min=1, help="How many, spread evenly.")],
    steps: Annotated[int, typer.Option(min=1)],
    frames: Frames,
    height: Height,
    width: Width,
    held_out: Annotated[
        int | None, typer.Option(min=1, help="Choose among so many clips at the end; among all.")
    ] = None,
    transformer: Annotated[
        Path | None, typer.Option(help="Transformer folder; the model's own if none is given.")
    ] = None,
    lora: Annotated[Path | None, typer.Option(help="LoRA file, which is not merged.")] = None,
    lora_scale: Annotated[float, typer.Option()] = 1.0,
    guidance_scale: Annotated[float, typer.Option()] = 3.0,
    negative_prompt_file: Annotated[
        Path | None, typer.Option(help="Text file; the empty prompt if none is given.")
    ] = None,
    shift: Annotated[float, typer.Option(help="Of the sigma grid.")] = 5.0,
    seed: Annotated[int, typer.Option()] = 0,
    dtype: Annotated[Precision, typer.Option()] = "float32",
    device: Device = None,
) -> None:
    """Make the videos of one of the paper's TASKs beside the file MANIFEST, which lists them.

    Given frames and captions are those of clips of DATASET.
    """
    device = choose_device(device)
    from pusa.clip import ClipSize
    from pusa.generate import GenerateSettings
    from pusa.pipeline import load_pipeline
    from pusa.sample_task import choose_clips, task_requests
    from pusa.sample_task import sample_task as make_videos

    requests = task_requests(task, choose_clips(dataset, clips, held_out=held_out), frames)
    negative = negative_prompt_file.read_text().strip() if negative_prompt_file else ""
    settings = GenerateSettings(
        size=ClipSize(frames=frames, height=height, width=width),
        steps=steps,
        shift=shift,
        guidance_scale=guidance_scale,
        negative_prompt=negative,
        seed=seed,
    )
    pipeline = load_pipeline(
        model,
        transformer=transformer,
        loras=[(lora, lora_scale)] if lora else [],
        dtype=torch_dtype(dtype),
        device=device,
    )
    make_videos(pipeline, requests, settings, manifest.parent).to_csv(manifest, index=False)
