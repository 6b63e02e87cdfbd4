"""The command that makes videos from prompts and any given frames."""

import os
import warnings
from pathlib import Path
from typing import Annotated, Literal

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

#: Files that are not what is written; a mistake, if one of them is to be a folder's name.
OTHER_FORMATS = (".avi", ".gif", ".mkv", ".mov", ".webm")


@app.command()
def generate(
    prompt: Annotated[list[str] | None, typer.Argument(help="Several make several videos.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file, one prompt per line.")] = None,
    model: Annotated[
        Path, typer.Option(help="Text-to-video folder in diffusers' format.", show_default=False)
    ] = ...,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A folder, or FILE.mp4 for one video.")
    ] = Path("videos"),
    condition: Annotated[
        list[str] | None, typer.Option("--condition", "-c", help="Given frames, see above.")
    ] = None,
    transformer: Annotated[
        Path | None,
        typer.Option(help="Folder instead of the model's own, say a merged one."),
    ] = None,
    transformer_2: Annotated[
        Path | None, typer.Option(help="The same for the low-noise expert of Wan2.2.")
    ] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="FILE[:SCALE], of any format; several add up.")
    ] = None,
    lora_2: Annotated[
        list[str] | None, typer.Option(help="The same for the low-noise expert.")
    ] = None,
    frames: Frames = 81,
    height: Height = 480,
    width: Width = 832,
    steps: Annotated[int, typer.Option(min=1)] = 10,
    shift: Annotated[float, typer.Option(help="Of the sigma grid.")] = 5.0,
    guidance_scale: Annotated[float, typer.Option(help="1 skips the unconditional pass.")] = 3.0,
    guidance_scale_2: Annotated[
        float | None, typer.Option(help="Of the low-noise expert; the same if none is given.")
    ] = None,
    negative_prompt: Annotated[str, typer.Option()] = "",
    seed: Annotated[int, typer.Option()] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Videos per prompt.")] = 1,
    length: Annotated[
        int | None,
        typer.Option(help="Frames of a longer video, extended from its own end in windows."),
    ] = None,
    overlap: Annotated[
        int, typer.Option(help="Frames that a further window is given, of the form 4k+1.")
    ] = 13,
    gif: Annotated[bool, typer.Option("--gif", help="Write a GIF beside each video.")] = False,
    png: Annotated[bool, typer.Option("--png", help="Write each video's frames too.")] = False,
    contact_sheet: Annotated[
        bool, typer.Option("--contact-sheet", help="Draw strips of the videos' frames.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that were made otherwise.")
    ] = False,
    dtype: Annotated[Precision, typer.Option()] = "bfloat16",
    device: Device = None,
    vae_tiling: Annotated[
        bool, typer.Option("--vae-tiling", help="Encode and decode in tiles, to save memory.")
    ] = False,
    offload: Annotated[
        Literal["none", "model", "sequential", "group"],
        typer.Option(
            help="What waits off the GPU: nothing, models, layers, or layers but the next."
        ),
    ] = "none",
    attention_backend: Annotated[
        str | None, typer.Option(help="Of diffusers, such as native, flash or sage.")
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="torch.compile the repeated block.")
    ] = False,
    context_parallel: Annotated[
        bool,
        typer.Option("--context-parallel", help="Share a video among torchrun's processes."),
    ] = False,
) -> None:
    """Make videos from PROMPTs, and from images and clips at any place of them.

    A condition, FILE#FROM@FIRST-LAST:MULTIPLIER, gives frames, counted from 1.
    #FROM, -LAST and :MULTIPLIER may be left out:

    - cat.png@1 -- an image, as the first frame

    - cat.png@81:0.3 -- as the last of 81; 30 % of the noise lets it change

    - clip.mp4@1-13 -- a clip's first 13 frames, to be continued

    - clip.mp4#-13@1-13 -- a clip's last 13 frames, to be continued

    - clip.mp4#30@70-81 -- a clip's frames 30 to 41, as the last 12 of 81

    The model works on latent frames. Frame 1 is one, and then every four: 2-5,
    6-9, 10-13 and so on to 78-81. A clip fills whole ones. A multiplier serves
    all frames of a condition, or a list such as 0,0.3 has one for each latent
    frame. An image that is not at frame 1 is encoded alone; clips are encoded
    together with what is at frame 1. One image at both ends closes a loop.

    Images and clips may have any size: they are scaled until they cover the
    video, and cropped centrally.
    """
    device = choose_device(device)
    if offload != "none" and device == "cpu":
        raise ValueError(f"--offload {offload} moves weights to a GPU, but there is none here")
    if context_parallel and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "--context-parallel needs several processes, expected a start by "
            "`torchrun --nproc-per-node N -m pusa generate`"
        )
    from pusa.clip import ClipSize
    from pusa.models.text import check_prompts, count_text_tokens, load_tokenizer
    from pusa.sample.conditioning import parse_placement
    from pusa.sample.generate import (
        GenerateSettings,
        Request,
        generate_videos,
        name_prompts,
        plan_videos,
    )
    from pusa.sample.pipeline import check_size, describe_model, load_pipeline, read_config

    tell_warnings_once()
    wanted = read_prompts(prompt, prompts)
    placements = tuple(parse_placement(text) for text in condition or [])
    names = name_prompts(wanted)
    folder = out
    if out.suffix.lower() in OTHER_FORMATS:
        raise ValueError(f"--out {out}: videos are written as MP4, expected a folder or FILE.mp4")
    if out.suffix.lower() == ".mp4":
        if len(names) * samples > 1:
            raise ValueError(f"--out {out} is one file, expected a folder for several videos")
        folder, names = out.parent, {wanted[0]: out.stem}
    requests = [Request(name=n, prompt=p, placements=placements) for p, n in names.items()]
    settings = GenerateSettings(
        size=ClipSize(frames=frames, height=height, width=width),
        steps=steps,
        shift=shift,
        guidance_scale=guidance_scale,
        guidance_scale_2=guidance_scale_2,
        negative_prompt=negative_prompt,
        seed=seed,
        length=length,
        overlap=overlap,
    )
    weights = {
        "transformer": transformer,
        "transformer_2": transformer_2,
        "loras": [parse_lora("--lora", text) for text in lora or []],
        "loras_2": [parse_lora("--lora-2", text) for text in lora_2 or []],
        "dtype": torch_dtype(dtype),
    }
    outputs = {"samples": samples, "overwrite": overwrite, "gif": gif, "png": png}

    if attention_backend:
        check_attention_backend(attention_backend)
    # All that can be wrong is found before the weights are loaded, which takes minutes.
    origin = describe_model(model, **weights)
    check_size(
        settings.size,
        vae=read_config(model / "vae"),
        transformer=read_config(transformer or model / "transformer"),
    )
    tokenizer = load_tokenizer(model)
    check_prompts(tokenizer, wanted, count_text_tokens(tokenizer), negative_prompt=negative_prompt)
    planned = plan_videos(requests, settings, folder, origin=origin, **outputs)
    finished = all(video.complete for video in planned)
    sheet = folder / ("contact_sheet.png" if out == folder else f"{out.stem}_contact_sheet.png")
    if contact_sheet and sheet.exists() and not (finished or overwrite):
        raise FileExistsError(f"{sheet} exists already, expected --overwrite")

    if not finished:
        if context_parallel:
            device = join_processes(device)
        pipeline = load_pipeline(model, **weights, device=device if offload == "none" else "cpu")
        use_switches(
            pipeline,
            device,
            vae_tiling=vae_tiling,
            offload=offload,
            attention_backend=attention_backend,
            compile_blocks=compile,
            context_parallel=context_parallel,
        )
        generate_videos(pipeline, requests, settings, folder, **outputs)
        if context_parallel:
            leave_processes()
    if int(os.environ.get("RANK", 0)):
        return
    made = [video.path for video in planned]
    if contact_sheet:
        from pusa.figures.strips import plot_strips

        note = f"{origin['model']}, {steps} steps, seed {seed}"
        plot_strips(made, sheet, title="Contact sheet", note=note)
        made.append(sheet)
    for file in made:
        typer.echo(file)


