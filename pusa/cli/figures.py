"""Commands that draw the figures; each writes OUT, a PNG, and a PDF beside it."""

from pathlib import Path
from typing import Annotated, Literal

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

Samples = Annotated[Path, typer.Option(help="Folder with a folder of videos per setting.")]
Number = Annotated[int, typer.Option("--figure", help="Its number, which stands in the title.")]
Note = Annotated[str, typer.Option(help="Stands below the figure, for example the setting.")]
Labels = Annotated[
    list[str] | None, typer.Option("--label", help="Name of a model, in the order of the files.")
]

SAMPLE_PROMPTS = 4
SAMPLE_TITLES = {"i2v": "More image-to-video results", "t2v": "Text-to-video results"}


@app.command()
def plot_losses(out: Path, runs: list[Path]) -> None:
    """Plot training and validation losses of training RUNS."""
    from pusa.figures.curves import plot_losses

    plot_losses(runs, out)


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
    from pusa.figures.curves import plot_scores
    from pusa.report.study import read_study
    from pusa.report.tables import read_published

    subset = prompt_counts(subject, background, camera)
    study = read_study(experiments, scores, seeds=[seed], subset=subset)
    plot_scores(study, read_published(table2), out)


@app.command()
def plot_figure1(
    out: Path,
    experiments: Sheet,
    table1: Annotated[Path, typer.Option(help="Table 1 of this run, CSV.")],
    costs: Annotated[Path, typer.Option(help="What this run took, CSV.")],
    clips: Annotated[
        int | None, typer.Option(help="Clips that this run trained on; none if it trained nothing.")
    ] = None,
    note: Note = "",
    seed: Seed = None,
) -> None:
    """Figure 1: quality, data, cost, steps and tasks of Pusa beside Wan-I2V."""
    import pandas as pd

    from pusa.experiments import main_setting, read_experiments
    from pusa.figures.summary import plot_figure1

    for file in (table1, costs):
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist")
    sheet = read_experiments(experiments, seed=seed)
    main = main_setting(sheet)
    plot_figure1(
        pd.read_csv(table1),
        pd.read_csv(costs),
        out,
        main=main,
        baseline=next(iter(_baselines(sheet, main.task)), None),
        clips=clips,
        note=note,
    )


@app.command()
def plot_figure3(
    out: Path,
    suite: Path,
    experiments: Sheet,
    samples: Samples,
    height: Height,
    width: Width,
    note: Note = "",
    seed: Seed = None,
    subject: Subject = None,
    background: Background = None,
    camera: Camera = None,
) -> None:
    """Figure 3: the same image and prompt through base with VTA, Wan-I2V, and adapted model."""
    from pusa.data.suite import read_suite
    from pusa.experiments import base_setting, main_setting, read_experiments
    from pusa.figures.strips import figure3_prompts, plot_figure3

    sheet = read_experiments(experiments, seed=seed)
    main = main_setting(sheet)
    counts = prompt_counts(subject, background, camera)
    taken = read_suite(suite, height=height, width=width, counts=counts)
    references = suite / "reference"
    plot_figure3(
        figure3_prompts(taken),
        {s: samples / s.name for s in (base_setting(main), *_baselines(sheet, main.task), main)},
        out,
        height=height,
        width=width,
        references=references if references.is_dir() else None,
        note=note,
    )


@app.command()
def plot_attention(out: Path, files: list[Path], label: Labels = None, note: Note = "") -> None:
    """Figure 4: attention between frames, from the CSV and JSON FILES of `pusa attention`."""
    from pusa.figures.analysis import plot_attention

    plot_attention(files, out, labels=label or (), note=note)


@app.command()
def plot_drift(out: Path, files: list[Path], label: Labels = None, note: Note = "") -> None:
    """Figure 5: relative change of parameters, from the CSV FILES of `pusa drift`."""
    from pusa.figures.analysis import plot_drift

    plot_drift(files, out, labels=label or (), note=note)


@app.command()
def plot_samples(
    out: Path,
    suite: Path,
    figure: Number,
    task: Annotated[Literal["i2v", "t2v"], typer.Option(help="Of the main setting's samples.")],
    experiments: Sheet,
    samples: Samples,
    height: Height,
    width: Width,
    note: Note = "",
    seed: Seed = None,
    subject: Subject = None,
    background: Background = None,
    camera: Camera = None,
) -> None:
    """Figures 6 and 13: samples of the main setting, of other prompts than Figure 3's."""
    from dataclasses import replace

    import numpy as np

    from pusa.data.suite import read_suite
    from pusa.experiments import main_setting, read_experiments
    from pusa.figures.strips import figure3_prompts, plot_strips

    setting = replace(main_setting(read_experiments(experiments, seed=seed)), task=task)
    counts = prompt_counts(subject, background, camera)
    taken = read_suite(suite, height=height, width=width, counts=counts)
    shown = figure3_prompts(taken)
    others = [p for p in taken if p not in shown] or taken
    places = np.linspace(0, len(others) - 1, min(SAMPLE_PROMPTS, len(others))).round().astype(int)
    plot_strips(
        [samples / setting.name / others[i].video_name(0) for i in places],
        out,
        title=f"Figure {figure}: {SAMPLE_TITLES[task]}",
        note=note,
    )


@app.command()
def plot_strips(
    out: Path,
    videos: list[Path],
    title: Annotated[str, typer.Option(help="What the figure shows.")],
    figure: Annotated[
        int | None, typer.Option(help="Its number, which then begins the title.")
    ] = None,
    note: Note = "",
) -> None:
    """Figures 7 to 12: a row of frames for each of VIDEOS, with the given ones marked."""
    from pusa.figures.strips import plot_strips

    numbered = title if figure is None else f"Figure {figure}: {title}"
    plot_strips(videos, out, title=numbered, note=note)


@app.command()
def contact_sheet(
    out: Path,
    suite: Path,
    experiments: Sheet,
    samples: Samples,
    height: Height,
    width: Width,
    seed: Seed = None,
    subject: Subject = None,
    background: Background = None,
    camera: Camera = None,
) -> None:
    """Show the main setting's videos: OUT with the suffixes .png, .pdf and .mp4."""
    from pusa.data.suite import read_suite
    from pusa.experiments import main_setting, read_experiments
    from pusa.figures.strips import make_contact_sheet

    setting = main_setting(read_experiments(experiments, seed=seed))
    counts = prompt_counts(subject, background, camera)
    taken = read_suite(suite, height=height, width=width, counts=counts)
    make_contact_sheet(taken, setting, samples / setting.name, out)


def _baselines(sheet, task: str) -> list:
    """Settings of Wan-I2V in the experiments sheet."""
    from pusa.experiments import WAN_I2V, unique_settings

    settings = unique_settings(sheet).values()
    return [s for s in settings if (s.model, s.task) == (WAN_I2V, task)]
