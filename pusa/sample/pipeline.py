"""The pipeline: prompt and conditions to a video, for every task of the paper.

`PusaPipeline` is diffusers' `WanPipeline` with one timestep per latent frame. What diffusers
offers for Wan it offers too: offloading, tiling, attention backends, compiling, LoRAs, and the
pair of experts of Wan2.2. ``lora_scale`` is as in `pusa.models.lora`.
"""

import json
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

from pusa.clip import ClipSize, count_latent_frames
from pusa.flow import sigma_grid
from pusa.models.folder import digest_files, require_files, weight_files
from pusa.models.load import (
    decode_latents,
    latent_shape,
    load_transformer,
    load_vae,
    pixels_to_frames,
)
from pusa.models.lora import digest_lora, fingerprint, fit_lora, lora_info, read_merged
from pusa.models.lora_formats import open_lora
from pusa.models.text import check_prompts, count_text_tokens, encode_prompts, load_text_encoder
from pusa.sample.conditioning import Condition, check_conditions, encode_conditions
from pusa.sampler import LowNoiseExpert, model_velocity, noise_for, sample_latents
from pusa.transformer import VTAWanTransformer3DModel

#: LoRA files and the lora_scale of each.
Loras = Sequence[tuple[str | Path, float]]

PARTS = (
    "model_index.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "vae/config.json",
)
#: What `from_pretrained` is told of where files come from.
LOADING = ("cache_dir", "force_download", "local_files_only", "revision", "token")


class PusaPipeline(WanPipeline):
    """Makes videos from a prompt and any conditions."""

    #: What `describe_model` says of the files that it was loaded from.
    origin: Mapping[str, Any] = MappingProxyType({})
    _embeds: Mapping[str, torch.Tensor] = MappingProxyType({})

    @classmethod
    def from_pretrained(cls, model: str | Path, **kwargs) -> "PusaPipeline":
        """Load a text-to-video model as `WanPipeline` does, its transformers with VTA."""
        loading = {key: kwargs[key] for key in LOADING if key in kwargs}
        index = cls.load_config(model, **loading)
        for part in ("transformer", "transformer_2"):
            if part not in kwargs and index.get(part, (None, None))[0]:
                dtype = kwargs.get("torch_dtype")
                if isinstance(dtype, dict):
                    dtype = dtype.get(part, dtype.get("default"))
                kwargs[part] = VTAWanTransformer3DModel.from_pretrained(
                    model, subfolder=part, torch_dtype=dtype, **loading
                )
        return super().from_pretrained(model, **kwargs)

    def register_modules(self, **modules) -> None:
        """Name the transformers as diffusers' own in a saved ``model_index.json``."""
        super().register_modules(**modules)
        for part in ("transformer", "transformer_2"):
            if modules.get(part) is not None:
                self.register_to_config(**{part: ("diffusers", "WanTransformer3DModel")})

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        *,
        size: ClipSize,
        conditions: Sequence[Condition] = (),
        steps: int = 10,
        shift: float = 5.0,
        guidance_scale: float = 3.0,
        guidance_scale_2: float | None = None,
        negative_prompt: str = "",
        seed: int = 0,
        sample: int = 0,
        on_step: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Make a video for each prompt, all from the same conditions (Algorithm 1).

        Args:
            conditions: see `pusa.sample.conditioning`; none for text-to-video.
            shift: of the sigma grid.
            guidance_scale: 1 skips the unconditional pass.
            guidance_scale_2: of the low-noise expert; as ``guidance_scale`` if None.
            seed: decides the noise together with the prompt and ``sample``.
            on_step: called after each step with its number, from 0.

        Returns:
            ``uint8`` ``(prompts, frames, height, width, 3)``.

        Raises:
            ValueError: if a prompt is empty or too long, the model does not divide the size, a
                condition does not fit it, or a transformer takes no timestep per frame.
            FloatingPointError: if the model's output is not finite.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        length = count_text_tokens(self.tokenizer)
        check_prompts(self.tokenizer, prompts, length, negative_prompt=negative_prompt)
        check_size(size, vae=self.vae.config, transformer=self.transformer.config)
        check_conditions(conditions, size)
        low_noise = self._low_noise_expert(
            guidance_scale if guidance_scale_2 is None else guidance_scale_2
        )

        device = self._execution_device
        guided = guidance_scale != 1 or (low_noise is not None and low_noise.guidance_scale != 1)
        embeds = self._embed([*prompts, negative_prompt] if guided else prompts)
        negative = None
        if guided:
            negative = embeds[negative_prompt].to(device).expand(len(prompts), -1, -1)
        shape = latent_shape(self.vae, size)
        condition, multipliers = encode_conditions(self.vae, conditions, shape, device=device)
        noise = torch.stack([noise_for(seed, p, sample, shape) for p in prompts])
        with self.progress_bar(total=steps) as progress:

            def after_step(step: int) -> None:
                progress.update()
                if on_step:
                    on_step(step)

            latents = sample_latents(
                model_velocity(_vectorized(self.transformer)),
                noise.to(device),
                sigma_grid(steps, shift),
                multipliers=multipliers,
                condition=condition.to(device).expand_as(noise),
                prompt_embeds=torch.stack([embeds[p] for p in prompts]).to(device),
                negative_embeds=negative,
                guidance_scale=guidance_scale,
                low_noise=low_noise,
                on_step=after_step,
            )
        if not latents.isfinite().all():
            raise FloatingPointError(
                "the model's output is not finite; try float32, or a smaller lora_scale"
            )
        video = pixels_to_frames(decode_latents(self.vae, latents))
        self.maybe_free_model_hooks()
        return video

    def _low_noise_expert(self, guidance_scale: float) -> LowNoiseExpert | None:
        if self.transformer_2 is None or self.config.boundary_ratio is None:
            return None
        return LowNoiseExpert(
            velocity=model_velocity(_vectorized(self.transformer_2)),
            boundary=self.config.boundary_ratio,
            guidance_scale=guidance_scale,
        )

    def _embed(self, prompts: list[str]) -> Mapping[str, torch.Tensor]:
        """Embeddings by prompt; those of the call before are not made again."""
        length = count_text_tokens(self.tokenizer)
        self._embeds = {
            # One by one, as the last bits depend on what a prompt is encoded with.
            prompt: self._embeds[prompt]
            if prompt in self._embeds
            else encode_prompts(self.tokenizer, self.text_encoder, [prompt], length)[0].cpu()
            for prompt in prompts
        }
        return self._embeds


