"""Commands that fetch what comes from the network, and encode clips and prompts."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pusa.cli.options import Device, app, choose_device, takes_settings, tell_warnings_once
from pusa.config import Cache, Clip, ImageSize, Size


@app.command()
def download(
    repo: str,
    folder: Path,
    kind: Annotated[Literal["model", "dataset"], typer.Option()],
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    include: Annotated[
        list[str] | None,
        typer.Option(help="Glob of files to take; several may be given. All but pickles if none."),
    ] = None,
) -> None:
    """Download a model or dataset from the hub into FOLDER, and check every file."""
    from pusa.data.download import download_repository

    download_repository(repo, folder, kind=kind, revision=revision, include=include or ())


@app.command()
def download_vbench(
    suite: Annotated[Path | None, typer.Option(help="Folder for prompts and images.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder for VBench's networks.")] = None,
) -> None:
    """Download VBench-I2V's prompt suite, its networks, or both.

    A crop.zip of the images that lies in the suite's folder is used, as are networks that lie
    where they belong.
    """
    if suite is None and weights is None:
        raise ValueError("expected --suite, --weights or both, found neither")
    if suite is not None:
        from pusa.data.download import download_suite

        download_suite(suite)
    if weights is not None:
        from pusa.score.vbench_weights import download_weights

        download_weights(weights)


@app.command()
@takes_settings
def cache_latents(
    dataset: Path, model: Path, out: Path, clip: Clip, cache: Cache, device: Device = None
) -> None:
    """Encode the clips and captions of DATASET with MODEL's VAE and text encoder."""
    device = choose_device(device)
    from pusa.data import cache as caching

    tell_warnings_once()
    caching.cache_latents(
        dataset,
        model,
        out,
        size=clip.part(Size),
        text_tokens=clip.text_tokens,
        source=cache.source,
        skip_unusable=cache.skip_unusable,
        device=device,
    )


@app.command()
@takes_settings
def cache_prompts(
    suite: Path,
    model: Path,
    out: Path,
    size: ImageSize,
    text_tokens: Annotated[int, typer.Option(help="Length of a prompt embedding.")],
    negative_prompt: Annotated[str, typer.Option(help="Of guidance.")] = "",
    device: Device = None,
) -> None:
    """Embed the prompts of SUITE with MODEL's text encoder."""
    device = choose_device(device)
    from pusa.data import cache
    from pusa.data.suite import read_suite

    prompts = {p.prompt for p in read_suite(suite, **size.model_dump())}
    cache.cache_prompts(
        prompts,
        model,
        out,
        text_tokens=text_tokens,
        negative_prompt=negative_prompt,
        device=device,
    )
