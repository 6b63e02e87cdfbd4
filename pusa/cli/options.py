"""The command line's app, and the options and helpers that several commands share."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    help="Pusa V1.0: image-to-video by vectorized timestep adaptation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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


def torch_dtype(precision: str):
    """`torch.float32` or `torch.bfloat16`, by name."""
    import torch

    return getattr(torch, precision)


def choose_device(wanted: str | None) -> str:
    """`cuda` or `cpu`; called before anything else imports torch.

    Raises:
        ValueError: if a GPU is wanted and there is none.
    """
    if wanted == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before PyTorch looks for them
    import torch

    found = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and found == "cpu":
        raise ValueError(f"--device cuda: PyTorch {torch.__version__} finds no GPU here")
    return found


def prompt_counts(subject: int | None, background: int | None, camera: int | None):
    """Prompts of each kind to take; None, for all, if no number is given."""
    counts = {"subject": subject, "background": background, "camera": camera}
    if all(n is None for n in counts.values()):
        return None
    return {kind: n or 0 for kind, n in counts.items()}