def load_pipeline(
    model: str | Path,
    *,
    transformer: str | Path | None = None,
    transformer_2: str | Path | None = None,
    loras: Loras = (),
    loras_2: Loras = (),
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> PusaPipeline:
    """Load a text-to-video folder in diffusers' format, with LoRAs that are not merged.

    Args:
        transformer: folder to take instead of the model's own, such as a merged one.
        transformer_2: the same for the low-noise expert of Wan2.2.
        loras: files of any format and their scales; several add up.
        loras_2: for the low-noise expert.
        dtype: of the transformers and the text encoder; the VAE computes in float32.
        device: where all of it goes; the CPU, if it is to be offloaded from there.

    Raises:
        FileNotFoundError, ValueError: as `describe_model`, before any weights are loaded.
    """
    origin = describe_model(
        model,
        transformer=transformer,
        transformer_2=transformer_2,
        loras=loras,
        loras_2=loras_2,
        dtype=dtype,
    )
    parts = {}
    for part, folder, files in (
        ("transformer", transformer, loras),
        ("transformer_2", transformer_2, loras_2),
    ):
        if part in origin:
            parts[part] = load_transformer(folder or Path(model) / part, dtype, device)
            add_loras(parts[part], files)
    tokenizer, text_encoder = load_text_encoder(model, dtype)
    pipeline = PusaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=load_vae(model),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),  # not used; the sampler is our own
        **parts,
        boundary_ratio=origin.get("boundary_ratio"),
    )
    pipeline.origin = origin
    return pipeline.to(device)


def add_loras(transformer: VTAWanTransformer3DModel, loras: Loras) -> None:
    """Load LoRAs as adapters of a transformer: ``W + sum of scale * (alpha / rank) * B A``.

    They are stored in the transformer's own precision.
    """
    names = []
    for file, _ in loras:
        lora = open_lora(file)
        name = f"lora_{len(names)}"
        tensors, ranks, alphas = {}, {}, {}
        for module, parts in lora.modules.items():
            tensors[f"{module}.lora_A.weight"] = lora.tensor(parts.down).to(transformer.dtype)
            tensors[f"{module}.lora_B.weight"] = lora.tensor(parts.up).to(transformer.dtype)
            pattern = f"^{re.escape(module)}"
            ranks[pattern], alphas[pattern] = parts.rank, parts.alpha
        config = {"target_modules": [*lora.modules], "rank_pattern": ranks, "alpha_pattern": alphas}
        with warnings.catch_warnings():
            # Several LoRAs are meant to be there.
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
            transformer.load_lora_adapter(
                tensors, prefix=None, adapter_name=name, metadata=config, low_cpu_mem_usage=True
            )
        # diffusers only warns of tensors that it has no place for.
        adapters = [n for n, _ in transformer.named_parameters() if n.endswith(f".{name}.weight")]
        if len(adapters) != len(tensors):
            raise ValueError(f"{file}: {len(adapters)} of its {len(tensors)} tensors found a place")
        names.append(name)
    if names:
        transformer.set_adapters(names, [scale for _, scale in loras])


