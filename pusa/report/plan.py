"""What a run will take, before it starts: jobs, videos, GPU-hours and disk.

Estimates count the transformer's floating-point operations and nothing else: no VAE, text
encoder, scoring or waiting. They are there to tell a day from a month.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from pusa.clip import count_latent_frames
from pusa.config import Clip, Model
from pusa.experiments import WAN_I2V, Setting, prompt_sets
from pusa.layout import Layout
from pusa.models.folder import read_part

#: Forward passes' worth of operations in a training step of a frozen base with a LoRA: forward,
#: and the gradients of activations, which cost about two forwards where attention prevails.
TRAINING_PASSES = 3
VIDEO_BYTES_PER_PIXEL = 0.15  # h264 at crf 10, assumed; clips with much motion take more
LATENT_CHANNELS, LATENT_STRIDE, PATCH = 16, 8, 2


@dataclass(frozen=True)
class Shape:
    """The sizes of a Wan transformer that its cost depends on."""

    dim: int
    ffn_dim: int
    layers: int

    @property
    def parameters(self) -> int:
        """Parameters of the blocks, which are nearly all."""
        return self.layers * (8 * self.dim**2 + 2 * self.dim * self.ffn_dim)

    def forward_flops(self, tokens: int, text_tokens: int) -> float:
        """Operations of one forward pass of one clip, a multiplication and a sum each."""
        d, f = self.dim, self.ffn_dim
        linear = tokens * (4 * d * d + 2 * d * d + 2 * d * f)  # self-, cross-attention, ffn
        text = text_tokens * 2 * d * d  # cross-attention's keys and values
        attention = 2 * tokens * tokens * d + 2 * tokens * text_tokens * d
        return 2.0 * self.layers * (linear + text + attention)

    def lora_parameters(self, rank: int) -> int:
        """Parameters of a LoRA on a block's linear layers: eight in attention, two after it."""
        return self.layers * rank * (8 * 2 * self.dim + 2 * (self.dim + self.ffn_dim))


#: Wan2.1's sizes, for a plan before the model is there; then its config is read.
KNOWN_SHAPES = {
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": Shape(5120, 13824, 40),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": Shape(1536, 8960, 30),
}


def find_shape(model: Model) -> Shape | None:
    """The sizes of the configured model: from its folder, or by its name; None if unknown."""
    folder = Path(model.path, "transformer")
    if (folder / "config.json").is_file():
        config = read_part(folder, "transformer")
        dim = config["num_attention_heads"] * config["attention_head_dim"]
        return Shape(dim, config["ffn_dim"], config["num_layers"])
    return KNOWN_SHAPES.get(model.repo or "")


def video_hours(layout: Layout, setting: Setting) -> float | None:
    """GPU-hours of sampling a video of a setting; None where the plan does not know them."""
    shape, tflops = find_shape(layout.config.model), layout.config.cost.tflops
    if setting.steps is None:
        return 0.0  # nothing is sampled
    if shape is None or tflops is None:
        return None
    return _video_flops(layout, shape, setting) / (tflops * 1e12 * 3600)


def describe_plan(layout: Layout) -> str:
    """A few lines on what the tables of a configuration take from nothing."""
    config, settings = layout.config, layout.settings["tables"]
    reported = layout.experiments[layout.experiments["table"] == "2"]["setting"]
    in_table2 = len({s.name for s in reported if s.steps is not None})
    videos = {name: layout.videos("tables", name) for name in settings}
    merged = sum(1 for s in settings.values() if s.rank is not None)  # one for each setting
    lines = [
        f"{len(settings)} settings, {in_table2} of them sampled for Table 2, each made once:",
        *_describe_prompts(layout),
        f"{len(layout.runs_of('tables'))} training runs, {merged} merged checkpoints, "
        f"{sum(videos.values()):,} videos in {len(layout.manifests('tables')):,} sampling jobs, "
        f"{sum(len(layout.setting_score_shards('tables', name)) for name in settings):,} scoring "
        "jobs",
    ]
    lines.append(_describe_guidance(layout))
    if layout.trains_baseline:
        lines.append(f"a tiny Wan-I2V, trained for {config.baseline.steps} steps")
    lines.append(
        f"{len(layout.tasks) * layout.task_clips} videos of tasks, attention of "
        f"{len(layout.compared)} models (not in what follows)"
    )
    shape = find_shape(config.model)
    if shape is None:
        lines.append("GPU-hours and disk: not estimated, as the model is not known before it is")
        lines.append("downloaded (`snakemake download`)")
    else:
        lines += _describe_hours(layout, shape, videos)
        lines += _describe_disk(layout, shape, videos, merged)
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


def _describe_hours(layout: Layout, shape: Shape, videos: dict[str, int]) -> list[str]:
    train, cost = layout.config.train, layout.config.cost
    forward = _forward_flops(layout, shape)
    settings = layout.settings["tables"]
    sampling = sum(n * _video_flops(layout, shape, settings[name]) for name, n in videos.items())
    step = TRAINING_PASSES + (1 if train.gradient_checkpointing else 0)
    iterations = sum(layout.runs[name].iterations[-1] for name in layout.runs_of("tables"))
    training = iterations * train.total_batch * step * forward
    if cost.tflops is None:
        return [f"{sampling + training:.2g} floating-point operations of the transformer"]
    hours = [flops / (cost.tflops * 1e12 * 3600) for flops in (training, sampling)]
    price = ""
    if cost.usd_per_gpu_hour is not None:
        price = f", ${sum(hours) * cost.usd_per_gpu_hour:,.0f}"
    return [
        f"about {sum(hours):,.0f} GPU-hours{price} at {cost.tflops:g} TFLOP/s (cost.tflops): "
        f"training {hours[0]:,.0f}, sampling {hours[1]:,.0f}; scoring is not in the estimate"
    ]


def _video_flops(layout: Layout, shape: Shape, setting: Setting) -> float:
    """Of sampling a video; a Wan-I2V is of the base's size."""
    section = layout.config.baseline if setting.model == WAN_I2V else layout.config.sample
    passes = 2 if section.guidance_scale > 1 else 1
    return _forward_flops(layout, shape) * passes * (setting.steps or 0)


def _forward_flops(layout: Layout, shape: Shape) -> float:
    clip = layout.config.clip
    return shape.forward_flops(_count_tokens(clip), clip.text_tokens)


def _describe_disk(layout: Layout, shape: Shape, videos: dict[str, int], merged: int) -> list[str]:
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
        sizes["LoRAs"] = (2 if config.train.lora_dtype == "bfloat16" else 4) * lora
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
    if merged:
        one = 4 * shape.parameters
        lines.append(
            f"and {_bytes(one)} for each merged checkpoint that waits for its samples, up to "
            f"{_bytes(merged * one)}"
        )
    return lines


def _count_tokens(clip: Clip) -> int:
    side = LATENT_STRIDE * PATCH
    rows, columns = clip.height // side, clip.width // side
    return count_latent_frames(clip.frames) * rows * columns


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:,.1f} TB"
