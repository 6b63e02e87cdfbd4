"""How long a GPU takes, before there is one: operations that are counted, over an assumed speed.

Counted are products, convolutions and attention, a multiplication and a sum each, and the bytes
that are read. Nothing here loads torch or a model; tests compare the counts with the models
themselves. Sizes outside the transformer are those of Wan2.1's VAE and text encoder.
"""

from dataclasses import dataclass
from pathlib import Path

from pusa.clip import count_latent_frames
from pusa.config import Clip, Config, Model
from pusa.experiments import WAN_I2V, Run, Setting
from pusa.models.folder import read_part

LATENT_CHANNELS, LATENT_STRIDE, PATCH = 16, 8, 2
BYTES = {"float32": 4, "bfloat16": 2}
#: Forward passes' worth of operations in a training step of a frozen base with a LoRA: forward,
#: and the gradients of activations, which cost about two forwards where attention prevails.
TRAINING_PASSES = 3
#: Operations of the VAE for each pixel of each frame.
DECODING, ENCODING = 8.5e6, 5.05e6
#: Of UMT5-XXL's encoder: parameters of its layers, their number, and width of all heads.
TEXT_PARAMETERS, TEXT_LAYERS, TEXT_WIDTH = 4_630_511_616, 24, 4096
TEXT_BYTES = 22.7e9  # float32
#: Bytes that a job reads in a second from a file system that others use too, assumed.
READING = 1e9
#: Operations a second of the processors that merge a LoRA into what a job reads, assumed.
MERGING = 3e11
#: Pixels that VBench scores in a second and dimension, assumed: five seconds for 81 frames of
#: 1280x720, of which decoding is a part, and some networks look at few of them.
SCORING = 15e6
#: Dimensions that a prompt of each kind counts for in VBench-I2V.
SCORED = {"subject": 6, "background": 4, "camera": 1}


@dataclass(frozen=True)
class Gpu:
    """What a kind of GPU does in a second, in 1e12 operations, in models and not at its best."""

    bfloat16: float
    float32: float


#: Assumed. Of a sampling step at 1280x720x81 three quarters are attention. PyTorch's own kernel is
#: FlashAttention-2, which does 50 to 73 % of an A100's 312 TFLOP/s (arXiv 2307.08691) and 35 % of
#: an H100's 989 (arXiv 2407.08608); products do some more, what lies between them nothing. An H200
#: computes as an H100 does. In float32, two thirds of what is possible without tensor cores, 19.5
#: and 67, though PyTorch lets convolutions use them.
GPUS = {"A100": Gpu(150, 13), "H100": Gpu(300, 45), "H200": Gpu(300, 45)}


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
        """Operations of one forward pass of one clip."""
        d, f = self.dim, self.ffn_dim
        linear = tokens * (4 * d * d + 2 * d * d + 2 * d * f)  # self-, cross-attention, ffn
        text = text_tokens * 2 * d * d  # cross-attention's keys and values
        attention = 2 * tokens * tokens * d + 2 * tokens * text_tokens * d
        return 2.0 * self.layers * (linear + text + attention)

    def lora_flops(self, tokens: int, text_tokens: int, rank: int) -> float:
        """What a LoRA on all linear layers of the blocks, not merged, adds to a forward pass."""
        d, f = self.dim, self.ffn_dim
        inputs = tokens * (6 * 2 * d + 2 * (d + f)) + text_tokens * 2 * 2 * d
        return 2.0 * self.layers * rank * inputs

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


@dataclass(frozen=True)
class Estimate:
    """Seconds that one GPU takes for each part of a configuration."""

    config: Config
    shape: Shape
    gpu: Gpu

    def training(self, run: Run) -> float:
        """A training run, on all of its GPUs together; each reads the base in float32."""
        train = self.config.train
        passes = TRAINING_PASSES + (1 if train.gradient_checkpointing else 0)
        clips = run.iterations[-1] * train.total_batch
        reading = train.nodes * train.processes * self._reading(4 * self.shape.parameters)
        return clips * passes * self._forward(train.dtype, run.rank) + reading

    def sampling_job(self, setting: Setting) -> float:
        """What a job does before its first video: it reads the base, and merges the LoRA into it.

        The base is float32, as Wan-AI's repositories have it.
        """
        merging = 2 * (setting.rank or 0) * self.shape.parameters / MERGING
        return self._reading(4 * self.shape.parameters) + merging

    def video(self, setting: Setting, lora_rank: int | None = None) -> float:
        """A video of a setting, from embeddings to pixels; a Wan-I2V is of the base's size.

        Args:
            lora_rank: of a LoRA that is not merged.
        """
        if setting.steps is None:
            return 0.0  # nothing is sampled
        config = self.config
        section = config.baseline if setting.model == WAN_I2V else config.sample
        passes = setting.steps * (2 if section.guidance_scale > 1 else 1)
        image = ENCODING * config.clip.height * config.clip.width
        pixels = self._seconds(DECODING * _count_pixels(config.clip) + image, "float32")
        return passes * self._forward(config.sample.dtype, lora_rank) + pixels

    def encoding(self, clips: int) -> float:
        """Latents and caption embeddings of clips."""
        return self._seconds(clips * ENCODING * _count_pixels(self.config.clip), "float32") + (
            self.embedding(clips)
        )

    def embedding(self, prompts: int) -> float:
        """Embeddings of prompts, padded to their full length, and reading the text encoder."""
        tokens = self.config.clip.text_tokens
        attention = 2 * TEXT_LAYERS * TEXT_WIDTH * tokens**2
        flops = 2.0 * (TEXT_PARAMETERS * tokens + attention)
        return self._reading(TEXT_BYTES) + self._seconds(prompts * flops, "float32")

    def scoring(self, prompts: dict[str, int]) -> float:
        """All dimensions of the videos of so many prompts of each kind, by VBench."""
        dimensions = sum(SCORED[kind] * number for kind, number in prompts.items())
        return self.config.sample.samples * dimensions * _count_pixels(self.config.clip) / SCORING

    def _forward(self, dtype: str, lora_rank: int | None) -> float:
        clip = self.config.clip
        sizes = _count_tokens(clip), clip.text_tokens
        lora = self.shape.lora_flops(*sizes, lora_rank) if lora_rank else 0
        return self._seconds(self.shape.forward_flops(*sizes) + lora, dtype)

    def _seconds(self, flops: float, dtype: str) -> float:
        return flops / (1e12 * getattr(self.gpu, dtype))

    def _reading(self, size: float) -> float:
        return size / READING


def find_estimate(config: Config) -> Estimate | None:
    """Of a configuration that names a kind of GPU and a model of known sizes; None otherwise."""
    shape = find_shape(config.model)
    if shape is None or config.cost.gpu is None:
        return None
    return Estimate(config, shape, GPUS[config.cost.gpu])


def _count_pixels(clip: Clip) -> int:
    return clip.frames * clip.height * clip.width


def _count_tokens(clip: Clip) -> int:
    side = LATENT_STRIDE * PATCH
    return count_latent_frames(clip.frames) * (clip.height // side) * (clip.width // side)
