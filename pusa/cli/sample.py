"""Commands that make the videos of the prompt suite, and those of the paper's tasks."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pusa.cli.options import (
    Device,
    app,
    choose_device,
    takes_settings,
)
from pusa.config import (
    PromptCounts,
    SampleSwitches,
    Size,
    SuiteSettings,
    VideoSettings,
    Weights,
)
from pusa.data.manifest import write_manifest
from pusa.experiments import BOUNDS
from pusa.sample.tasks import TASKS

BoundName = StrEnum("BoundName", {name: name for name in BOUNDS})
TaskName = StrEnum("TaskName", {name: name for name, task in TASKS.items() if task.on_clips})


@app.command()
@takes_settings
def sample_suite(
    suite: Path,
    model: Path,
    manifest: Path,
    prompts: Annotated[Path, typer.Option(help="Prompt embeddings of cache-prompts.")],
    settings: SuiteSettings,
    switches: SampleSwitches,
    counts: PromptCounts | None = None,
    transformer: Annotated[
        Path | None,
        typer.Option(
            help="Transformer folder, the base's or another. Without it, MODEL is an "
            "image-to-video baseline, sampled by diffusers' own pipeline and scheduler."
        ),
    ] = None,
    lora: Annotated[
        str | None, typer.Option(help="FILE[:SCALE], merged into it as it is loaded.")
    ] = None,
    shard: Annotated[int, typer.Option(min=0, help="Which share of the prompts, from 0.")] = 0,
    shards: Annotated[int, typer.Option(min=1, help="Number of shares.")] = 1,
    device: Device = None,
) -> None:
    """Make the videos of SUITE beside the file MANIFEST, which lists them."""
    share = _read_share(suite, settings, counts, shard, shards)
    device = choose_device(device)
    from pusa.sample import suite as sampling

    table = sampling.sample_suite(
        share,
        settings,
        model=model,
        transformer=transformer,
        lora=Weights(lora=[lora]).loras[0] if lora else None,
        prompt_cache=prompts,
        out=manifest.parent,
        switches=switches,
        device=device,
    )
    write_manifest(table, manifest)


@app.command()
@takes_settings
def sample_bound(
    bound: BoundName,
    suite: Path,
    model: Path,
    manifest: Path,
    size: Size,
    counts: PromptCounts | None = None,
    samples: Annotated[int, typer.Option(min=1, help="Videos per prompt.")] = 1,
    shard: Annotated[int, typer.Option(min=0, help="Which share of the prompts, from 0.")] = 0,
    shards: Annotated[int, typer.Option(min=1, help="Number of shares.")] = 1,
    device: Device = None,
) -> None:
    """Make what no model makes, to tell what scores are worth, beside the file MANIFEST.

    The prompt's image standing still; the true continuation, where SUITE has it, bare or through
    MODEL's autoencoder; or that of another prompt.
    """
    prompts = _read_share(suite, size, counts, shard, shards)
    device = choose_device(device)
    from pusa.sample import bounds

    table = bounds.sample_bound(
        bound,
        suite,
        prompts,
        size,
        samples=samples,
        model=model,
        out=manifest.parent,
        device=device,
    )
    write_manifest(table, manifest)


def _read_share(
    suite: Path, size: Size, counts: PromptCounts | None, shard: int, shards: int
) -> list:
    """The prompts of one job, before anything slow is imported."""
    if shard >= shards:
        raise ValueError(f"--shard {shard}: expected less than --shards {shards}")
    from pusa.data.suite import read_suite

    taken = read_suite(
        suite,
        height=size.height,
        width=size.width,
        counts=counts.model_dump() if counts else None,
    )
    return taken[shard::shards]


@app.command()
@takes_settings
def sample_task(
    task: TaskName,
    dataset: Annotated[Path, typer.Argument(help="Folder with metadata.csv and clips.")],
    model: Path,
    manifest: Path,
    settings: VideoSettings,
    weights: Weights,
    switches: SampleSwitches,
    clips: Annotated[int, typer.Option(min=1, help="How many, spread evenly.")],
    cache: Annotated[
        Path | None, typer.Option(help="Cache of DATASET that tells which clips were held out.")
    ] = None,
    held_out: Annotated[
        int | None, typer.Option(min=1, help="Choose among so many clips at the cache's end.")
    ] = None,
    device: Device = None,
) -> None:
    """Make the videos of one of the paper's TASKs beside the file MANIFEST, which lists them.

    Given frames and captions are those of clips of DATASET: of all, or of those held out.
    """
    if (cache is None) != (held_out is None):
        raise ValueError("--cache and --held-out go together, found one without the other")
    device = choose_device(device)
    from pusa.data.dataset import read_metadata
    from pusa.sample import zero_shot

    available = (
        zero_shot.held_out_clips(dataset, cache, held_out) if cache else read_metadata(dataset)
    )
    table = zero_shot.sample_task(
        task,
        zero_shot.choose_clips(available, clips),
        settings,
        model=model,
        weights=weights,
        out=manifest.parent,
        switches=switches,
        device=device,
    )
    write_manifest(table, manifest)
