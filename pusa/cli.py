"""The command line: thin commands over the library, used by the workflow's rules and by people.

A command imports what it needs when it runs, so that ``pusa --help`` and the commands without
a model answer at once.
"""

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


Precision = Literal["float32", "bfloat16"]


def main() -> None:
    """Run a command; an error that the user can mend is one line, without a traceback."""
    try:
        app()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _torch_dtype(precision: str):
    import torch

    return getattr(torch, precision)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


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
) -> None:
    """Download a model or dataset from the hub into FOLDER."""
    from pusa.download import download_repository

    download_repository(repo, folder, kind=kind, revision=revision)


@app.command()
def download_suite(folder: Path) -> None:
    """Download VBench-I2V's prompts and images; FOLDER/crop.zip is used if it is there."""
    from pusa import download as downloads

    downloads.download_suite(folder)


@app.command()
def cache_latents(
    dataset: Path,
    model: Path,
    out: Path,
    frames: Frames,
    height: Height,
    width: Width,
    text_tokens: TextTokens,
    skip_unusable: Annotated[bool, typer.Option(help="Go on without unusable clips.")] = False,
) -> None:
    """Encode the clips and captions of DATASET with MODEL's VAE and text encoder."""
    from pusa import cache
    from pusa.clip import ClipSize

    cache.cache_latents(
        dataset,
        model,
        out,
        size=ClipSize(frames=frames, height=height, width=width),
        text_tokens=text_tokens,
        skip_unusable=skip_unusable,
        device=_device(),
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
) -> None:
    """Embed the prompts of SUITE with MODEL's text encoder."""
    from pusa import cache
    from pusa.suite import read_suite

    negative = negative_prompt_file.read_text().strip() if negative_prompt_file else ""
    prompts = {p.prompt for p in read_suite(suite, height=height, width=width)}
    cache.cache_prompts(
        prompts, model, out, text_tokens=text_tokens, negative_prompt=negative, device=_device()
    )


