"""The configuration of the workflow, a class for each section; commands share the same fields.

This is the one place where a setting's name, type, limits, default and help are written. After a
change `python -m pusa.config` writes the table of keys in ``config/README.md`` anew.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import Field, model_validator
from pydantic.fields import FieldInfo

from pusa.clip import count_latent_frames
from pusa.data.suite import KINDS, VBENCH_COUNTS, VBENCH_MIN_SIDE, count_prompts
from pusa.settings import Settings, section_of

Dtype = Literal["float32", "bfloat16"]
Objective = Literal["paper", "authors"]
Offload = Literal["none", "activations", "optimizer", "both"]
GpuKind = Literal["A100", "H100", "H200"]
Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Guidance = Annotated[float, Field(ge=1)]
Shift = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Side = Annotated[int, Field(ge=16, le=16_384)]  # pixels
SHIFT = 5.0  # Wan's; of its own, as `pusa.flow` needs torch, too slow for reading a config
#: Keys that are no more, by what takes their place.
RENAMED = {
    "train.ranks": "the column rank of the experiments sheet",
    "train.iterations": "the column iteration of the experiments sheet",
    "cost.tflops": "cost.gpu, the kind of GPU",
}


def _require(section: Settings, key: str, **choice: str) -> None:
    """Refuse a section that lacks a key which one of its choices needs."""
    ((name, value),) = choice.items()
    if getattr(section, name) == value and getattr(section, key) is None:
        raise ValueError(f"{key}: found nothing, expected one with {name} {value}")


def _require_latent_frames(section: Settings, key: str) -> None:
    try:
        count_latent_frames(getattr(section, key))
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


class PromptCounts(Settings):
    """How many prompts of each kind are taken, spread evenly over the suite."""

    subject: Positive
    """Prompts about a subject."""
    background: Positive
    """Prompts about a background."""
    camera: Positive
    """Prompts about a motion of the camera."""


class SubsetCounts(PromptCounts):
    """Counts over which intervals are made, for which two prompts are needed."""

    subject: Annotated[int, Field(ge=2)]
    background: Annotated[int, Field(ge=2)]
    camera: Annotated[int, Field(ge=2)]


class Repository(Settings):
    """A folder, and the hub's repository that it may come from."""

    source: Literal["folder", "hub"]
    """Use `path` as it is, or download `repo` to it."""
    path: Text
    """Where it lies."""
    repo: Text | None = None
    """Repository of the hub."""
    revision: Text = "main"
    """Its branch, tag or commit."""

    @model_validator(mode="after")
    def _has_repo(self) -> Self:
        _require(self, "repo", source="hub")
        return self


class Model(Repository):
    """The text-to-video model that everything starts from."""

    path: Text
    """Folder in diffusers' format: `model_index.json`, `transformer/`, `vae/`, …"""


class Lora(Settings):
    """Where the LoRA comes from, if it is not trained here."""

    source: Literal["trained", "released"] = "trained"
    """`released`: the file `file` in `path` takes the place of training."""
    repo: Text | None = None
    """Downloaded to `path`; without it the file must be there."""
    revision: Text = "main"
    """Branch, tag or commit."""
    path: Text | None = None
    """Folder of the file."""
    file: Text | None = None
    """`.safetensors` or `.pt` in the authors', ComfyUI's, diffusers' or musubi's layout."""
    rank: Positive | None = None
    """Of the released LoRA; the sheet's rows must ask for just that."""
    iteration: Positive | None = None
    """Likewise."""

    @model_validator(mode="after")
    def _is_described(self) -> Self:
        for key in ("path", "file", "rank", "iteration"):
            _require(self, key, source="released")
        if self.file and not self.file.endswith((".safetensors", ".pt")):
            raise ValueError(f"file: found {self.file}, expected a .safetensors or .pt file")
        return self


