"""The command that makes videos from prompts and any given frames."""

from pathlib import Path
from typing import Annotated

import typer

from pusa.cli.options import Device, app, choose_device, takes_settings, tell_warnings_once
from pusa.config import GenerateSettings, GenerateWeights, Outputs, Switches


@app.command()
@takes_settings
def generate(
    settings: GenerateSettings,
    weights: GenerateWeights,
    outputs: Outputs,
    switches: Switches,
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
    device: Device = None,
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
    from pusa.sample import generate as videos
    from pusa.sample.conditioning import parse_placement

    tell_warnings_once()
    requests = videos.request_videos(
        videos.read_prompts(prompt, prompts),
        tuple(parse_placement(text) for text in condition or []),
        outputs.samples,
    )
    made = videos.generate(
        requests,
        settings,
        model=model,
        weights=weights,
        out=out,
        outputs=outputs,
        switches=switches,
        device=device,
    )
    for file in made:
        typer.echo(file)