def read_prompts(given: list[str] | None, file: Path | None) -> list[str]:
    """The prompts of the command line, or of a file's lines that are not empty.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there are prompts of both kinds or of none, or the file is not UTF-8.
    """
    if bool(given) == (file is not None):
        raise ValueError(
            "expected prompts either on the command line or by --prompts, found "
            + ("both" if given else "neither")
        )
    if file is None:
        return given
    if file.is_dir():
        raise ValueError(f"--prompts {file} is a folder, expected a text file")
    if not file.exists():
        raise FileNotFoundError(f"--prompts {file} does not exist")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(
            f"--prompts {file} is not UTF-8 text, expected one prompt per line"
        ) from None
    # str.splitlines would also part a prompt at rarer characters.
    lines = [line.strip() for line in text.split("\n")]
    if not any(lines):
        raise ValueError(f"--prompts {file} is empty, expected one prompt per line")
    return [line for line in lines if line]


def parse_lora(option: str, text: str) -> tuple[Path, float]:
    """Read ``FILE[:SCALE]``; the scale is 1 if none is given.

    Raises:
        ValueError: if what follows the colon is no number.
    """
    file, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        return Path(file), float(scale)
    except ValueError:
        raise ValueError(f"{option} {text}: expected FILE or FILE:SCALE") from None


