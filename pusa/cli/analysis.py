"""Commands that look into models: attention between frames, and how far weights have moved."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pusa.cli.options import (
    Device,
    Frames,
    Height,
    Precision,
    Width,
    app,
    choose_device,
    torch_dtype,
)

FIGURE_STEPS = [0, 3, 6, 9]  # of 10, as in the paper
Label = Annotated[str | None, typer.Option(help="Name in figures; OUT's own if none is given.")]


@app.command()
def attention(
    model: Annotated[Path, typer.Argument(help="Text-to-video model folder, the base.")],
    out: Annotated[
        Path, typer.Argument(help="CSV; OUT.json and OUT-mass.csv are written beside it.")
    ],
    image: Annotated[Path, typer.Option(help="First frame of the video.")],
    prompt: Annotated[str, typer.Option()],
    frames: Frames,
    height: Height,
    width: Width,
    transformer: Annotated[
        Path | None, typer.Option(help="Transformer folder; the model's own if none is given.")
    ] = None,
    lora: Annotated[Path | None, typer.Option(help="LoRA file, which is not merged.")] = None,
    lora_scale: Annotated[float, typer.Option()] = 1.0,
    baseline: Annotated[
        Path | None, typer.Option(help="Image-to-video model folder, such as Wan-I2V's, instead.")
    ] = None,
    block: Annotated[int, typer.Option(help="Which block, from 0; the last by default.")] = -1,
    step: Annotated[list[int], typer.Option(help="Steps to look at, from 0.")] = FIGURE_STEPS,
    steps: Annotated[int, typer.Option(min=1, help="Of the whole sampling.")] = 10,
    shift: Annotated[
        float, typer.Option(help="Of the sigma grid; a baseline has its own scheduler.")
    ] = 5.0,
    guidance_scale: Annotated[float, typer.Option(min=1)] = 3.0,
    negative_prompt_file: Annotated[
        Path | None, typer.Option(help="Text file; the empty prompt if none is given.")
    ] = None,
    seed: Annotated[int, typer.Option()] = 0,
    label: Label = None,
    dtype: Annotated[Precision, typer.Option()] = "float32",
    device: Device = None,
) -> None:
    """Write how much latent frames attend to each other while a video is made (Figure 4).

    For the model as it is, with a LoRA or another transformer, or for an image-to-video baseline:
    the prompt and image, and the noise of the seed, are the same for all.
    """
    if outside := [s for s in step if not 0 <= s < steps]:
        raise ValueError(f"--step {outside[0]} is outside of the {steps} steps, which count from 0")
    if baseline and (lora or transformer):
        raise ValueError("--baseline is a model of its own, found it with --lora or --transformer")
    if frames < 5:
        raise ValueError(
            f"attention between frames needs two latent frames, expected at least 5 frames, found "
            f"{frames}"
        )
    device = choose_device(device)
    from functools import partial

    from pusa.clip import ClipSize
    from pusa.flow import sigma_grid
    from pusa.models.attention import first_frame_mass, maps_at_steps, write_attention
    from pusa.models.text import check_prompts, count_text_tokens, load_tokenizer
    from pusa.sample.conditioning import Placement, read_conditions

    size = ClipSize(frames=frames, height=height, width=width)
    placement = Placement(file=image, source=1, first=1, last=1, multipliers=(0.0,))
    conditions = read_conditions([placement], size)
    negative = negative_prompt_file.read_text().strip() if negative_prompt_file else ""
    settings = {"size": size, "steps": steps, "guidance_scale": guidance_scale}
    tokenizer = load_tokenizer(model)
    length = count_text_tokens(tokenizer)
    check_prompts(tokenizer, [prompt], length, negative_prompt=negative)
    if baseline:
        from pusa.models.load import latent_shape
        from pusa.models.text import encode_prompts, load_text_encoder
        from pusa.sample.baseline import continue_image, load_baseline
        from pusa.sampler import noise_for

        pipeline = load_baseline(baseline, torch_dtype(dtype), device)
        _, encoder = load_text_encoder(model, torch_dtype(dtype))
        embeds = encode_prompts(tokenizer, encoder.to(device), [prompt, negative], length)
        del encoder
        sample = partial(
            continue_image,
            pipeline,
            conditions[0].pixels[0],
            noise_for(seed, prompt, 0, latent_shape(pipeline.vae, size)),
            prompt_embeds=embeds[0],
            negative_embeds=embeds[1],
            **settings,
        )
    else:
        from pusa.sample.pipeline import load_pipeline

        pipeline = load_pipeline(
            model,
            transformer=transformer,
            loras=[(lora, lora_scale)] if lora else [],
            dtype=torch_dtype(dtype),
            device=device,
        )
        sample = partial(
            pipeline,
            prompt,
            conditions=conditions,
            negative_prompt=negative,
            shift=shift,
            seed=seed,
            **settings,
        )
    maps = maps_at_steps(
        sample, pipeline.transformer, step, guidance=guidance_scale > 1, block=block
    )
    sigmas = pipeline.scheduler.sigmas if baseline else sigma_grid(steps, shift)
    mass = first_frame_mass(maps, sigmas)
    record = {
        "label": label or out.stem,
        "prompt": prompt,
        "steps_total": steps,
        "seed": seed,
        "given": [[1, 1, 0.0]],
        "block": block % len(pipeline.transformer.blocks),
        "guidance_scale": guidance_scale,
        **asdict(size),
    }
    write_attention(out, maps, mass, record)
    typer.echo(mass.to_string(index=False))


@app.command()
def drift(
    base: Annotated[Path, typer.Argument(help="Transformer folder of the base.")],
    out: Annotated[Path, typer.Argument(help="CSV; a JSON with the label is written beside it.")],
    other: Annotated[
        Path | None, typer.Option(help="Transformer folder, merged or fully trained.")
    ] = None,
    lora: Annotated[Path | None, typer.Option(help="LoRA file of any format.")] = None,
    scale: Annotated[
        float | None, typer.Option(help="lora_scale of --lora; 1 if none is given.")
    ] = None,
    label: Label = None,
) -> None:
    """Write each parameter's relative change against BASE, ``||W' - W|| / ||W||`` (Figure 5)."""
    if (other is None) == (lora is None):
        raise ValueError(
            f"expected either --other or --lora, found {'both' if other else 'neither'}"
        )
    if other and scale is not None:
        raise ValueError("--scale is for --lora, found it with --other")
    from pusa.models.drift import lora_drift, mean_by_block, mean_by_module, transformer_drift

    if other:
        changes = transformer_drift(base, other)
    else:
        changes = lora_drift(base, lora, lora_scale=1.0 if scale is None else scale)
    out.parent.mkdir(parents=True, exist_ok=True)
    changes.to_csv(out, index=False)
    out.with_suffix(".json").write_text(json.dumps({"label": label or out.stem}, indent=1))
    largest = changes.nlargest(20, "relative_change").set_index("parameter")["relative_change"]
    for heading, means in (
        ("Mean relative change by kind of module", mean_by_module(changes)),
        ("Mean relative change by block", mean_by_block(changes)),
        ("The 20 parameters that changed most", largest),
    ):
        typer.echo(heading)
        typer.echo("\n".join(f"  {change:.3e}  {name}" for name, change in means.items()))
