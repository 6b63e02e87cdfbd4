"""Commands that check tables, and show videos."""

from pathlib import Path
from typing import Annotated

import typer

from pusa.cli.options import app, takes_settings
from pusa.config import PromptCounts

Table1 = Annotated[Path, typer.Option(help="Published Table 1, CSV.")]
Table2 = Annotated[Path, typer.Option(help="Published Table 2, CSV.")]
TrainSeed = Annotated[
    int | None, typer.Option(help="Seed of the sheet's trainings; none for a released LoRA.")
]


@app.command()
def audit(
    out: Path,
    table1: Table1,
    table2: Table2,
    experiments: Annotated[
        Path | None, typer.Option(help="Sheet that tells which rows are one setting.")
    ] = None,
) -> None:
    """Report what is wrong in published tables: OUT with the suffixes .csv, .md and .html."""
    from pusa.experiments import read_experiments
    from pusa.report.audit import audit_tables, same_settings, video_counts, write_audit
    from pusa.report.tables import read_published

    one, two = read_published(table1), read_published(table2)
    same = same_settings(read_experiments(experiments, seed=None)) if experiments else None
    findings = audit_tables(one, two, same_setting=same)
    write_audit(findings, video_counts(one, two), out)
    print(f"{len(findings)} findings, in {out.with_suffix('.md')}")


@app.command()
@takes_settings
def claims(
    out: Path,
    claims: Annotated[Path, typer.Argument(help="The claims, YAML.")],
    experiments: Annotated[Path, typer.Option(help="The experiments sheet.")],
    scores: Annotated[Path, typer.Option(help="Folder with a score file per setting.")],
    table1: Table1,
    table2: Table2,
    subset: PromptCounts | None = None,
    train_seed: TrainSeed = None,
    caption: Annotated[str, typer.Option(help="A sentence on this run.")] = "",
) -> None:
    """Check the paper's claims on its numbers and on ours: OUT as .csv, .md and .html."""
    from pusa.report.claims import evaluate_claims, read_claims, write_claims
    from pusa.report.study import read_study
    from pusa.report.tables import read_published

    stated = read_claims(claims)
    study = read_study(
        experiments,
        scores,
        seeds=[train_seed],
        subset=subset.model_dump() if subset else None,
    )
    one, two = read_published(table1), read_published(table2)
    write_claims(evaluate_claims(stated, one, two, study), out, caption)


@app.command()
def price(
    out: Path,
    configfile: Annotated[
        list[Path],
        typer.Option(help="The configuration; of several, a later one's keys count."),
    ] = [Path("config/config.yaml")],  # noqa: B006
    pilot: Annotated[
        Path | None,
        typer.Option(
            help="Folder of an earlier run's scores, results/RUN/scores/tables, whose variance is "
            "taken where this run has none yet."
        ),
    ] = None,
    pilot_experiments: Annotated[
        Path | None, typer.Option(help="Experiments sheet of that run, if it had another.")
    ] = None,
) -> None:
    """Tell what would decide each claim, in videos and GPU-hours: OUT as .csv, .md and .html."""
    from pusa.config import read_config_files
    from pusa.layout import read_layout
    from pusa.report.captions import describe_scale
    from pusa.report.price import describe_prices, price_claims, write_prices

    if pilot_experiments and not pilot:
        raise ValueError("--pilot-experiments goes with --pilot, found it alone")
    layout = read_layout(read_config_files(configfile))
    prices = price_claims(layout, pilot, pilot_experiments)
    scale = describe_scale(layout, "tables")
    write_prices(prices, layout.config.score.scorer, out, scale)
    print(f"{describe_prices(prices)} In {out.with_suffix('.md')}")


@app.command()
def gallery(
    out: Path,
    samples: Annotated[list[Path], typer.Argument(help="Folders of videos, or of such folders.")],
    title: Annotated[str, typer.Option()] = "Videos",
    show: Annotated[
        list[str], typer.Option(help="Folder that is seen at first; others are a click away.")
    ] = [],  # noqa: B006
) -> None:
    """Show the videos of SAMPLES side by side: a new folder OUT, to open in a browser.

    If OUT ends in .html it is one page with small copies of as many videos as the report shows.
    """
    from pusa.report.gallery import find_samples, write_gallery, write_video_page

    if out.suffix == ".html":
        if show:
            raise ValueError(f"--show: {out} is one page, which shows all that fits")
        write_video_page(title, find_samples(samples), out)
    else:
        write_gallery(title, find_samples(samples), out, shown=show)
