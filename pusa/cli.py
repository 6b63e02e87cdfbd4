"""The command line: thin commands over the library, used by the workflow's rules and by people.

A command imports what it needs when it runs, so that ``pusa --help`` and the commands without
a model answer at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    help="Pusa V1.0: image-to-video by vectorized timestep adaptation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
tiny = typer.Typer(help="Make the embedded tiny model and its world.", no_args_is_help=True)
app.add_typer(tiny, name="tiny")

Frames = Annotated[int, typer.Option(help="Pixel frames, of the form 4k+1.")]
Height = Annotated[int, typer.Option(help="Pixels.")]
Width = Annotated[int, typer.Option(help="Pixels.")]
TextTokens = Annotated[int, typer.Option(help="Length of a prompt embedding.")]
Subject = Annotated[int | None, typer.Option(help="Subject prompts to take; all if none is given.")]
Background = Annotated[int | None, typer.Option(help="Background prompts to take.")]
Camera = Annotated[int | None, typer.Option(help="Camera prompts to take.")]
Sheet = Annotated[Path, typer.Option(help="The experiments sheet.")]
Scores = Annotated[Path, typer.Option(help="Folder with a score file per setting.")]
Manifests = Annotated[list[Path], typer.Argument(help="Lists of videos, beside them.")]
AllowPartial = Annotated[
    bool, typer.Option("--allow-partial", help="Go on without some scores, and print no total.")
]
Table1 = Annotated[Path, typer.Option(help="Published Table 1, CSV.")]
Table2 = Annotated[Path, typer.Option(help="Published Table 2, CSV.")]
Scale = Annotated[str, typer.Option(help="A sentence on this run's scale.")]
Device = Annotated[
    Literal["cuda", "cpu"] | None, typer.Option(help="Where models run; a GPU if there is one.")
]
Seed = Annotated[int | None, typer.Option(help="Training seed; none for a released LoRA.")]


Precision = Literal["float32", "bfloat16"]


def main() -> None:
    """Run a command; an error that the user can mend is one line, without a traceback."""
    try:
        app()
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _torch_dtype(precision: str):
    import torch

    return getattr(torch, precision)


def _choose_device(wanted: str | None) -> str:
    if wanted == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before PyTorch looks for them
    import torch

    found = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and found == "cpu":
        raise ValueError(f"--device cuda: PyTorch {torch.__version__} finds no GPU here")
    return found


def _counts(subject: int | None, background: int | None, camera: int | None):
    counts = {"subject": subject, "background": background, "camera": camera}
    if all(n is None for n in counts.values()):
        return None
    return {kind: n or 0 for kind, n in counts.items()}


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
    from pusa.download import download_repository

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
        from pusa.download import download_suite

        download_suite(suite)
    if weights is not None:
        from pusa.vbench.weights import download_weights

        download_weights(weights)


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
    device = _choose_device(device)
    from pusa import cache
    from pusa.clip import ClipSize

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
    device = _choose_device(device)
    from pusa import cache
    from pusa.suite import read_suite

    negative = negative_prompt_file.read_text().strip() if negative_prompt_file else ""
    prompts = {p.prompt for p in read_suite(suite, height=height, width=width)}
    cache.cache_prompts(
        prompts, model, out, text_tokens=text_tokens, negative_prompt=negative, device=device
    )


@app.command()
def train_lora(
    cache: Path,
    transformer: Path,
    out: Path,
    state: Annotated[Path, typer.Option(help="Folder for what a stopped run goes on from.")],
    iteration: Annotated[list[int], typer.Option(help="Iteration to save; several may be given.")],
    learning_rate: Annotated[float, typer.Option()] = 1e-5,
    method: Annotated[
        Literal["lora", "full"], typer.Option(help="A LoRA, or all weights on ZeRO-3.")
    ] = "lora",
    rank: Annotated[int | None, typer.Option(help="Of a LoRA.")] = None,
    objective: Annotated[
        Literal["paper", "authors"],
        typer.Option(help="Uniform timesteps, unweighted; or shifted ones, gaussian weight."),
    ] = "paper",
    p_async: Annotated[
        float, typer.Option(min=0, max=1, help="PTSS: probability of a timestep per frame.")
    ] = 1,
    shift: Annotated[float, typer.Option(help="Of the authors' objective.")] = 5.0,
    warmup: Annotated[int, typer.Option(min=0, help="Iterations of rising learning rate.")] = 0,
    total_batch: Annotated[
        int, typer.Option(min=1, help="Clips per iteration, all processes.")
    ] = 8,
    micro_batch: Annotated[
        int, typer.Option(min=1, help="Clips per process and forward pass.")
    ] = 1,
    validation_clips: Annotated[int, typer.Option(min=0, help="Last clips, held out.")] = 32,
    gradient_checkpointing: Annotated[bool, typer.Option("--gradient-checkpointing")] = False,
    offload: Annotated[bool, typer.Option("--offload", help="Optimizer in host memory.")] = False,
    dtype: Annotated[
        Precision, typer.Option(help="Of the frozen base; for full, of the computation.")
    ] = "float32",
    seed: Annotated[int, typer.Option()] = 0,
    checkpoint_every: Annotated[
        int, typer.Option(min=1, help="Iterations between two checkpoints.")
    ] = 50,
    minutes: Annotated[
        float, typer.Option(min=0, help="Wall-clock budget of this start; 0 is none.")
    ] = 0,
    device: Device = None,
) -> None:
    """Train on a latent CACHE; start with torchrun, one process per device.

    Stopped, by a signal or its budget, the same command goes on from the last checkpoint.
    """
    _choose_device(device)
    from pusa import train

    settings = train.TrainSettings(
        method=method,
        rank=rank,
        iterations=tuple(iteration),
        objective=objective,
        p_async=p_async,
        learning_rate=learning_rate,
        warmup=warmup,
        total_batch=total_batch,
        micro_batch=micro_batch,
        shift=shift,
        validation_clips=validation_clips,
        gradient_checkpointing=gradient_checkpointing,
        dtype=dtype,
        offload=offload,
        seed=seed,
    )
    train.train(
        cache,
        transformer,
        out,
        settings,
        state=state,
        checkpoint_every=checkpoint_every,
        minutes=minutes,
    )
    # DeepSpeed keeps gloo's threads alive, and one that lets go of a tensor while Python shuts down
    # aborts the process: a finished training would count as failed. So Python does not shut down.
    sys.stderr.flush()
    os._exit(0)


@app.command()
def merge_lora(
    base: Annotated[Path, typer.Option(help="Transformer folder.")],
    lora: Annotated[Path, typer.Option(help="LoRA file of any known format.")],
    scale: Annotated[float, typer.Option(help="lora_scale, the paper's alpha.")],
    out: Annotated[Path, typer.Option(help="Folder to write, new or empty.")],
) -> None:
    """Merge a LoRA into a transformer, one tensor at a time."""
    from pusa import lora as lora_files

    lora_files.merge_lora(base, lora, out, lora_scale=scale)


@app.command()
def convert_lora(
    source: Annotated[Path, typer.Argument(metavar="IN", help="LoRA of any known format.")],
    out: Annotated[Path, typer.Argument(help="File to write, .safetensors.")],
    to: Annotated[Literal["diffusers", "comfy", "authors"], typer.Option()],
    rank: Annotated[int | None, typer.Option(help="Refuse a LoRA of another rank.")] = None,
) -> None:
    """Write the LoRA file IN with the tensor names that others read."""
    from pusa import lora as lora_files

    before, after = lora_files.convert_lora(source, out, to=to, rank=rank)
    per_frame = {True: "yes", False: "no", None: "unknown"}[lora_files.lora_info(after).vectorized]
    print(
        f"{before.format} to {after.format}: {len(before.layout)} tensors in, "
        f"{len(after.layout)} out, {len(after.modules)} modules, rank {after.rank}"
    )
    print(f"trained with a timestep per frame, so image-to-video: {per_frame}")


@app.command()
def sample_suite(
    suite: Path,
    model: Path,
    manifest: Path,
    transformer: Annotated[Path, typer.Option(help="Transformer folder, base or merged.")],
    prompts: Annotated[Path, typer.Option(help="Prompt embeddings of cache-prompts.")],
    steps: Annotated[int, typer.Option(min=1)],
    frames: Frames,
    height: Height,
    width: Width,
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
    device = _choose_device(device)
    from pusa import generate
    from pusa.clip import ClipSize
    from pusa.suite import read_suite

    taken = read_suite(
        suite, height=height, width=width, counts=_counts(subject, background, camera)
    )
    table = generate.generate_suite(
        taken[shard::shards],
        samples,
        generate.SampleSettings(
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
        dtype=_torch_dtype(dtype),
        device=device,
    )
    table.to_csv(manifest, index=False)


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
    from pusa.measures import measure_videos
    from pusa.scores import write_scores
    from pusa.suite import read_manifests, read_suite

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
    from pusa.suite import read_suite
    from pusa.vbench.run import check_environment, check_suite
    from pusa.vbench.weights import check_weights

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
    device = _choose_device(device)
    from pusa.scores import write_scores
    from pusa.suite import read_manifests, read_suite
    from pusa.vbench.run import score_videos
    from pusa.video import check_samples

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
    from pusa.scores import gather_scores, write_scores
    from pusa.suite import read_manifests, read_prompts

    videos, _ = read_manifests(manifests)
    prompts = read_prompts(suite, _counts(subject, background, camera))
    table, record = gather_scores(
        scores, prompts, videos, samples=samples, allow_partial=allow_partial
    )
    write_scores(table, record, out)


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

    from pusa.costs import describe_costs
    from pusa.study import read_study
    from pusa.tables import make_table1, make_table2, read_published, write_table1, write_table2

    study = read_study(
        experiments,
        scores,
        seed=seed,
        subset=_counts(subject, background, camera),
        allow_missing=True,
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
    from pusa.audit import audit_tables, same_settings, video_counts, write_audit
    from pusa.experiments import read_experiments
    from pusa.tables import read_published

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
    from pusa.claims import evaluate_claims, read_claims, write_claims
    from pusa.study import read_study
    from pusa.tables import read_published

    study = read_study(
        experiments,
        scores,
        seed=seed,
        subset=_counts(subject, background, camera),
        allow_missing=True,
        allow_partial=allow_partial,
    )
    table = evaluate_claims(
        read_claims(claims), read_published(table1), read_published(table2), study
    )
    write_claims(table, out, scale)


@app.command()
def effects(
    out: Path,
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
    from pusa.effects import measure_effects, validation_losses, write_effects
    from pusa.study import read_study

    subset = _counts(subject, background, camera)
    study = read_study(experiments, scores, seed=seed, subset=subset, effect_seeds=effect_seed)
    write_effects(measure_effects(study), validation_losses(study, runs), out, scale)


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
    from pusa import costs

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

    from pusa import provenance

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

    subset = _counts(subject, background, camera)
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
    counts = _counts(subject, background, camera)
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
    counts = _counts(subject, background, camera)
    taken = read_suite(suite, height=height, width=width, counts=counts)
    figures.make_contact_sheet(taken, setting, samples / setting.name, out)


@tiny.command("dataset")
def tiny_dataset(
    out: Path,
    clips: Annotated[int, typer.Option(min=1)],
    stream: Annotated[str, typer.Option(help="base or lora: which random clips.")] = "lora",
    workers: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Render captioned clips in the released dataset's layout."""
    from pusa.tiny import dataset

    dataset.write_dataset(out, stream=stream, clips=clips, workers=workers)


