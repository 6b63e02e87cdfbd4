"""Commands that score videos."""

from pathlib import Path
from typing import Annotated

import typer

from pusa.cli.options import (
    AllowPartial,
    Background,
    Camera,
    Device,
    Frames,
    Height,
    Manifests,
    Subject,
    Width,
    app,
    choose_device,
    prompt_counts,
)


@app.command()
def score(
    suite: Path,
    out: Path,
    manifests: Manifests,
    frames: Frames,
    height: Height,
    width: Width,
) -> None:
    """Score videos by weight-free measures (not VBench): OUT, one row per video and measure."""
    from pusa.data.suite import read_manifests, read_suite
    from pusa.score.files import write_scores
    from pusa.score.weight_free import measure_videos

    videos, folder = read_manifests(manifests)
    references = suite / "reference"
    table, record = measure_videos(
        read_suite(suite, height=height, width=width),
        videos,
        folder,
        frames=frames,
        height=height,
        width=width,
        references=references if references.is_dir() else None,
    )
    write_scores(table, record, out)


@app.command()
def check_vbench(
    suite: Path,
    weights: Annotated[Path, typer.Option(help="Folder of VBench's networks.")],
    height: Height,
    width: Width,
    samples: Annotated[int, typer.Option(help="Videos per prompt.")] = 1,
) -> None:
    """Check that VBench can score SUITE here. Runs in its environment."""
    from pusa.data.suite import read_suite
    from pusa.score.vbench import check_environment, check_suite
    from pusa.score.vbench_weights import check_weights

    check_weights(weights)
    check_suite(read_suite(suite, height=height, width=width), samples)
    check_environment()


@app.command()
def score_vbench(
    suite: Path,
    out: Path,
    manifests: Manifests,
    dimension: Annotated[str, typer.Option(help="One of VBench-I2V's nine.")],
    weights: Annotated[Path, typer.Option(help="Folder of VBench's networks.")],
    frames: Frames,
    height: Height,
    width: Width,
    device: Device = None,
) -> None:
    """Score videos with VBench on one dimension: OUT, a row per video. Runs in its environment."""
    device = choose_device(device)
    from pusa.data.suite import read_manifests, read_suite
    from pusa.data.video import check_samples
    from pusa.score.files import write_scores
    from pusa.score.vbench import score_videos

    videos, folder = read_manifests(manifests)
    files = [folder / file for file in videos["file"]]
    check_samples(files, frames=frames, height=height, width=width)
    table, record = score_videos(
        read_suite(suite, height=height, width=width),
        videos,
        folder,
        dimension=dimension,
        weights=weights,
        device=device,
    )
    write_scores(table, record, out)


@app.command()
def gather_scores(
    suite: Path,
    out: Path,
    manifests: Manifests,
    scores: Annotated[list[Path], typer.Option(help="Score file; several may be given.")],
    samples: Annotated[int, typer.Option(help="Videos per prompt.")] = 1,
    subject: Subject = None,
    background: Background = None,
    camera: Camera = None,
    allow_partial: AllowPartial = False,
) -> None:
    """Check that every video has every score that SUITE asks for, and put them into one file."""
    from pusa.data.suite import read_manifests, read_prompts
    from pusa.score.files import gather_scores, write_scores

    videos, _ = read_manifests(manifests)
    prompts = read_prompts(suite, prompt_counts(subject, background, camera))
    table, record = gather_scores(
        scores, prompts, videos, samples=samples, allow_partial=allow_partial
    )
    write_scores(table, record, out)