def describe_model(
    model: str | Path,
    *,
    transformer: str | Path | None = None,
    transformer_2: str | Path | None = None,
    loras: Loras = (),
    loras_2: Loras = (),
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """What identifies the files of a model, for a video's metadata; no weights are loaded.

    Everything that can be wrong with the files, and shows without loading them, is found here.
    Arguments are those of `load_pipeline`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the model is not text-to-video, a LoRA does not fit its transformer or is
            applied twice, or the low-noise expert that one is for, or its boundary, is missing.
    """
    model = Path(model)
    require_files(model, list(PARTS))
    index = json.loads((model / "model_index.json").read_text())
    has_pair = bool(index.get("transformer_2", [None])[0]) or transformer_2 is not None
    if loras_2 and not has_pair:
        raise ValueError(
            f"{loras_2[0][0]} is given for the low-noise expert, but {model} has no transformer_2"
        )
    if has_pair and index.get("boundary_ratio") is None:
        raise ValueError(
            f"{model}/model_index.json has no boundary_ratio, which a pair of experts needs"
        )
    origin = {
        "model": model.resolve().name,
        "vae": digest_files(model / "vae"),
        "dtype": str(dtype).removeprefix("torch."),
        "transformer": _describe_transformer(Path(transformer or model / "transformer"), loras),
    }
    if has_pair:
        folder = Path(transformer_2 or model / "transformer_2")
        origin["transformer_2"] = _describe_transformer(folder, loras_2)
        origin["boundary_ratio"] = index["boundary_ratio"]
    return origin


def _describe_transformer(folder: Path, loras: Loras) -> dict[str, Any]:
    config = read_config(folder)
    weight_files(folder)
    if config["in_channels"] != config["out_channels"]:
        raise ValueError(
            f"{folder} takes {config['in_channels']} channels and gives "
            f"{config['out_channels']}, expected a text-to-video model, which gives what it takes"
        )
    merged = read_merged(folder)
    applied = {merged["sha256"]: f"merged into {folder}"} if merged else {}
    described = []
    for file, scale in loras:
        if not math.isfinite(scale):
            raise ValueError(f"lora_scale of {file} is {scale}, expected a finite number")
        lora = open_lora(file)
        fit_lora(lora, folder)
        digest = digest_lora(lora)
        if digest in applied:
            raise ValueError(f"{file} would be applied twice, it is {applied[digest]} already")
        applied[digest] = f"given as {file}"
        described.append(
            {
                "file": Path(file).name,
                "sha256": digest,
                "lora_scale": scale,
                "vectorized": lora_info(lora).vectorized,
            }
        )
    return {"weights": fingerprint(folder), "merged": merged, "loras": described}


def read_config(folder: str | Path) -> dict[str, Any]:
    """``config.json`` of one part of a model folder."""
    require_files(folder, ["config.json"])
    return json.loads((Path(folder) / "config.json").read_text())


def check_size(size: ClipSize, *, vae: Mapping[str, Any], transformer: Mapping[str, Any]) -> None:
    """Check that the VAE and the patches divide a size; ``vae`` and so on are their configs.

    Raises:
        ValueError: that names the nearest sizes, or if the frames are not 4k+1.
    """
    count_latent_frames(size.frames)
    scale = vae.get("scale_factor_spatial", 8)  # Wan2.1's config is older than the key
    factors = [scale * patch for patch in transformer["patch_size"][1:]]
    for name, pixels, factor in zip(
        ("height", "width"), (size.height, size.width), factors, strict=True
    ):
        if pixels < factor or pixels % factor:
            below = max(1, pixels // factor) * factor
            raise ValueError(
                f"{name} must be a multiple of {factor}, which the VAE and the patches divide, "
                f"found {pixels}; {below} and {below + factor} are the nearest"
            )


def _vectorized(transformer) -> VTAWanTransformer3DModel:
    if not isinstance(transformer, VTAWanTransformer3DModel):
        raise ValueError(
            f"the pipeline's transformer is a {type(transformer).__name__}, expected a "
            "VTAWanTransformer3DModel, which takes a timestep per frame"
        )
    return transformer