class Baseline(Repository):
    """The image-to-video model that the paper compares with, `wan_i2v` in the sheet."""

    source: Literal["folder", "hub", "tiny"]
    """As of the model; `tiny`: trained in Wan-I2V's manner from the embedded model and the
    dataset."""
    path: Text
    """Folder in diffusers' format, as of Wan-AI/Wan2.1-I2V-14B-720P-Diffusers."""
    steps: Positive | None = None
    """Of the training of a tiny one, 8 clips each."""
    guidance_scale: Guidance = 5.0
    """Of its sampling, by diffusers' own pipeline and the model's own scheduler."""

    @model_validator(mode="after")
    def _has_steps(self) -> Self:
        _require(self, "steps", source="tiny")
        return self


class Dataset(Repository):
    """The clips that are trained on."""

    source: Literal["folder", "hub", "tiny"]
    """As of the model; `tiny`: render the tiny world."""
    path: Text
    """Folder with `metadata.csv` (`file_name,text`) and the clips it names."""
    clips: Annotated[int, Field(ge=2)] | None = None
    """Clips to render (`tiny`); else how many there are, for the plan's estimate of disk."""

    @model_validator(mode="after")
    def _has_clips(self) -> Self:
        _require(self, "clips", source="tiny")
        return self


class Suite(Settings):
    """The prompts and images that videos are made from."""

    source: Literal["folder", "vbench", "tiny"]
    """`vbench`: download VBench-I2V's; `tiny`: render the tiny world."""
    path: Text
    """Folder with `vbench2_i2v_full_info.json` and `crop/<ratio>/`; put a `crop.zip` that you hold
    there."""
    prompts: PromptCounts | None = None
    """How many prompts of each kind `tiny` renders, which `subset` and `effects.prompts` are taken
    from; as many as those ask for, if absent."""
    subset: SubsetCounts | None = None
    """How many `subject`, `background` and `camera` prompts stand for the sheet's `subset`, spread
    evenly over the suite; fewer are among more, so that it can be raised step by step."""

    @model_validator(mode="after")
    def _has_subset(self) -> Self:
        _require(self, "subset", source="tiny")
        if self.prompts and self.source != "tiny":
            raise ValueError(
                f"prompts: found {self.prompts.model_dump()}, expected none with "
                f"source {self.source}, whose prompts are as they are"
            )
        return self


class ImageSize(Settings):
    """What images are cut to."""

    height: Annotated[Side, Field(multiple_of=16)]
    """Pixels, a multiple of 16."""
    width: Annotated[Side, Field(multiple_of=16)]
    """Pixels, a multiple of 16."""


class Size(ImageSize):
    """What clips are scaled and cut to, and what is made."""

    frames: Annotated[int, Field(ge=5)]
    """Pixel frames, of the form 4k+1."""

    @model_validator(mode="after")
    def _frames_fit(self) -> Self:
        _require_latent_frames(self, "frames")
        return self


class Clip(Size):
    """What clips are scaled and cut to, and captions padded to."""

    text_tokens: Positive
    """Length of a prompt embedding (512 for Wan2.1); a longer prompt is an error."""


class Cache(Settings):
    """How clips become latents."""

    source: Literal["encode", "released"] = "encode"
    """Encode clips and captions, or convert the dataset's own `.tensors.pth` files."""
    skip_unusable: bool = False
    """Go on without clips that cannot be read, or are too short or too small."""


class TrainedModel(Settings):
    """How a model of the sheet is trained."""

    p_async: Annotated[float, Field(ge=0, le=1)]
    """Probability that a clip's frames draw their own timesteps (PTSS)."""
    objective: Objective | None = None
    """As `train.objective`, which counts if absent."""


