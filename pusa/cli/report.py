"""Commands that turn scores into tables, claims, effects, costs and provenance."""

from pathlib import Path
from typing import Annotated

import typer

from pusa.cli.options import (
    AllowPartial,
    Background,
    Camera,
    Scale,
    Scores,
    Seed,
    Sheet,
    Subject,
    Table1,
    Table2,
    app,
    prompt_counts,
)


@app.command()
def tables(
    out: Path,
    experiments: Sheet,
    scores: Scores,
    table1: Table1,
    table2: Table2,
    costs: Annotated[
        Path | None, typer.Option(help="Costs per stage, of `pusa measure-costs`.")
    ] = None,
    seed: Seed = None,
    scale: Scale = "",
    subject: Subject = None,
    background: Background = None,
    camera: Camera = None,
    allow_partial: AllowPartial = False,
) -> None:
    """Write Tables 1 and 2, published and ours, into OUT: CSV, Markdown, HTML and LaTeX.

    Rows whose setting has no score file are left empty.
    """
    import pandas as pd

    from pusa.report.costs import describe_costs
    from pusa.report.study import read_study
    from pusa.report.tables import (
        make_table1,
        make_table2,
        read_published,
        write_table1,
        write_table2,
    )

    study = read_study(
        experiments,
        scores,
        seeds=[seed],
        subset=prompt_counts(subject, background, camera),
        allow_partial=allow_partial,
    )
    out.mkdir(parents=True, exist_ok=True)
    one = make_table1(study, read_published(table1))
    two = make_table2(study, read_published(table2))
    cost = "" if costs is None else describe_costs(pd.read_csv(costs))
    write_table1(one, out / "table1", f"{scale} {cost}".strip())
    write_table2(two, out / "table2", scale)


@app.command()
def audit(
    out: Path,
    table1: Table1,
    table2: Table2,
    experiments: Annotated[
        Path | None, typer.Option(help="Sheet that tells which rows are one setting.")
    ] = None,
    seed: Seed = None,
) -> None:
    """Report what is wrong in published tables: OUT with the suffixes .csv, .md and .html."""
    from pusa.experiments import read_experiments
    from pusa.report.audit import audit_tables, same_settings, video_counts, write_audit
    from pusa.report.tables import read_published

    one, two = read_published(table1), read_published(table2)
    same = same_settings(read_experiments(experiments, seed=seed)) if experiments else None
    findings = audit_tables(one, two, same_setting=same)
    write_audit(findings, video_counts(one, two), out)
    print(f"{len(findings)} findings, in {out.with_suffix('.md')}")


@app.command()
def check_claims(
    out: Path,
    claims: Annotated[Path, typer.Argument(help="The claims, YAML.")],
    experiments: Sheet,
    scores: Scores,
    table1: Table1,
    table2: Table2,
    seed: Seed = None,
    scale: Scale = "",
    subject: Subject = None,
    background: Background = None,
    camera: Camera = None,
    allow_partial: AllowPartial = False,
) -> None:
    """Check the paper's claims on its numbers and on ours: OUT as .csv, .md and .html."""
    from pusa.report.claims import evaluate_claims, read_claims, write_claims
    from pusa.report.study import read_study
    from pusa.report.tables import read_published

    stated = read_claims(claims)
    study = read_study(
        experiments,
        scores,
        seeds=[seed],
        subset=prompt_counts(subject, background, camera),
        allow_partial=allow_partial,
    )
    table = evaluate_claims(stated, read_published(table1), read_published(table2), study)
    write_claims(table, out, scale)


