"""Commands that make the embedded tiny model and its world."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pusa.cli.options import Device, app, choose_device, takes_settings
from pusa.config import PromptCounts, Size

tiny = typer.Typer(help="Make the embedded tiny model and its world.", no_args_is_help=True)
app.add_typer(tiny, name="tiny")

Steps = Annotated[int, typer.Option(min=1, help="Of the training.")]
Checkpoint = Annotated[
    Path, typer.Option(help="File from which an interrupted training goes on; gone at the end.")
]


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
    checkpoint: Checkpoint,
    device: Device = None,
) -> None:
    """Train the video autoencoder."""
    device = choose_device(device)
    import numpy as np

    from pusa.data.dataset import read_metadata
    from pusa.data.video import read_video
    from pusa.tiny import vae

    videos = np.stack([read_video(clip.path) for clip in read_metadata(data)[:clips]])
    vae.train_vae(videos, out, steps=steps, checkpoint=checkpoint, device=device)


@tiny.command("base")
def tiny_base(
    cache: Path,
    model: Path,
    steps: Steps,
    checkpoint: Checkpoint,
    device: Device = None,
) -> None:
    """Train the text-to-video transformer and write the rest of the model folder."""
    device = choose_device(device)
    from pusa.tiny import base

    base.train_base(cache, model, steps=steps, checkpoint=checkpoint, device=device)


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
    checkpoint: Checkpoint,
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
        checkpoint=checkpoint,
    )


@tiny.command("check")
def tiny_check(
    model: Path,
    clips: Annotated[int, typer.Option(min=1)] = 200,
    steps: Annotated[int, typer.Option(min=1, help="Of sampling.")] = 20,
    guidance_scale: Annotated[float, typer.Option(min=1)] = 3.0,
    device: Device = None,
) -> None:
    """Print how often MODEL's clips show what their captions say, and how sharp they are.

    The captions are such as its training left out; what a clip shows is found by rendering.
    """
    device = choose_device(device)
    from pusa.tiny import check

    table = check.check_model(
        model, clips=clips, steps=steps, guidance_scale=guidance_scale, device=device
    )
    print(f"{clips} clips, {steps} steps, guidance scale {guidance_scale:g}, in per cent")
    print(table.to_markdown(index=False, floatfmt=".1f"))
    mean, worst = check.reconstruction_psnr(model, clips=32)
    print(f"PSNR of the autoencoder on 32 unseen clips: mean {mean:.1f} dB, worst {worst:.1f} dB")


@tiny.command("psnr")
def tiny_psnr(model: Path, clips: Annotated[int, typer.Option(min=1)] = 32) -> None:
    """Print the PSNR of unseen clips through MODEL's autoencoder and back."""
    from pusa.tiny import check

    mean, worst = check.reconstruction_psnr(model, clips=clips)
    print(f"PSNR over {clips} unseen clips of 33 frames: mean {mean:.1f} dB, worst {worst:.1f} dB")