class TrainingLoad(Settings):
    """What of a training decides the memory that it needs."""

    method: Literal["lora", "full"] = "lora"
    """A LoRA on DeepSpeed's ZeRO-2, or the whole transformer on ZeRO-3; the sheet's ranks and
    alphas are then empty."""
    total_batch: Positive = 8
    """Clips per iteration over all processes."""
    micro_batch: Positive | None = None
    """Clips per process and forward pass, accumulation makes up the rest; what `total_batch` leaves
    each, if absent."""
    gradient_checkpointing: bool = False
    """Compute activations again instead of keeping them: memory for time."""
    dtype: Dtype = "float32"
    """Of the frozen base, or of the computation in full fine-tuning."""
    lora_dtype: Dtype = "float32"
    """Of a LoRA's weights; the optimizer's own are float32. The authors' are `bfloat16`."""
    offload: Offload = "none"
    """What is moved to the host's memory: the inputs of checkpointed blocks, the optimizer's state,
    or `both`."""

    @model_validator(mode="after")
    def _moves_what_there_is(self) -> Self:
        if self.offload in ("activations", "both") and not self.gradient_checkpointing:
            raise ValueError(
                f"offload: found {self.offload}, expected none or optimizer without "
                "gradient_checkpointing, as a block then keeps far more than its inputs"
            )
        return self


class Training(TrainingLoad):
    """What decides a training's weights, and is common to all runs."""

    learning_rate: Annotated[float, Field(gt=0)] = 1.0e-5
    """Of AdamW; the authors'."""
    warmup: Count = 0
    """Iterations over which the learning rate rises; it is constant after."""
    objective: Objective = "authors"
    """`authors`: their code's shifted grid and bell-shaped weight; `paper`: timesteps from U[0,1]
    and an unweighted loss, as in its text."""
    shift: Shift = SHIFT
    """Of the authors' grid."""
    validation_clips: Count = 32
    """The last clips of the dataset, held out for the validation loss; others with their captions
    are not trained on either."""
    checkpoint_every: Positive = 50
    """Iterations between the checkpoints that an interrupted run goes on from."""
    seed: Seed = 0
    """Of the LoRA's initialisation, the batches and their noise."""


class Train(Training):
    """How all runs are trained, and what on; the sheet says which runs there are."""

    models: dict[str, TrainedModel] = Field(
        {"pusa": TrainedModel(p_async=1.0), "control": TrainedModel(p_async=0.0)}, min_length=1
    )
    """Names for the sheet's column `model`, each with `p_async`, the probability that a clip's
    frames draw their own timesteps, and perhaps an `objective` of its own."""
    nodes: Positive = 1
    """Nodes of a training job."""
    processes: Positive = 1
    """Processes on each node, one per GPU where there are any."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        for name in self.models:
            if not re.fullmatch(r"(?!(base|wan_i2v)$)[a-z][a-z0-9_]*", name):
                raise ValueError(
                    f"models: found {name!r}, expected small letters, and not base or wan_i2v"
                )
        processes = self.nodes * self.processes
        micro = self.micro_batch or max(1, self.total_batch // processes)
        if self.total_batch % (processes * micro):
            raise ValueError(
                f"total_batch: found {self.total_batch}, expected a multiple of train.nodes "
                f"{self.nodes} x train.processes {self.processes} x train.micro_batch {micro}"
            )
        return self


class TrainSettings(Training):
    """What decides the weights of one run, apart from the base and the data."""

    rank: Positive | None = None
    """Of a LoRA; PEFT's alpha equals it, so that its natural scale is 1."""
    iterations: list[int] = Field(min_length=1)
    """Iterations that are saved, in rising order; the last ends the training."""
    p_async: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Probability that a clip's frames draw their own timesteps (PTSS)."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if (self.rank is None) != (self.method == "full"):
            raise ValueError(
                f"rank: found {self.rank} with method {self.method}, expected a rank for a LoRA "
                "and none for full fine-tuning"
            )
        if self.iterations != sorted({*self.iterations}) or self.iterations[0] < 1:
            raise ValueError(f"iterations: found {self.iterations}, expected rising order from 1")
        return self


class Sampling(Settings):
    """What decides a video, apart from model, prompt, size and steps."""

    guidance_scale: Guidance = 5.0
    """Of classifier-free guidance; 1 skips the unconditional pass."""
    shift: Shift = SHIFT
    """Of the sigma grid."""
    seed: Seed = 0
    """Of the noise."""


