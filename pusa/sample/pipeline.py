"""The pipeline: prompt and conditions to a video, for every task of the paper.

`PusaPipeline` is diffusers' `WanPipeline` with one timestep per latent frame. What diffusers
offers for Wan it offers too: offloading, tiling, attention backends, compiling, LoRAs, and the
pair of experts of Wan2.2. ``lora_scale`` is as in `pusa.models.lora`.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

from pusa.config import VideoSettings, Weights
from pusa.models.load import load_transformer, load_vae
from pusa.models.lora_formats import open_lora
from pusa.models.text import check_prompts, count_text_tokens, encode_prompts, load_text_encoder
from pusa.sample.conditioning import Condition, check_conditions
from pusa.sample.frames import Wanted, sample_frames
from pusa.sample.origin import check_size, describe_model
from pusa.sampler import LowNoiseExpert, Velocity, model_velocity
from pusa.transformer import VTAWanTransformer3DModel

#: What `from_pretrained` is told of where files come from.
LOADING = ("cache_dir", "force_download", "local_files_only", "revision", "token")


class PusaPipeline(WanPipeline):
    """Makes videos from a prompt and any conditions."""

    _embeds: Mapping[str, torch.Tensor] = MappingProxyType({})

    @classmethod
    def from_pretrained(cls, model: str | Path, **kwargs) -> "PusaPipeline":
        """Load a text-to-video model as `WanPipeline` does, its transformers with VTA."""
        loading = {key: kwargs[key] for key in LOADING if key in kwargs}
        index = cls.load_config(model, **loading)
        for part in ("transformer", "transformer_2"):
            if part not in kwargs and index.get(part, (None, None))[0]:
                dtype = kwargs.get("torch_dtype", kwargs.get("dtype"))  # its old and its new name
                if isinstance(dtype, dict):
                    dtype = dtype.get(part, dtype.get("default"))
                kwargs[part] = VTAWanTransformer3DModel.from_pretrained(
                    model, subfolder=part, torch_dtype=dtype, **loading
                )
        return super().from_pretrained(model, **kwargs)

    def save_pretrained(self, *arguments, **options) -> None:
        """Save as `WanPipeline` does.

        Raises:
            ValueError: if LoRAs are loaded, with which diffusers would save no whole model.
        """
        for part in (self.transformer, self.transformer_2):
            if names := [*getattr(part, "peft_config", {})]:
                raise ValueError(
                    f"LoRAs are loaded ({', '.join(names)}), which a saved pipeline cannot hold; "
                    "call fuse_lora() and unload_lora_weights() first, or unload_lora_weights() "
                    "alone to save it without them"
                )
        super().save_pretrained(*arguments, **options)

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
        settings: VideoSettings,
        *,
        conditions: Sequence[Condition] = (),
        guidance_scale_2: float | None = None,
        sample: int = 0,
        on_step: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Make a video for each prompt, all from the same conditions (Algorithm 1).

        Args:
            conditions: see `pusa.sample.conditioning`; none for text-to-video.
            guidance_scale_2: of the low-noise expert; as the other's if None.
            sample: decides the noise together with the prompt and the seed.
            on_step: called after each step with its number, from 0.

        Returns:
            ``uint8`` ``(prompts, frames, height, width, 3)``.

        Raises:
            ValueError: if a prompt is empty or too long, the model does not divide the size, a
                condition does not fit it, or a transformer takes no timestep per frame.
            FloatingPointError: if the model's output is not finite.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negative = settings.negative_prompt
        length = count_text_tokens(self.tokenizer)
        check_prompts(self.tokenizer, prompts, length, negative_prompt=negative)
        check_size(settings, vae=self.vae.config, transformer=self.transformer.config)
        check_conditions(conditions, settings)
        velocity, low_noise = _velocity(self.transformer), None
        scales = {settings.guidance_scale}
        if self.transformer_2 is not None and self.config.boundary_ratio is not None:
            low_noise = LowNoiseExpert(
                velocity=_velocity(self.transformer_2),
                boundary=self.config.boundary_ratio,
                guidance_scale=guidance_scale_2 or settings.guidance_scale,
            )
            scales.add(low_noise.guidance_scale)
        guided = scales != {1}
        embeds = self._embed([*prompts, negative] if guided else prompts)
        with self.progress_bar(total=settings.steps) as progress:

            def after_step(step: int) -> None:
                progress.update()
                if on_step:
                    on_step(step)

            video = sample_frames(
                self.vae,
                velocity,
                settings,
                [Wanted(p, sample, conditions, embeds[p]) for p in prompts],
                negative_embeds=embeds[negative] if guided else None,
                device=self._execution_device,
                low_noise=low_noise,
                on_step=after_step,
            )
        self.maybe_free_model_hooks()
        return video

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
    weights: Weights | None = None,
    device: str | torch.device = "cpu",
) -> PusaPipeline:
    """Load a text-to-video folder in diffusers' format, with LoRAs that are not merged.

    Args:
        weights: what takes the place of the model's own, or is added to them, and its precision.
        device: where all of it goes; the CPU, if it is to be offloaded from there.

    Raises:
        FileNotFoundError, ValueError: as `pusa.sample.origin.describe_model`, before any weights
            are loaded.
    """
    weights = weights or Weights()
    origin = describe_model(model, weights)
    dtype = getattr(torch, weights.dtype)
    parts = {}
    for part, loras in (("transformer", weights.loras), ("transformer_2", weights.loras_2)):
        if part in origin:
            folder = getattr(weights, part) or Path(model) / part
            parts[part] = load_transformer(folder, dtype, device)
            add_loras(parts[part], loras)
    tokenizer, text_encoder = load_text_encoder(model, dtype)
    # The sampler is our own; the scheduler is for what diffusers makes of a saved pipeline.
    scheduler = FlowMatchEulerDiscreteScheduler(shift=VideoSettings().shift)
    return PusaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=load_vae(model),
        scheduler=scheduler,
        **parts,
        boundary_ratio=origin.get("boundary_ratio"),
    ).to(device)


def add_loras(
    transformer: VTAWanTransformer3DModel, loras: Iterable[tuple[str | Path, float]]
) -> None:
    """Load LoRAs as adapters of a transformer: ``W + sum of scale * (alpha / rank) * B A``.

    They are stored in the transformer's own precision.
    """
    scales = {}
    for file, scale in loras:
        lora = open_lora(file)
        name = f"lora_{len(scales)}"
        scales[name] = scale
        tensors, ranks, alphas = {}, {}, {}
        for module, parts in lora.modules.items():
            tensors[f"{module}.lora_A.weight"] = lora.tensor(parts.down).to(transformer.dtype)
            tensors[f"{module}.lora_B.weight"] = lora.tensor(parts.up).to(transformer.dtype)
            pattern = f"^{re.escape(module)}"
            ranks[pattern], alphas[pattern] = parts.rank, parts.alpha
            for tensor in (tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"]):
                if not tensor.isfinite().all():
                    raise ValueError(f"{file}: module {module} has values that are not finite")
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
    if scales:
        transformer.set_adapters([*scales], [*scales.values()])


def _velocity(transformer) -> Velocity:
    if not isinstance(transformer, VTAWanTransformer3DModel):
        raise ValueError(
            f"the pipeline's transformer is a {type(transformer).__name__}, expected a "
            "VTAWanTransformer3DModel, which takes a timestep per frame"
        )
    return model_velocity(transformer)
