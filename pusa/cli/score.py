"""Commands that score videos."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pusa.cli.options import (
    Device,
    Manifests,
    app,
    choose_device,
    takes_settings,
)
from pusa.config import ImageSize, Size
from pusa.records import record_beside


@app.command()
@takes_settings
def check_vbench(
    suite: Path,
    size: ImageSize,
    weights: Annotated[Path, typer.Option(help="Folder of VBench's networks.")],
    samples: Annotated[int, typer.Option(help="Videos per prompt.")] = 1,
) -> None:
    """Check that VBench can score SUITE here. Runs in its environment."""
    from pusa.data.suite import read_suite
    from pusa.score.vbench import check_environment, check_suite
    from pusa.score.vbench_weights import check_weights

    check_weights(weights)
    check_suite(read_suite(suite, **size.model_dump()), samples)
    check_environment()


@app.command()
@takes_settings
def score(
    suite: Path,
    out: Path,
    manifests: Manifests,
    size: Size,
    dimension: Annotated[
        str | None, typer.Option(help="One of VBench-I2V's nine, by its own code.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of VBench's networks.")] = None,
    earlier: Annotated[
        Path | None,
        typer.Option(help="Earlier score table of the setting; what still holds of it is kept."),
    ] = None,
    device: Device = None,
) -> None:
    """Score videos: OUT, one row per video and measure, and a record beside it.

    By weight-free measures, all of them at once, which are not VBench; or with --dimension and
    --weights by VBench itself, which runs in an environment of its own.
    """
    if (dimension is None) != (weights is None):
        raise ValueError("--dimension and --weights go together, found one without the other")
    record_beside(out)  # before the long work
    from pusa.data.manifest import check_files, read_manifests
    from pusa.data.suite import INFO_FILE, read_suite
    from pusa.digests import digest_file
    from pusa.score.files import extend_scores, write_scores

    videos, folder = read_manifests(manifests)
    check_files(videos, folder)
    prompts = read_suite(suite, height=size.height, width=size.width)
    made_from = {"suite": digest_file(suite / INFO_FILE)}
    if dimension is None:
        from pusa.score.weight_free import measure_videos

        references = suite / "reference"
        score_some = partial(
            measure_videos,
            prompts,
            folder=folder,
            size=size,
            references=references if references.is_dir() else None,
        )
    else:
        device = choose_device(device)
        from pusa.data.video import check_samples
        from pusa.score.vbench import score_videos

        check_samples([folder / file for file in videos["file"]], **size.model_dump())
        made_from["weights"] = digest_file(weights / "download.json")
        score_some = partial(
            score_videos,
            prompts,
            folder=folder,
            dimension=dimension,
            weights=weights,
            device=device,
        )
    table, record = extend_scores(earlier, videos, score_some, made_from=made_from)
    write_scores(table, record, out)