class SampleSwitches(Settings):
    """What diffusers has to save memory or time, where videos are sampled."""

    attention_backend: Text | None = None
    """Of diffusers, such as native, flash or sage; rounds otherwise, but those of `sage` compute in
    8 bits, which changes scores."""
    compile: bool = False
    """Compile the transformer's repeated block, minutes for each job; rounds otherwise."""
    vae_tiling: bool = False
    """Encode and decode in tiles, to save memory; changes scores where clips are larger than 256
    pixels."""

    @model_validator(mode="after")
    def _check_backend(self) -> Self:
        if self.attention_backend is not None:
            # Seconds, for those alone who name one.
            from diffusers.models.attention_dispatch import AttentionBackendName

            names = sorted(backend.value for backend in AttentionBackendName)
            if self.attention_backend not in names:
                raise ValueError(
                    f"attention_backend: found {self.attention_backend!r}, "
                    f"expected one of {', '.join(names)}"
                )
        return self

    @property
    def altering(self) -> dict[str, Any]:
        """Those that change what a video shows by more than rounding: part of its record."""
        backend = self.attention_backend if self._is_quantised else None
        taken = {"vae_tiling": self.vae_tiling, "attention_backend": backend}
        return {key: value for key, value in taken.items() if value}

    @property
    def rounding(self) -> dict[str, Any]:
        """Those by which the same is rounded otherwise, as it is on another device."""
        backend = None if self._is_quantised else self.attention_backend
        taken = {"attention_backend": backend, "compile": self.compile}
        return {key: value for key, value in taken.items() if value}

    @property
    def _is_quantised(self) -> bool:
        return "sage" in (self.attention_backend or "")


class SuiteSampling(Sampling):
    """How the videos of the prompt suite are made."""

    samples: Positive = 1
    """Videos per prompt."""
    batch_size: Positive = 1
    """Videos per forward pass."""
    dtype: Dtype = "float32"
    """Of the model."""


class Sample(SuiteSampling, SampleSwitches):
    """How the videos of all settings are made."""

    videos_per_job: Positive | None = None
    """A setting's prompts are divided among as many jobs as that takes. If absent, as many videos
    as half of `resources.sampling_minutes` has room for by the plan's seconds, or 50 where it knows
    none."""
    negative_prompt_file: Text | None = None
    """Text file with the negative prompt of guidance; the empty prompt if absent."""


class SuiteSettings(SuiteSampling, Size):
    """What decides the videos of one setting, apart from model and prompts."""

    task: Literal["i2v", "t2v"] = "i2v"
    """Image-to-video, or text-to-video."""
    steps: Positive
    """Sampling steps."""


class VideoSettings(Sampling):
    """What decides a video, apart from the model, the prompt and what is given of it."""

    frames: Positive = 81
    """Pixel frames that the model makes at once, of the form 4k+1."""
    height: Side = 480
    """Pixels."""
    width: Side = 832
    """Pixels."""
    steps: Positive = 10
    """Sampling steps."""
    negative_prompt: str = ""
    """Of guidance."""

    @model_validator(mode="after")
    def _frames_fit(self) -> Self:
        _require_latent_frames(self, "frames")
        return self


class GenerateSettings(VideoSettings):
    """The same for videos of any length, and for Wan2.2's pair of experts."""

    guidance_scale_2: Guidance | None = None
    """Of the low-noise expert of Wan2.2; as guidance_scale if absent."""
    length: Positive | None = None
    """Frames of a longer video, extended from its own end in windows."""
    overlap: Positive = 13
    """Frames that a further window is given, of the form 4k+1."""

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        _require_latent_frames(self, "overlap")
        if self.length is None:
            return self
        if self.length < self.frames:
            raise ValueError(
                f"length: found {self.length} frames, expected at least those of one window, "
                f"{self.frames}"
            )
        if self.overlap >= self.frames:
            raise ValueError(
                f"overlap: found {self.overlap} frames, expected fewer than a window's "
                f"{self.frames}"
            )
        return self


