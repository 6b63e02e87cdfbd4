"""What a run will take, before it starts: jobs, videos, GPU-hours and disk.

Estimates count the transformer's floating-point operations and nothing else: no VAE, text
encoder, scoring or waiting. They are there to tell a day from a month.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pusa.clip import count_latent_frames
from pusa.experiments import (
    WAN_I2V,
    Setting,
    asks_for_baseline,
    prompt_sets,
    unique_settings,
)
from pusa.sample.tasks import count_clips, tasks_for
from pusa.score.arithmetic import NAMES

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


def find_shape(model: dict) -> Shape | None:
    """The sizes of the configured model: from its folder, or by its name; None if unknown."""
    file = Path(model["path"]) / "transformer/config.json"
    if file.is_file():
        config = json.loads(file.read_text())
        dim = config["num_attention_heads"] * config["attention_head_dim"]
        return Shape(dim, config["ffn_dim"], config["num_layers"])
    return KNOWN_SHAPES.get(model.get("repo", ""))


def count_videos(prompts: dict[str, int], samples: int) -> int:
    """Videos of a setting: ``samples`` for each of the prompts of every kind."""
    return samples * sum(prompts.values())


def count_jobs(prompts: dict[str, int], sample: dict) -> int:
    """Sampling jobs of a setting; each has whole prompts, with all of their samples."""
    jobs = -(-count_videos(prompts, sample["samples"]) // sample["videos_per_job"])
    return min(jobs, sum(prompts.values()))


def count_score_jobs(prompts: dict[str, int], sample: dict, score: dict) -> int:
    """Scoring jobs of a setting, for each dimension or for all; each scores whole sampling jobs."""
    return min(
        -(-count_videos(prompts, sample["samples"]) // score["videos_per_job"]),
        count_jobs(prompts, sample),
    )


def describe_plan(config: dict, experiments: pd.DataFrame, prompts: dict[str, dict]) -> str:
    """A few lines on what the tables of a configuration take from nothing.

    Args:
        config: the checked configuration.
        experiments: the sheet.
        prompts: prompts of each kind in ``all`` and in the ``subset``.
    """
    settings, sets = unique_settings(experiments), prompt_sets(experiments)
    reported = experiments[experiments["table"] == "2"]["setting"]
    in_table2 = len({s.name for s in reported})
    samples = config["sample"]["samples"]
    videos = {name: count_videos(prompts[sets[name]], samples) for name in settings}
    runs = {s.run: s.rank for s in settings.values() if s.seed is not None}
    shards = sum(count_jobs(prompts[sets[name]], config["sample"]) for name in settings)
    # VBench scores each dimension in a job of its own.
    scorings = (len(NAMES) if config["score"]["scorer"] == "vbench" else 1) * sum(
        count_score_jobs(prompts[sets[name]], config["sample"], config["score"])
        for name in settings
    )
    merged = sum(1 for s in settings.values() if s.rank is not None)  # one for each setting
    lines = [
        f"{len(settings)} sampling settings, {in_table2} of them Table 2's, each sampled once:",
        *_describe_prompts(sets, prompts, samples),
        f"{len(runs)} training runs, {merged} merged checkpoints, {sum(videos.values()):,} videos "
        f"in {shards:,} sampling jobs, {scorings:,} scoring jobs",
    ]
    if asks_for_baseline(experiments) and config["baseline"]["source"] == "tiny":
        lines.append(f"a tiny Wan-I2V, trained for {config['baseline']['steps']} steps")
    task_videos = len(tasks_for(config["clip"]["frames"])) * count_clips(config)
    compared = 2 + asks_for_baseline(experiments)  # with the base and the adapted model
    lines.append(
        f"{task_videos} videos of tasks, attention of {compared} models (not in what follows)"
    )
    shape = find_shape(config["model"])
    if shape is None:
        lines.append("GPU-hours and disk: not estimated, as the model is not known before it is")
        lines.append("downloaded (`snakemake download`)")
    else:
        lines += _describe_hours(config, shape, settings, videos, runs)
        lines += _describe_disk(
            config, shape, videos, runs, merged, with_baseline=asks_for_baseline(experiments)
        )
    return "\n  ".join(["What this configuration takes from nothing:", *lines])


def _describe_prompts(sets: dict[str, str], prompts: dict[str, dict], samples: int) -> list[str]:
    lines = []
    for name in ("all", "subset"):
        count = sum(1 for s in sets.values() if s == name)
        if count:
            kinds = " + ".join(f"{n} {kind}" for kind, n in prompts[name].items())
            total = sum(prompts[name].values())
            lines.append(
                f"  {count} on {'all' if name == 'all' else 'a subset of'} {total:,} prompts "
                f"({kinds}) x {samples} samples = {total * samples:,} videos each"
            )
    return lines


def _describe_hours(
    config: dict, shape: Shape, settings: dict[str, Setting], videos: dict[str, int], runs: dict
) -> list[str]:
    clip, train, sample, cost = (config[k] for k in ("clip", "train", "sample", "cost"))
    forward = shape.forward_flops(_count_tokens(clip), clip["text_tokens"])
    sampling = 0.0  # a Wan-I2V is of the base's size
    for name, n in videos.items():
        section = config["baseline"] if settings[name].model == WAN_I2V else sample
        passes = 2 if section["guidance_scale"] > 1 else 1
        sampling += forward * passes * settings[name].steps * n
    step = TRAINING_PASSES + (1 if train["gradient_checkpointing"] else 0)
    iterations = len(runs) * max(train["iterations"], default=0)
    training = iterations * train["total_batch"] * step * forward
    if "tflops" not in cost:
        return [f"{sampling + training:.2g} floating-point operations of the transformer"]
    hours = [flops / (cost["tflops"] * 1e12 * 3600) for flops in (training, sampling)]
    price = ""
    if "usd_per_gpu_hour" in cost:
        price = f", ${sum(hours) * cost['usd_per_gpu_hour']:,.0f}"
    return [
        f"about {sum(hours):,.0f} GPU-hours{price} at {cost['tflops']:g} TFLOP/s (cost.tflops): "
        f"training {hours[0]:,.0f}, sampling {hours[1]:,.0f}; scoring is not in the estimate"
    ]


def _describe_disk(
    config: dict,
    shape: Shape,
    videos: dict[str, int],
    runs: dict,
    merged: int,
    *,
    with_baseline: bool,
) -> list[str]:
    clip, train = config["clip"], config["train"]
    sizes = {}
    saved = len(runs) * len(train["iterations"])
    if train["method"] == "full":
        sizes["trained transformers"] = 4 * saved * shape.parameters
    elif config["lora"]["source"] == "released":  # as downloaded, and converted
        sizes["LoRA"] = 2 * 4 * shape.lora_parameters(config["lora"]["rank"])
    else:
        lora = sum(shape.lora_parameters(rank) for rank in runs.values())
        sizes["LoRAs"] = 4 * lora * len(train["iterations"])
    if config["model"]["source"] == "hub":
        sizes["the model's transformer"] = 4 * shape.parameters
    if with_baseline and config["baseline"]["source"] == "hub":
        sizes["the baseline's transformer"] = 4 * shape.parameters
    pixels = clip["frames"] * clip["height"] * clip["width"]
    sizes["videos"] = int(VIDEO_BYTES_PER_PIXEL * pixels * sum(videos.values()))
    if runs and "clips" in config["dataset"]:
        frame = LATENT_CHANNELS * clip["height"] * clip["width"] // LATENT_STRIDE**2
        latents = 4 * frame * count_latent_frames(clip["frames"])
        sizes["cached latents"] = latents * config["dataset"]["clips"]
    parts = ", ".join(f"{name} {_bytes(n)}" for name, n in sizes.items() if n)
    lines = [f"about {_bytes(sum(sizes.values()))} of disk for good: {parts}"]
    if merged:
        one = 4 * shape.parameters
        lines.append(
            f"and {_bytes(one)} for each merged checkpoint that waits for its samples, up to "
            f"{_bytes(merged * one)}"
        )
    return lines


def _count_tokens(clip: dict) -> int:
    side = LATENT_STRIDE * PATCH
    rows, columns = clip["height"] // side, clip["width"] // side
    return count_latent_frames(clip["frames"]) * rows * columns


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:,.1f} TB"
