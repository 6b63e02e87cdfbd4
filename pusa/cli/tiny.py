"""Commands that make the embedded tiny model and its world."""

from pathlib import Path
from typing import Annotated

import typer

from pusa.cli.options import Frames, Height, Width, app

tiny = typer.Typer(help="Make the embedded tiny model and its world.", no_args_is_help=True)
app.add_typer(tiny, name="tiny")


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

    from pusa.data.dataset import read_metadata
    from pusa.data.video import read_video
    from pusa.tiny import vae

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


@tiny.command("baseline")
def tiny_baseline(
    dataset: Path,
    cache: Path,
    model: Path,
    out: Path,
    steps: Annotated[int, typer.Option(min=1)],
    frames: Frames,
    height: Height,
    width: Width,
    validation_clips: Annotated[int, typer.Option(min=0, help="Last clips, held out.")] = 32,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train an image-to-video baseline in Wan-I2V's manner from MODEL, and write it to OUT."""
    from pusa.clip import ClipSize
    from pusa.tiny import baseline

    baseline.train_baseline(
        dataset,
        cache,
        model,
        out,
        size=ClipSize(frames=frames, height=height, width=width),
        steps=steps,
        validation_clips=validation_clips,
        seed=seed,
    )


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
