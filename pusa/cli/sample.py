"""Commands that make the videos of a prompt suite."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pusa.cli.options import (
    Background,
    Camera,
    Device,
    Frames,
    Height,
    Precision,
    Subject,
    Width,
    app,
    choose_device,
    prompt_counts,
    torch_dtype,
)


@app.command()
def sample_suite(
    suite: Path,
    model: Path,
    manifest: Path,
    prompts: Annotated[Path, typer.Option(help="Prompt embeddings of cache-prompts.")],
    steps: Annotated[int, typer.Option(min=1)],
    frames: Frames,
    height: Height,
    width: Width,
    transformer: Annotated[
        Path | None,
        typer.Option(
            help="Transformer folder, base or merged. Without it, MODEL is an image-to-video "
            "baseline, sampled by diffusers' own pipeline and scheduler."
        ),
    ] = None,
    task: Annotated[Literal["i2v", "t2v"], typer.Option()] = "i2v",
    samples: Annotated[int, typer.Option(help="Videos per prompt.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1)] = 1,
    guidance_scale: Annotated[float, typer.Option()] = 3.0,
    shift: Annotated[float, typer.Option(help="Of the sigma grid.")] = 5.0,
    seed: Annotated[int, typer.Option()] = 0,
    dtype: Annotated[Precision, typer.Option()] = "float32",
    shard: Annotated[int, typer.Option(help="Which share of the prompts, from 0.")] = 0,
    shards: Annotated[int, typer.Option(help="Number of shares.")] = 1,
    subject: Subject = None,
    background: Background = None,
    camera: Camera = None,
    device: Device = None,
) -> None:
    """Make the videos of SUITE beside the file MANIFEST, which lists them."""
    device = choose_device(device)
    from pusa.clip import ClipSize
    from pusa.data.suite import read_suite
    from pusa.sample.sample_suite import SampleSettings, generate_suite

    taken = read_suite(
        suite, height=height, width=width, counts=prompt_counts(subject, background, camera)
    )
    table = generate_suite(
        taken[shard::shards],
        samples,
        SampleSettings(
            size=ClipSize(frames=frames, height=height, width=width),
            steps=steps,
            shift=shift,
            guidance_scale=guidance_scale,
            seed=seed,
            task=task,
        ),
        model=model,
        transformer=transformer,
        prompt_cache=prompts,
        out=manifest.parent,
        batch_size=batch_size,
        dtype=torch_dtype(dtype),
        device=device,
    )
    table.to_csv(manifest, index=False)
