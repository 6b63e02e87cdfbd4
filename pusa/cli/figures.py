"""Commands that draw the figures."""

from pathlib import Path
from typing import Annotated

import typer

from pusa.cli.options import (
    Background,
    Camera,
    Height,
    Scores,
    Seed,
    Sheet,
    Subject,
    Table2,
    Width,
    app,
    prompt_counts,
)


@app.command()
def plot_losses(out: Path, runs: list[Path]) -> None:
    """Plot training and validation losses of training RUNS."""
    from pusa import figures

    figures.plot_losses(runs, out)


@app.command()
def plot_scores(
    out: Path,
    experiments: Sheet,
    scores: Scores,
    table2: Table2,
    seed: Seed = None,
    subject: Subject = None,
    background: Background = None,
    camera: Camera = None,
) -> None:
    """Plot total score against alpha, rank, iterations and steps, beside the paper's."""
    from pusa.figures import plot_scores
    from pusa.study import read_study
    from pusa.tables import read_published

    subset = prompt_counts(subject, background, camera)
    study = read_study(experiments, scores, seed=seed, subset=subset)
    plot_scores(study, read_published(table2), out)


@app.command()
def plot_figure3(
    out: Path,
    suite: Path,
    experiments: Sheet,
    samples: Annotated[Path, typer.Option(help="Folder with a folder of videos per setting.")],
    height: Height,
    width: Width,
    seed: Seed = None,
    subject: Subject = None,
    background: Background = None,
    camera: Camera = None,
) -> None:
    """Figure 3: the same image and prompt through the base with VTA and the adapted model."""
    from pusa import figures
    from pusa.experiments import base_setting, main_setting, read_experiments
    from pusa.suite import read_suite

    setting = main_setting(read_experiments(experiments, seed=seed))
    counts = prompt_counts(subject, background, camera)
    taken = read_suite(suite, height=height, width=width, counts=counts)
    references = suite / "reference"
    figures.plot_figure3(
        [p for p in taken if p.kind == "subject"][:3],
        {s: samples / s.name for s in (base_setting(setting), setting)},
        out,
        height=height,
        width=width,
        references=references if references.is_dir() else None,
    )


@app.command()
def contact_sheet(
    out: Path,
    suite: Path,
    experiments: Sheet,
    samples: Annotated[Path, typer.Option(help="Folder with a folder of videos per setting.")],
    height: Height,
    width: Width,
    seed: Seed = None,
    subject: Subject = None,
    background: Background = None,
    camera: Camera = None,
) -> None:
    """Show the main setting's videos: OUT with the suffixes .png and .mp4."""
    from pusa import figures
    from pusa.experiments import main_setting, read_experiments
    from pusa.suite import read_suite

    setting = main_setting(read_experiments(experiments, seed=seed))
    counts = prompt_counts(subject, background, camera)
    taken = read_suite(suite, height=height, width=width, counts=counts)
    figures.make_contact_sheet(taken, setting, samples / setting.name, out)
