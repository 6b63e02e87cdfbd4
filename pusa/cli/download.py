"""Commands that need a network: models, datasets, VBench's suite and networks."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pusa.cli.options import app


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
    if suite is not None:
        from pusa.data.download import download_suite

        download_suite(suite)
    if weights is not None:
        from pusa.score.vbench_weights import download_weights

        download_weights(weights)