def tell_warnings_once() -> None:
    """Print warnings as one line; Python's own "once" is forgotten when a library sets filters."""
    told = set()

    def tell(message, *_) -> None:
        if str(message) not in told:
            typer.echo(f"warning: {message}", err=True)
        told.add(str(message))

    warnings.filterwarnings("always", category=UserWarning)
    warnings.showwarning = tell


def check_attention_backend(name: str) -> None:
    """Check that diffusers knows an attention backend, and that its package is installed.

    Raises:
        ValueError: that names the backend.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    backends = sorted(backend.value for backend in AttentionBackendName)
    if name not in backends:
        raise ValueError(f"--attention-backend {name}: expected one of {', '.join(backends)}")
    try:
        with attention_backend(name):
            pass
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"--attention-backend {name} cannot be used: {error}") from None


def join_processes(device: str) -> str:
    """Join the processes that torchrun started; returns this one's device."""
    import torch

    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    if device == "cpu":
        return device
    device = f"cuda:{os.environ['LOCAL_RANK']}"
    torch.cuda.set_device(device)
    return device


def leave_processes() -> None:
    """End what `join_processes` began, which PyTorch wants to be told."""
    import torch

    torch.distributed.destroy_process_group()


def use_switches(
    pipeline,
    device: str,
    *,
    vae_tiling: bool,
    offload: str,
    attention_backend: str | None,
    compile_blocks: bool,
    context_parallel: bool,
) -> None:
    """Turn on what diffusers has to save memory or time."""
    import torch
    from diffusers import ContextParallelConfig

    transformers = [t for t in (pipeline.transformer, pipeline.transformer_2) if t is not None]
    if vae_tiling:
        pipeline.vae.enable_tiling()
    for transformer in transformers:
        if attention_backend:
            transformer.set_attention_backend(attention_backend)
        if context_parallel:
            processes = torch.distributed.get_world_size()
            transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=processes))
        if compile_blocks:
            transformer.compile_repeated_blocks()
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    elif offload == "group":
        pipeline.enable_group_offload(
            torch.device(device), offload_type="leaf_level", use_stream=True
        )