class Score(Settings):
    """How videos are scored."""

    scorer: Literal["vbench", "weight_free"] = "weight_free"
    """`vbench`: VBench-I2V's nine dimensions by its own code, in its own environment;
    `weight_free`: stand-ins from classical vision, which are not VBench's."""
    weights: Text = "data/vbench_weights"
    """Folder of the networks that VBench uses; `snakemake download` fills it."""
    environment: Text = ".venv-vbench"
    """Virtual environment of VBench, which `make vbench` makes; not used with `--sdm conda` or
    `--sdm apptainer`."""
    videos_per_job: Positive = 1000
    """Whole sampling jobs are scored together, up to about as many videos."""


class Tasks(Settings):
    """The zero-shot tasks of Figures 7 to 12, on clips that no one trained on."""

    dataset: Text | None = None
    """Folder with `metadata.csv` and clips to take given frames from; the clips that training holds
    out, if absent; without those the figures are left out."""
    clips: Positive = 3
    """Clips per figure, spread evenly; at most as many as are held out."""


class Effects(Settings):
    """The study of `snakemake effects`."""

    seeds: list[Seed] = Field([0, 1, 2], min_length=1)
    """Training seeds."""
    prompts: SubsetCounts | None = None
    """Prompts of each kind; all if absent."""

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        if len({*self.seeds}) < len(self.seeds):
            raise ValueError(f"seeds: found {self.seeds}, expected no value twice")
        return self


class Cost(Settings):
    """What costs and the plan reckon with."""

    usd_per_gpu_hour: Annotated[float, Field(gt=0)] | None = None
    """Price, for the costs that tables and the plan state."""
    gpu: GpuKind | None = None
    """`A100`, `H100` or `H200`, whose speed the plan assumes; no GPU-hours are told without it."""


class GpuMemory(Settings):
    """What a GPU has."""

    gpu_memory: Annotated[float, Field(gt=0)] = 80
    """Of one GPU, in GiB, as its name tells it: 24, 48, 80, 141. A training that cannot fit is
    refused; with `device: cpu` nothing is counted."""


class Resources(GpuMemory):
    """What a job can have."""

    sampling_minutes: Positive = 1440
    """Time limit of a sampling job on a GPU, and so how many videos it makes."""


class MemorySettings(TrainingLoad, Clip, GpuMemory):
    """What decides the memory that one GPU needs; with the paper's defaults."""

    text_tokens: Positive = 512
    gradient_checkpointing: bool = True
    dtype: Dtype = "bfloat16"
    lora_dtype: Dtype = "bfloat16"
    rank: Positive | None = None
    """Of a LoRA; without one, and by the first method, nothing is trained."""
    processes: Positive = 1
    """Processes of a training on all nodes, each with a GPU."""
    sample_dtype: Dtype = "bfloat16"
    """Of the model that is sampled."""
    batch_size: Positive = 1
    """Videos per forward pass of sampling."""


class Config(Settings):
    """A whole configuration."""

    results: Text
    """Folder that everything is written to."""
    experiments: Text
    """The experiments sheet, below."""
    device: Literal["cuda", "cpu"]
    """Where models run, and so what jobs ask a cluster for (GPUs, memory, time)."""
    model: Model
    lora: Lora = Lora()
    baseline: Baseline | None = None
    dataset: Dataset | None = None
    suite: Suite
    clip: Clip
    cache: Cache = Cache()
    train: Train = Train()
    sample: Sample = Sample()
    score: Score = Score()
    tasks: Tasks = Tasks()
    effects: Effects = Effects()
    cost: Cost = Cost()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        for side in ("height", "width"):
            pixels = getattr(self.clip, side)
            if self.score.scorer == "vbench" and pixels < VBENCH_MIN_SIDE:
                raise ValueError(
                    f"clip.{side}: found {pixels}, expected at least {VBENCH_MIN_SIDE} with "
                    "score.scorer vbench, which scores smaller clips wrong"
                )
        if not self.is_trained:
            return self
        if self.dataset is None:
            raise ValueError("dataset: found nothing, expected the clips that are trained on")
        held_out = self.train.validation_clips
        if self.dataset.clips is not None and self.dataset.clips <= held_out:
            raise ValueError(
                f"dataset.clips: found {self.dataset.clips}, expected more than "
                f"train.validation_clips, {held_out}"
            )
        return self

    @property
    def is_trained(self) -> bool:
        """Whether LoRAs are trained here, and not taken as released."""
        return self.lora.source == "trained"


