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
from pusa.sample.tasks import TASKS

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
    cache: Annotated[
        Path | None, typer.Option(help="Cache of DATASET that tells which clips were held out.")
    ] = None,
    held_out: Annotated[
        int | None, typer.Option(min=1, help="Choose among so many clips at the cache's end.")
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

    Given frames and captions are those of clips of DATASET: of all, or of those held out.
    """
    if (cache is None) != (held_out is None):
        raise ValueError("--cache and --held-out go together, found one without the other")
    device = choose_device(device)
    from pusa.clip import ClipSize
    from pusa.data.dataset import read_metadata
    from pusa.models.text import check_prompts, count_text_tokens, load_tokenizer
    from pusa.sample.generate import GenerateSettings, plan_videos
    from pusa.sample.pipeline import describe_model, load_pipeline
    from pusa.sample.sample_task import choose_clips, held_out_clips, task_requests
    from pusa.sample.sample_task import sample_task as make_videos

    available = held_out_clips(dataset, cache, held_out) if cache else read_metadata(dataset)
    requests = task_requests(task, choose_clips(available, clips), frames)
    negative = negative_prompt_file.read_text().strip() if negative_prompt_file else ""
    settings = GenerateSettings(
        size=ClipSize(frames=frames, height=height, width=width),
        steps=steps,
        shift=shift,
        guidance_scale=guidance_scale,
        negative_prompt=negative,
        seed=seed,
    )
    weights = {
        "transformer": transformer,
        "loras": [(lora, lora_scale)] if lora else [],
        "dtype": torch_dtype(dtype),
    }
    # All that can be wrong is found before the weights are loaded, which takes minutes.
    origin = describe_model(model, **weights)
    tokenizer = load_tokenizer(model)
    prompts = [request.prompt for request in requests]
    check_prompts(tokenizer, prompts, count_text_tokens(tokenizer), negative_prompt=negative)
    plan_videos(requests, settings, manifest.parent, origin=origin, overwrite=True)
    pipeline = load_pipeline(model, **weights, device=device)
    make_videos(pipeline, requests, settings, manifest.parent).to_csv(manifest, index=False)
