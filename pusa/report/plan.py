"""What a run will take, before it starts: jobs, videos, GPU-hours and disk.

Waiting is in none of it. Estimates are there to tell a day from a month.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from pusa.clip import count_latent_frames
from pusa.experiments import Setting, prompt_sets
from pusa.layout import Layout
from pusa.report.measured import (
    measure_encoding,
    measure_sampling,
    measure_scoring,
    measure_training,
)
from pusa.speed import (
    BYTES,
    KNOWN_SHAPES,
    LATENT_CHANNELS,
    LATENT_STRIDE,
    Estimate,
    Shape,
    find_shape,
)

#: h264 at crf 10, assumed; clips with much motion take more.
VIDEO_BYTES_PER_PIXEL = 0.15


@dataclass(frozen=True)
class Stage:
    """What a stage takes of GPUs, in seconds of one."""

    assumed: float
    #: What its finished jobs took against what is assumed for them, and how many they are.
    factor: float = 1.0
    jobs: int = 0

    @property
    def hours(self) -> float:
        """GPU-hours, measured where some job has finished."""
        return self.assumed * self.factor / 3600


def video_hours(layout: Layout, setting: Setting) -> float | None:
    """GPU-hours of sampling a video of a setting; None where the plan does not know them."""
    if setting.steps is None:
        return 0.0  # nothing is sampled
    estimate = layout.estimate
    if estimate is None:
        return None
    return Stage(estimate.video(setting), *measure_sampling(layout, estimate)).hours


def estimate_stages(layout: Layout, estimate: Estimate) -> dict[str, Stage]:
    """What the tables of a configuration take of GPUs from nothing, by stage.

    Seconds are counted operations over an assumed speed, until jobs have finished: then they are in
    proportion to what these took.
    """
    config, settings = layout.config, layout.settings["tables"]
    training = sum(estimate.training(layout.runs[name]) for name in layout.runs_of("tables"))
    sampling = sum(
        layout.videos("tables", name) * estimate.video(setting)
        + layout.shards("tables", name) * estimate.sampling_job(setting)
        for name, setting in settings.items()
        if setting.steps is not None
    )
    # By a LoRA that is not merged, with the text encoder.
    shown = len(layout.tasks) * layout.task_clips + len(layout.compared)
    video = estimate.video(layout.main, lora_rank=layout.main.rank) + estimate.embedding(1)
    encoding = {"cache_prompts": estimate.embedding(sum(layout.prompts["all"].values()))}
    if config.is_trained and config.cache.source == "encode" and config.dataset.clips:
        encoding["cache_latents"] = estimate.encoding(config.dataset.clips)
    stages = {
        "training": Stage(training, *measure_training(layout, estimate)),
        "sampling": Stage(sampling, *measure_sampling(layout, estimate)),
        "tasks and attention": Stage(shown * video),
        "encoding": Stage(sum(encoding.values()), *measure_encoding(layout, encoding)),
    }
    if config.score.scorer == "vbench":
        scoring = sum(estimate.scoring(layout.sampled("tables", name)) for name in settings)
        stages["scoring"] = Stage(scoring, *measure_scoring(layout, estimate))
    return {name: stage for name, stage in stages.items() if stage.assumed}


def describe_plan(layout: Layout) -> str:
    """A few lines on what the tables of a configuration take from nothing."""
    config, settings = layout.config, layout.settings["tables"]
    reported = layout.experiments[layout.experiments["table"] == "2"]["setting"]
    in_table2 = len({s.name for s in reported if s.steps is not None})
    videos = {name: layout.videos("tables", name) for name in settings}
    lines = [
        f"{len(settings)} settings, {in_table2} of them sampled for Table 2, each made once:",
        *_describe_prompts(layout),
        f"{len(layout.runs_of('tables'))} training runs, "
        f"{sum(videos.values()):,} videos in {len(layout.manifests('tables')):,} sampling jobs, "
        f"{sum(len(layout.setting_score_shards('tables', name)) for name in settings):,} scoring "
        "jobs",
    ]
    lines.append(_describe_guidance(layout))
    if altering := config.sample.altering:
        told = ", ".join(f"sample.{key}" for key in altering)
        lines.append(f"with {told}, which changes scores")
    if layout.trains_baseline:
        lines.append(f"a tiny Wan-I2V, trained for {config.baseline.steps} steps")
    lines.append(
        f"{len(layout.tasks) * layout.task_clips} videos of tasks, attention of "
        f"{len(layout.compared)} models"
    )
    shape = find_shape(config.model)
    if shape is None:
        lines.append("GPU-hours and disk: not estimated, as the model is not known before it is")
        lines.append("downloaded (`snakemake download`)")
    else:
        lines += _describe_hours(layout)
        lines += _describe_disk(layout, shape, videos)
    lines.append(_describe_first_look(layout))
    return "\n  ".join(["What this configuration takes from nothing:", *lines])


def describe_memory(layout: Layout) -> str:
    """What one GPU must hold, a few lines; empty if the model is not known.

    Counted by `pusa memory` in a process of its own: what it imports takes long, and sets variables
    of the environment that Snakemake would hand on to its jobs.

    Raises:
        ValueError: if a training cannot fit; it says what would help.
    """
    model, settings = layout.config.model, layout.memory_settings
    parts = (Path(model.path, part, "config.json") for part in ("transformer", "vae"))
    name = model.path if all(file.is_file() for file in parts) else model.repo
    if name != model.path and name not in KNOWN_SHAPES:
        return ""
    command = [sys.executable, "-m", "pusa", "memory", "--settings", settings.model_dump_json()]
    done = subprocess.run([*command, "--", name], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr.rpartition("error: ")[2].strip())
    heading = f"What one GPU must hold, of resources.gpu_memory {settings.gpu_memory:g} GiB:"
    return "\n  ".join([heading, *done.stdout.splitlines()])


def _describe_prompts(layout: Layout) -> list[str]:
    lines, samples = [], layout.config.sample.samples
    sets = prompt_sets(layout.experiments)
    for name in ("all", "subset"):
        count = sum(1 for s in sets.values() if s == name)
        if count:
            prompts = layout.prompts[name]
            kinds = " + ".join(f"{n} {kind}" for kind, n in prompts.items())
            total = sum(prompts.values())
            lines.append(
                f"  {count} on {'all' if name == 'all' else 'a subset of'} {total:,} prompts "
                f"({kinds}) x {samples} samples = {total * samples:,} videos each"
            )
    return lines


def _describe_guidance(layout: Layout) -> str:
    config, negative = layout.config, layout.negative_prompt
    told = f"guidance scale {config.sample.guidance_scale:g}"
    if layout.has_baseline:
        told += f", Wan-I2V's {config.baseline.guidance_scale:g}"
    if not negative:
        return f"{told}, against the empty prompt"
    file = config.sample.negative_prompt_file
    return f"{told}, against {shorten(negative, 50, placeholder=' …')!r} ({file})"


def _describe_first_look(layout: Layout) -> str:
    settings = layout.settings["first_look"]
    videos = {name: layout.videos("first_look", name) for name in settings}
    hours = [video_hours(layout, s) for s in settings.values()]
    price = ""
    if None not in hours:
        total = sum(n * each for n, each in zip(videos.values(), hours, strict=True))
        usd = layout.config.cost.usd_per_gpu_hour
        price = f", about {total:.2g} GPU-hours" + (f", ${total * usd:,.2f}" if usd else "")
    trained = ", after the main training" if layout.config.is_trained else ""
    return (
        f"snakemake first_look, not in this: {sum(videos.values())} videos by {len(videos)} "
        f"models{price}{trained}"
    )


def _describe_hours(layout: Layout) -> list[str]:
    cost, estimate = layout.config.cost, layout.estimate
    if layout.config.device == "cpu":
        return ["no GPU-hours: everything runs on the CPU (device)"]
    if estimate is None:
        return ["GPU-hours: not estimated without cost.gpu, which names a kind of GPU"]
    stages = estimate_stages(layout, estimate)
    hours = sum(stage.hours for stage in stages.values())
    price = ""
    if cost.usd_per_gpu_hour is not None:
        price = f", ${hours * cost.usd_per_gpu_hour:,.0f}"
    gpu = estimate.gpu
    lines = [
        f"about {hours:,.0f} GPU-hours{price}, by {gpu.bfloat16:g} TFLOP/s in bfloat16 and "
        f"{gpu.float32:g} in float32, assumed of {cost.gpu} (cost.gpu):"
    ]
    told = []
    for name, stage in stages.items():
        known = ""
        if stage.jobs:
            known = f" (measured, {stage.factor:.2f} of what is assumed: {stage.jobs} jobs)"
        told.append(f"{name} {stage.hours:,.{0 if stage.hours >= 10 else 1}f}{known}")
    lines.append(f"  {', '.join(told)}")
    return lines


def _describe_disk(layout: Layout, shape: Shape, videos: dict[str, int]) -> list[str]:
    config, clip = layout.config, layout.config.clip
    runs = [layout.runs[name] for name in layout.runs_of("tables")]
    sizes = {}
    if not config.is_trained:  # as downloaded, and converted
        sizes["LoRA"] = 2 * 4 * shape.lora_parameters(config.lora.rank)
    elif config.train.method == "full":
        saved = sum(len(run.iterations) for run in runs)
        sizes["trained transformers"] = 4 * saved * shape.parameters
    else:
        lora = sum(shape.lora_parameters(run.rank) * len(run.iterations) for run in runs)
        sizes["LoRAs"] = BYTES[config.train.lora_dtype] * lora
    if layout.merged:
        sizes["the merged transformer"] = BYTES[config.sample.dtype] * shape.parameters
    if config.model.source == "hub":
        sizes["the model's transformer"] = 4 * shape.parameters
    if layout.has_baseline and config.baseline.source == "hub":
        sizes["the baseline's transformer"] = 4 * shape.parameters
    pixels = clip.frames * clip.height * clip.width
    sizes["videos"] = int(VIDEO_BYTES_PER_PIXEL * pixels * sum(videos.values()))
    if runs and config.dataset.clips is not None:
        frame = LATENT_CHANNELS * clip.height * clip.width // LATENT_STRIDE**2
        latents = 4 * frame * count_latent_frames(clip.frames)
        sizes["cached latents"] = latents * config.dataset.clips
    parts = ", ".join(f"{name} {_bytes(n)}" for name, n in sizes.items() if n)
    lines = [f"about {_bytes(sum(sizes.values()))} of disk for good: {parts}"]
    if config.model.source == "hub":
        lines.append("  beside it text encoder, VAE and dataset, as large as they are downloaded")
    return lines


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:,.1f} TB"
