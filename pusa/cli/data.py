"""Commands that encode clips and prompts."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pusa.cli.options import Device, Frames, Height, TextTokens, Width, app, choose_device


@app.command()
def cache_latents(
    dataset: Path,
    model: Path,
    out: Path,
    frames: Frames,
    height: Height,
    width: Width,
    text_tokens: TextTokens,
    source: Annotated[
        Literal["encode", "released"],
        typer.Option(help="Encode the videos, or take the .tensors.pth that lie beside them."),
    ] = "encode",
    skip_unusable: Annotated[bool, typer.Option(help="Go on without unusable clips.")] = False,
    device: Device = None,
) -> None:
    """Encode the clips and captions of DATASET with MODEL's VAE and text encoder."""
    device = choose_device(device)
    from pusa.clip import ClipSize
    from pusa.data import cache

    cache.cache_latents(
        dataset,
        model,
        out,
        size=ClipSize(frames=frames, height=height, width=width),
        text_tokens=text_tokens,
        source=source,
        skip_unusable=skip_unusable,
        device=device,
    )


@app.command()
def cache_prompts(
    suite: Path,
    model: Path,
    out: Path,
    height: Height,
    width: Width,
    text_tokens: TextTokens,
    negative_prompt_file: Annotated[Path | None, typer.Option(exists=True)] = None,
    device: Device = None,
) -> None:
    """Embed the prompts of SUITE with MODEL's text encoder."""
    device = choose_device(device)
    from pusa.data import cache
    from pusa.data.suite import read_suite

    negative = negative_prompt_file.read_text().strip() if negative_prompt_file else ""
    prompts = {p.prompt for p in read_suite(suite, height=height, width=width)}
    cache.cache_prompts(
        prompts, model, out, text_tokens=text_tokens, negative_prompt=negative, device=device
    )