def read_config(values: dict[str, Any]) -> Config:
    """Check a configuration and fill in defaults.

    Raises:
        ValueError: one sentence that names the key's path, what was found and what was expected.
    """
    for key, instead in RENAMED.items():
        section, _, name = key.partition(".")
        given = values.get(section)
        if isinstance(given, dict) and name in given:
            raise ValueError(f"config key {key} is no more: it is {instead}")
    return Config.read(values, name=lambda key: f"config key {key}")


def read_config_files(files: Sequence[str | Path]) -> Config:
    """Read a configuration as Snakemake's ``--configfile`` does: a later file's keys count.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: as `read_config`, or for a file that is no YAML of sections and keys.
    """
    # Only here: the environment that VBench runs in has neither.
    import yaml
    from snakemake.utils import update_config

    values: dict[str, Any] = {}
    for file in map(Path, files):
        if not file.is_file():
            raise FileNotFoundError(f"configuration {file} does not exist")
        try:
            section = yaml.safe_load(file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{file}: cannot be read as YAML ({error})") from None
        if not isinstance(section, dict):
            raise ValueError(f"{file}: found {type(section).__name__}, expected sections and keys")
        update_config(values, section)
    return read_config(values)


def prompt_counts(config: Config) -> dict[str, dict[str, int]]:
    """Prompts of each kind: ``all`` of the suite, in the ``subset``, and for the ``effects``.

    Raises:
        ValueError: if the suite has fewer prompts of a kind than the subset or the effects ask for.
    """
    suite = config.suite
    given = {"suite.subset": suite.subset, "effects.prompts": config.effects.prompts}
    asked = {key: counts.model_dump() for key, counts in given.items() if counts}
    if suite.prompts:
        total = suite.prompts.model_dump()
    elif suite.source == "tiny":
        total = {kind: max(counts[kind] for counts in asked.values()) for kind in KINDS}
    else:
        total = VBENCH_COUNTS if suite.source == "vbench" else count_prompts(suite.path)
    for key, counts in asked.items():
        for kind in KINDS:
            if counts[kind] > total[kind]:
                raise ValueError(
                    f"config key {key}.{kind}: found {counts[kind]}, expected at most "
                    f"{total[kind]}, the suite's {kind} prompts"
                )
    subset, effects = (asked.get(key, total) for key in given)
    return {"all": total, "subset": subset, "effects": effects}


def describe_keys() -> str:
    """The table of all keys, Markdown."""
    rows = ["| key | meaning | default |", "|---|---|---|"]
    for name, field in Config.model_fields.items():
        section = section_of(field)
        if section is None:
            rows.append(f"| `{name}` | {_text(field.description)} | |")
            continue
        rows.append(f"| **`{name}`** | **{_text(section.__doc__)}** | |")
        rows += [
            f"| `{name}.{key}` | {_choices(f)}{_text(f.description)} | {_default(f)} |"
            for key, f in section.model_fields.items()
        ]
    return "\n".join(rows)


def _choices(field: FieldInfo) -> str:
    """The values that a key may have, if they are few."""
    if get_origin(field.annotation) is not Literal:
        return ""
    return ", ".join(f"`{value}`" for value in get_args(field.annotation)) + ". "


def _text(text: str | None) -> str:
    return " ".join((text or "").split()).rstrip(".")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.default
    if value is None:
        return "none"
    if isinstance(value, dict):
        value = {key: entry.model_dump(exclude_none=True) for key, entry in value.items()}
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


def write_keys(page: Path) -> None:
    """Write the table of keys into a page, between its two marks."""
    start, end = "<!-- keys: written by python -m pusa.config -->\n", "<!-- end of keys -->"
    before, _, rest = page.read_text().partition(start)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{start}{describe_keys()}\n{end}{after}")


class AttentionSettings(VideoSettings):
    """A video during which attention between frames is looked at."""

    step: list[int] = Field([])
    """Steps to look at, from 0; if none is given four from the first to the last, 0, 3, 6, 9 of 10
    as in the paper."""
    block: int = -1
    """Which block, from 0; the last by default."""
    as_authors: bool = False
    """Average queries and keys over each frame before the softmax, as the authors do, and not its
    weights after."""

    @model_validator(mode="after")
    def _can_be_measured(self) -> Self:
        if outside := [step for step in self.step if not 0 <= step < self.steps]:
            raise ValueError(
                f"step: found {outside[0]}, expected one of the {self.steps} steps, from 0"
            )
        if count_latent_frames(self.frames) < 2:
            raise ValueError(
                f"frames: found {self.frames}, expected at least 5 frames, as attention between "
                "frames needs two latent frames"
            )
        return self

    @property
    def looked_at(self) -> list[int]:
        """The steps to look at, in rising order."""
        return sorted({*self.step} or {round(n * (self.steps - 1) / 3) for n in range(4)})


class Weights(Settings):
    """Weights that take the place of a model's own, or are added to them."""

    transformer: Text | None = None
    """Folder instead of the model's own, say a merged one."""
    transformer_2: Text | None = None
    """The same for the low-noise expert of Wan2.2."""
    lora: list[str] = Field([])
    """FILE[:SCALE], of any format, which is not merged; several add up."""
    lora_2: list[str] = Field([])
    """The same for the low-noise expert."""
    dtype: Dtype = "float32"
    """Of transformers and text encoder; the VAE computes in float32."""

    @property
    def loras(self) -> list[tuple[Path, float]]:
        """The files of ``lora``, and the lora_scale of each."""
        return [_file_and_scale(text) for text in self.lora]

    @property
    def loras_2(self) -> list[tuple[Path, float]]:
        """The same of ``lora_2``."""
        return [_file_and_scale(text) for text in self.lora_2]


def _file_and_scale(text: str) -> tuple[Path, float]:
    file, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        return Path(file), float(scale)
    except ValueError:
        raise ValueError(f"LoRA {text}: expected FILE or FILE:SCALE") from None


class GenerateWeights(Weights):
    """The same for `pusa generate`."""

    dtype: Dtype = "bfloat16"
    """Of transformers and text encoder; the VAE computes in float32."""


class Outputs(Settings):
    """What is written of a request."""

    samples: Positive = 1
    """Videos per prompt."""
    gif: bool = False
    """Write a GIF beside each video."""
    png: bool = False
    """Write each video's frames too."""
    contact_sheet: bool = False
    """Draw strips of the videos' frames."""
    overwrite: bool = False
    """Replace files that were made otherwise."""


class Switches(SampleSwitches):
    """What diffusers has to save memory or time, for a command by itself."""

    offload: Literal["none", "model", "sequential", "group"] = "none"
    """What waits off the GPU: nothing, models, layers, or layers but the next. No bit changes."""
    context_parallel: bool = False
    """Share a video among torchrun's processes. Rounds otherwise."""

    @property
    def rounding(self) -> dict[str, Any]:
        """As of the switches that it shares with the workflow."""
        return super().rounding | ({"context_parallel": True} if self.context_parallel else {})


if __name__ == "__main__":
    write_keys(Path("config/README.md"))