@app.command()
def effects(
    out: Path,
    claims: Annotated[Path, typer.Argument(help="The claims and effects, YAML.")],
    experiments: Sheet,
    scores: Scores,
    runs: Annotated[Path, typer.Option(help="Folder of the training runs.")],
    seed: Seed = None,
    effect_seed: Annotated[list[int] | None, typer.Option(help="Seeds, if several.")] = None,
    scale: Scale = "",
    subject: Subject = None,
    background: Background = None,
    camera: Camera = None,
) -> None:
    """Measure the paper's effects; write OUT with the suffixes .csv, .md and .html."""
    from pusa.report.claims import read_claims
    from pusa.report.effects import measure_effects, validation_losses, write_effects
    from pusa.report.study import read_study

    stated, subset = read_claims(claims), prompt_counts(subject, background, camera)
    study = read_study(experiments, scores, seeds=effect_seed or [seed], subset=subset)
    write_effects(measure_effects(stated, study), validation_losses(study, runs), out, scale)


@app.command()
def measure_costs(
    out: Path,
    benchmarks: Annotated[Path, typer.Option(help="Folder of Snakemake's benchmark files.")],
    main_run: Annotated[str, typer.Option(help="Training run of the main setting.")],
    run: Annotated[list[Path] | None, typer.Option(help="Folder of a training run.")] = None,
    gpus: Annotated[list[str] | None, typer.Option(help="STAGE=N, GPUs of each job.")] = None,
    usd_per_gpu_hour: Annotated[float | None, typer.Option()] = None,
) -> None:
    """Add up hours, GPU-hours and cost of every stage."""
    from pusa.report import costs

    counts = dict(item.partition("=")[::2] for item in gpus or [])
    for stage, n in counts.items():
        if not n.isdecimal():
            raise ValueError(f"--gpus: found {stage}={n}, expected STAGE=N with a whole number")
    table = costs.measure_costs(
        benchmarks,
        run or [],
        gpus={stage: int(n) for stage, n in counts.items()},
        main_run=main_run,
        usd_per_gpu_hour=usd_per_gpu_hour,
    )
    table.to_csv(out, index=False)


@app.command()
def record_provenance(
    out: Path,
    config: Annotated[str, typer.Option(help="The configuration, as JSON.")],
    costs: Annotated[Path, typer.Option(help="Of `pusa measure-costs`.")],
    benchmarks: Annotated[Path, typer.Option(help="Folder of Snakemake's benchmark files.")],
    samples: Annotated[Path, typer.Option(help="Folder with a folder of videos per setting.")],
    scores: Scores,
    run: Annotated[list[Path] | None, typer.Option(help="Folder of a training run.")] = None,
    download_record: Annotated[list[Path] | None, typer.Option(help="A download.json.")] = None,
) -> None:
    """Write where the tables' numbers come from: OUT with the suffixes .json, .md and .html."""
    import json

    import pandas as pd

    from pusa.report import provenance

    record = provenance.collect_provenance(
        json.loads(config),
        repository=Path.cwd(),
        downloads=download_record or [],
        benchmarks=benchmarks,
        runs=run or [],
        manifests=sorted(samples.glob("*/shard*.csv")),
        scores=sorted(scores.glob("*.json")),
    )
    provenance.write_provenance(record, pd.read_csv(costs), out)


@app.command()
def overview(
    out: Path,
    tables: Annotated[Path, typer.Option(help="Folder with the other tables of the run.")],
    effects: Annotated[Path, typer.Option(help="Of `pusa effects`.")],
    scale: Scale = "",
) -> None:
    """Write what a run shows on one page: OUT with the suffixes .md and .html."""
    from pusa.report.overview import read_run, write_overview

    write_overview(read_run(tables, effects), out, scale)


@app.command()
def gallery(
    out: Path,
    samples: Annotated[list[Path], typer.Argument(help="Folders of videos, or of such folders.")],
    title: Annotated[str, typer.Option()] = "Videos",
) -> None:
    """Show the videos of SAMPLES side by side: a new folder OUT, to open in a browser.

    If OUT ends in .html it is one page with small copies of as many videos as the report shows.
    """
    from pusa.report.gallery import find_samples, write_gallery, write_video_page

    write = write_video_page if out.suffix == ".html" else write_gallery
    write(title, find_samples(samples), out)
