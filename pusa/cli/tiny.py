"""Commands that make the embedded tiny model and its world."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pusa.cli.options import app, takes_settings
from pusa.config import PromptCounts, Size

tiny = typer.Typer(help="Make the embedded tiny model and its world.", no_args_is_help=True)
app.add_typer(tiny, name="tiny")

Steps = Annotated[int, typer.Option(min=1, help="Of the training.")]


@tiny.command("dataset")
def tiny_dataset(
    out: Path,
    clips: Annotated[int, typer.Option(min=1)],
    stream: Annotated[Literal["base", "lora"], typer.Option(help="Which random clips.")] = "lora",
    workers: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Render captioned clips in the released dataset's layout."""
    from pusa.tiny import dataset

    dataset.write_dataset(out, stream=stream, clips=clips, workers=workers)


@tiny.command("suite")
@takes_settings
def tiny_suite(out: Path, counts: PromptCounts) -> None:
    """Render an image-to-video prompt suite in VBench-I2V's layout."""
    from pusa.tiny import dataset

    dataset.write_suite(out, **counts.model_dump())


@tiny.command("text")
def tiny_text(model: Path) -> None:
    """Write the tokenizer and the random text encoder."""
    from pusa.tiny import text

    text.write_text_encoder(model)


@tiny.command("vae")
def tiny_vae(
    data: Path,
    out: Path,
    clips: Annotated[int, typer.Option(help="How many clips of the dataset to use.")],
    steps: Steps,
) -> None:
    """Train the video autoencoder."""
    import numpy as np

    from pusa.data.dataset import read_metadata
    from pusa.data.video import read_video
    from pusa.tiny import vae

    videos = np.stack([read_video(clip.path) for clip in read_metadata(data)[:clips]])
    vae.train_vae(videos, out, steps=steps)


@tiny.command("base")
def tiny_base(cache: Path, model: Path, steps: Steps) -> None:
    """Train the text-to-video transformer and write the rest of the model folder."""
    from pusa.tiny import base

    base.train_base(cache, model, steps=steps)


@tiny.command("baseline")
@takes_settings
def tiny_baseline(
    dataset: Path,
    cache: Path,
    model: Path,
    out: Path,
    size: Size,
    steps: Steps,
    validation_clips: Annotated[int, typer.Option(min=0, help="Last clips, held out.")],
    seed: Annotated[int, typer.Option(help="Of the training.")] = 0,
) -> None:
    """Train an image-to-video baseline in Wan-I2V's manner from MODEL, and write it to OUT."""
    from pusa.tiny import baseline

    baseline.train_baseline(
        dataset,
        cache,
        model,
        out,
        size=size,
        steps=steps,
        validation_clips=validation_clips,
        seed=seed,
    )


@tiny.command("psnr")
def tiny_psnr(model: Path, clips: Annotated[int, typer.Option(min=1)] = 32) -> None:
    """Print the PSNR of unseen clips through MODEL's autoencoder and back."""
    from pusa.tiny import check

    mean, worst = check.reconstruction_psnr(model, clips=clips)
    print(f"PSNR over {clips} unseen clips of 33 frames: mean {mean:.1f} dB, worst {worst:.1f} dB")
