"""Commands that look into models: attention between frames, and how far weights have moved."""

from pathlib import Path
from typing import Annotated

import typer

from pusa.cli.options import (
    Device,
    app,
    choose_device,
    takes_settings,
)
from pusa.config import AttentionSettings, PromptCounts, Weights
from pusa.records import record_beside

Label = Annotated[str | None, typer.Option(help="Name in figures; OUT's own if none is given.")]


@app.command()
@takes_settings
def attention(
    model: Annotated[Path, typer.Argument(help="Text-to-video model folder, the base.")],
    out: Annotated[
        Path, typer.Argument(help="CSV; OUT.json and OUT-mass.csv are written beside it.")
    ],
    settings: AttentionSettings,
    weights: Weights,
    image: Annotated[Path | None, typer.Option(help="First frame of the video.")] = None,
    prompt: Annotated[str | None, typer.Option()] = None,
    suite: Annotated[
        Path | None, typer.Option(help="Take image and prompt that Figure 3 shows first, instead.")
    ] = None,
    counts: PromptCounts | None = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Image-to-video model folder, such as Wan-I2V's, instead.")
    ] = None,
    label: Label = None,
    device: Device = None,
) -> None:
    """Write how much latent frames attend to each other while a video is made (Figure 4).

    For the model as it is, with a LoRA or another transformer, or for an image-to-video baseline:
    the prompt and image, and the noise of the seed, are the same for all.
    """
    given = {"--image": image, "--prompt": prompt, "--suite": suite, "--counts": counts}
    found = [option for option, value in given.items() if value is not None]
    if found not in (["--image", "--prompt"], ["--suite"], ["--suite", "--counts"]):
        told = ", ".join(found) or "none of them"
        raise ValueError(f"expected either --image and --prompt, or --suite, found {told}")
    record_beside(out)  # before the long work
    device = choose_device(device)
    from pusa.data.suite import first_subjects, read_suite
    from pusa.models.attention import write_attention
    from pusa.sample.attention import measure_attention

    if suite is not None:
        size = {"height": settings.height, "width": settings.width}
        taken = read_suite(suite, **size, counts=counts.model_dump() if counts else None)
        first = first_subjects(taken)[0]
        image, prompt = first.image, first.prompt
    maps, mass, record = measure_attention(
        prompt,
        image,
        settings,
        model=model,
        weights=weights,
        baseline=baseline,
        device=device,
    )
    write_attention(out, maps, mass, {"label": label or out.stem, **record})
    typer.echo(mass.to_string(index=False))


@app.command()
def drift(
    base: Annotated[Path, typer.Argument(help="Transformer folder of the base.")],
    out: Annotated[Path, typer.Argument(help="CSV; OUT.json is written beside it.")],
    other: Annotated[
        Path | None, typer.Option(help="Transformer folder, merged or fully trained.")
    ] = None,
    lora: Annotated[Path | None, typer.Option(help="LoRA file of any format.")] = None,
    lora_scale: Annotated[
        float | None, typer.Option(help="Of the LoRA, the paper's alpha; 1 if none is given.")
    ] = None,
    label: Label = None,
) -> None:
    """Write each parameter's relative change against BASE, ``||W' - W|| / ||W||`` (Figure 5)."""
    if (other is None) == (lora is None):
        raise ValueError(
            f"expected either --other or --lora, found {'both' if other else 'neither'}"
        )
    if other and lora_scale is not None:
        raise ValueError("--lora-scale is for --lora, found it with --other")
    record_beside(out)  # before the long work
    from pusa.digests import write_record
    from pusa.models.drift import lora_drift, mean_by_block, mean_by_module, transformer_drift
    from pusa.models.folder import digest_weights
    from pusa.models.lora import digest_lora
    from pusa.models.lora_formats import open_lora

    if other:
        changes = transformer_drift(base, other)
        moved = {"other": digest_weights(other)}
    else:
        lora_scale = 1.0 if lora_scale is None else lora_scale
        changes = lora_drift(base, lora, lora_scale=lora_scale)
        moved = {"lora": digest_lora(open_lora(lora)), "lora_scale": lora_scale}
    out.parent.mkdir(parents=True, exist_ok=True)
    changes.to_csv(out, index=False)
    write_record([out], {"label": label or out.stem, "base": digest_weights(base), **moved})
    largest = changes.nlargest(20, "relative_change").set_index("parameter")["relative_change"]
    for heading, means in (
        ("Mean relative change by kind of module", mean_by_module(changes)),
        ("Mean relative change by block", mean_by_block(changes)),
        ("The 20 parameters that changed most", largest),
    ):
        typer.echo(heading)
        typer.echo("\n".join(f"  {change:.3e}  {name}" for name, change in means.items()))