@tiny.command("suite")
def tiny_suite(
    out: Path,
    subject: Annotated[int, typer.Option(min=1)],
    background: Annotated[int, typer.Option(min=1)],
    camera: Annotated[int, typer.Option(min=1)],
) -> None:
    """Render an image-to-video prompt suite in VBench-I2V's layout."""
    from pusa.tiny import dataset

    dataset.write_suite(out, subject=subject, background=background, camera=camera)


@tiny.command("text")
def tiny_text(model: Path, seed: Annotated[int, typer.Option()] = 0) -> None:
    """Write the tokenizer and the random text encoder."""
    from pusa.tiny import text

    text.write_text_encoder(model, seed=seed)


@tiny.command("vae")
def tiny_vae(
    data: Path,
    out: Path,
    clips: Annotated[int, typer.Option(help="How many clips of the dataset to use.")],
    steps: Annotated[int, typer.Option(min=1)],
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train the video autoencoder."""
    import numpy as np

    from pusa.dataset import read_metadata
    from pusa.tiny import vae
    from pusa.video import read_video

    videos = np.stack([read_video(clip.path) for clip in read_metadata(data)[:clips]])
    vae.train_vae(videos, out, steps=steps, seed=seed)


@tiny.command("base")
def tiny_base(
    cache: Path,
    model: Path,
    steps: Annotated[int, typer.Option(min=1)],
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train the text-to-video transformer and write the rest of the model folder."""
    from pusa.tiny import base

    base.train_base(cache, model, steps=steps, seed=seed)


@tiny.command("psnr")
def tiny_psnr(
    model: Path,
    clips: Annotated[int, typer.Option(min=1)] = 32,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Print the PSNR of unseen clips through MODEL's autoencoder and back."""
    from pusa.tiny import check

    mean, worst = check.reconstruction_psnr(model, clips=clips, seed=seed)
    print(f"PSNR over {clips} unseen clips of 33 frames: mean {mean:.1f} dB, worst {worst:.1f} dB")