@app.command()
def train_lora(
    cache: Path,
    transformer: Path,
    out: Path,
    rank: Annotated[int, typer.Option(min=1)],
    iteration: Annotated[list[int], typer.Option(help="Iteration to save; several may be given.")],
    learning_rate: Annotated[float, typer.Option()],
    p_async: Annotated[float, typer.Option(help="PTSS: probability of a timestep per frame.")] = 1,
    warmup: Annotated[int, typer.Option(help="Iterations of rising learning rate.")] = 0,
    total_batch: Annotated[int, typer.Option(help="Clips per iteration, all processes.")] = 8,
    micro_batch: Annotated[int, typer.Option(help="Clips per process and forward pass.")] = 1,
    timesteps: Annotated[Literal["uniform", "shifted"], typer.Option()] = "uniform",
    weighting: Annotated[Literal["none", "gaussian"], typer.Option()] = "none",
    shift: Annotated[float, typer.Option(help="Of shifted timesteps.")] = 5.0,
    validation_clips: Annotated[int, typer.Option(help="Last clips, held out.")] = 32,
    gradient_checkpointing: Annotated[bool, typer.Option()] = False,
    dtype: Annotated[Precision, typer.Option(help="Of the frozen base.")] = "float32",
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train a LoRA on a latent CACHE; start with torchrun, one process per device."""
    from pusa import train

    settings = train.TrainSettings(
        rank=rank,
        iterations=tuple(sorted(iteration)),
        p_async=p_async,
        learning_rate=learning_rate,
        warmup=warmup,
        total_batch=total_batch,
        micro_batch=micro_batch,
        timesteps=timesteps,
        weighting=weighting,
        shift=shift,
        validation_clips=validation_clips,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
    )
    train.train_lora(cache, transformer, out, settings, dtype=_torch_dtype(dtype))


@app.command()
def merge_lora(
    base: Path,
    lora: Path,
    out: Path,
    scale: Annotated[float, typer.Option(help="lora_scale, the paper's alpha.")],
) -> None:
    """Merge a LORA file into the transformer folder BASE."""
    from pusa import lora as lora_files

    lora_files.merge_lora(base, lora, out, lora_scale=scale)


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
) -> None:
    """Make the videos of SUITE beside the file MANIFEST, which lists them."""
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
        device=_device(),
    )
    table.to_csv(manifest, index=False)


@app.command()
def score(
    suite: Path,
    out: Path,
    manifests: Annotated[list[Path], typer.Argument(help="Manifests of one setting.")],
    height: Height,
    width: Width,
) -> None:
    """Score videos on nine weight-free dimensions (not VBench), one row per video and measure."""
    import pandas as pd

    from pusa import scores
    from pusa.suite import read_suite

    references = suite / "reference"
    videos = pd.concat([pd.read_csv(manifest) for manifest in manifests])
    table = scores.score_videos(
        read_suite(suite, height=height, width=width),
        videos,
        manifests[0].parent,
        height=height,
        width=width,
        references=references if references.is_dir() else None,
    )
    table.to_csv(out, index=False)


def _study(experiments: Path, seed: int, folder: Path, effect_seeds: list[int] | None = None):
    """The sheet, the settings by name, and the scores by setting name."""
    from pusa import effects
    from pusa import experiments as sheets

    table = sheets.read_experiments(experiments, seed=seed)
    if effect_seeds is None:
        settings = sheets.unique_settings(table)
    else:
        settings = sheets.settings_over_seeds(table, effect_seeds)
    return table, settings, effects.read_scores({n: folder / f"{n}.csv" for n in settings})


@app.command()
def tables(
    out: Path,
    experiments: Sheet,
    scores: Scores,
    seed: Annotated[int, typer.Option(help="Training seed.")],
    table1: Annotated[Path, typer.Option(help="Published Table 1, CSV.")],
    table2: Annotated[Path, typer.Option(help="Published Table 2, CSV.")],
    scale: Annotated[str, typer.Option(help="A sentence on this run's scale.")] = "",
) -> None:
    """Write Tables 1 and 2, published and ours, as CSV, Markdown and HTML."""
    import pandas as pd

    from pusa import tables as make

    sheet, _, values = _study(experiments, seed, scores)
    out.mkdir(parents=True, exist_ok=True)
    one = make.make_table1(sheet, values, pd.read_csv(table1))
    two = make.make_table2(sheet, values, pd.read_csv(table2, dtype={"alpha": str}))
    make.write_table(one, out / "table1", "Table 1: VBench-I2V models, and this run", scale)
    make.write_table(two, out / "table2", "Table 2: rank, steps, iterations and alpha", scale)


@app.command()
def effects(
    out: Path,
    experiments: Sheet,
    scores: Scores,
    runs: Annotated[Path, typer.Option(help="Folder of the training runs.")],
    seed: Annotated[int, typer.Option(help="Training seed of the tables.")],
    effect_seed: Annotated[list[int] | None, typer.Option(help="Seeds, if several.")] = None,
    scale: Annotated[str, typer.Option(help="A sentence on this run's scale.")] = "",
) -> None:
    """Measure the paper's effects; write OUT with the suffixes .csv, .md and .html."""
    from pusa import effects as measure
    from pusa.experiments import BASE, main_setting

    sheet, settings, values = _study(experiments, seed, scores, effect_seed)
    result = measure.measure_effects(values, settings, main_setting(sheet))
    names = sorted({s.run for s in settings.values() if s.model != BASE})
    losses = measure.validation_losses([runs / name / "validation.csv" for name in names])
    measure.write_effects(result, losses, out, scale)


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
    seed: Annotated[int, typer.Option(help="Training seed.")],
    table2: Annotated[Path, typer.Option(help="Published Table 2, CSV.")],
) -> None:
    """Plot total score against alpha, rank, iterations and steps, beside the paper's."""
    import pandas as pd

    from pusa import figures
    from pusa.experiments import main_setting

    sheet, _, values = _study(experiments, seed, scores)
    published = pd.read_csv(table2, dtype={"alpha": str})
    figures.plot_scores(sheet, values, published, main_setting(sheet), out)


@app.command()
def plot_figure3(
    out: Path,
    suite: Path,
    experiments: Sheet,
    samples: Annotated[Path, typer.Option(help="Folder with a folder of videos per setting.")],
    seed: Annotated[int, typer.Option(help="Training seed.")],
    height: Height,
    width: Width,
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
    seed: Annotated[int, typer.Option(help="Training seed.")],
    height: Height,
    width: Width,
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
