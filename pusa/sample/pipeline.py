"""The pipeline: prompt and conditions to a video, for every task of the paper.

`PusaPipeline` is diffusers' `WanPipeline` with one timestep per latent frame, and is called as that
is. What diffusers offers for Wan it offers too: offloading, tiling, attention backends, compiling,
LoRAs, callbacks, and the pair of experts of Wan2.2. ``lora_scale`` is as in `pusa.models.lora`.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput

from pusa.clip import ClipSize
from pusa.config import VideoSettings, Weights
from pusa.models.load import decode_latents, latent_shape, load_transformer, load_vae
from pusa.models.lora_formats import open_lora
from pusa.models.text import count_text_tokens, load_text_encoder
from pusa.sample.conditioning import Condition, encode_conditions, make_conditions, read_frames
from pusa.sample.origin import check_size, describe_model
from pusa.sample.scheduler import FrameScheduler, paper_scheduler, set_levels
from pusa.sampler import LowNoiseExpert, model_velocity, sample_latents
from pusa.transformer import VTAWanTransformer3DModel, add_vta

TRANSFORMERS = ("transformer", "transformer_2")
OUTPUT_TYPES = ("np", "pt", "pil", "latent")
PAPER = VideoSettings()


class PusaPipeline(WanPipeline):
    """Makes videos from a prompt and any conditions."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Give VTA to a transformer that is put here; it loses nothing that it could do."""
        model = getattr(value, "_orig_mod", value)  # of a compiled one
        if name in TRANSFORMERS and type(model) is WanTransformer3DModel:
            add_vta(model)
        super().__setattr__(name, value)

    def save_pretrained(self, save_directory: str | Path, **options) -> None:
        """Save as a `WanPipeline`, so that the folder can be used without this package.

        With it, ``PusaPipeline.from_pretrained(folder)`` loads it, or, of ``pipeline.py`` that is
        written there, ``DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder,
        trust_remote_code=True)``.

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
        config = {key: self.config[key] for key in ("boundary_ratio", "expand_timesteps")}
        plain = WanPipeline(**self.components, **config)
        for part in TRANSFORMERS:
            if getattr(self, part) is not None:
                plain.register_to_config(**{part: ("diffusers", "WanTransformer3DModel")})
        plain.save_pretrained(save_directory, **options)
        own = f"from {__name__} import {type(self).__name__}  # noqa: F401\n"
        (Path(save_directory) / "pipeline.py").write_text(own)

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether there is an unconditional pass; `WanPipeline` asks the first expert alone."""
        return max(self._guidance_scale, self._guidance_scale_2 or 1.0) > 1

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int = PAPER.height,
        width: int = PAPER.width,
        num_frames: int = PAPER.frames,
        num_inference_steps: int = PAPER.steps,
        guidance_scale: float = PAPER.guidance_scale,
        guidance_scale_2: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 512,
        *,
        image: Any = None,
        conditions: Sequence[Any] = (),
    ) -> WanPipelineOutput | tuple:
        """Make videos of each prompt (Algorithm 1), all given the same latent frames.

        Arguments and output are `WanPipeline`'s, but for the last two arguments and the defaults,
        which are the paper's 81 frames, 10 steps and guidance 5, at `WanPipeline`'s 832x480; the
        paper's 1280x720 are 2.3 times as many pixels. Levels and steps are the scheduler's:
        `load_pipeline` puts in the paper's, `pusa.sample.scheduler.paper_scheduler`;
        `from_pretrained` keeps the folder's.

        Args:
            latents: noise, ``(videos, channels, latent_frames, height, width)``, of all frames.
            max_sequence_length: or what the tokenizer takes, if that is less.
            image: the first frame, kept clean; one, or a list of one per prompt, each as
                `pusa.sample.conditioning.read_frames` takes it.
            conditions: frames at any place with any noise, of all videos; see
                `pusa.sample.conditioning.make_conditions`. None for text-to-video.

        Returns:
            ``frames`` as ``output_type`` says: ``np`` ``(videos, frames, height, width, 3)`` and
            ``pt`` ``(videos, frames, 3, height, width)`` in [0, 1], ``pil`` a list of images for
            each video, ``latent`` normalised latents.

        Raises:
            ValueError: if an argument is none that `WanPipeline` takes, the model does not divide
                the size, a condition does not fit it, or the scheduler is not of flow matching.
            FileNotFoundError: if an image is missing.
            FloatingPointError: if the model's output is not finite.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        self.check_inputs(
            prompt,
            negative_prompt,
            height,
            width,
            prompt_embeds,
            negative_prompt_embeds,
            callback_on_step_end_tensor_inputs,
            guidance_scale_2,
        )
        self._guidance_scale, self._guidance_scale_2 = guidance_scale, guidance_scale_2
        self._attention_kwargs = attention_kwargs
        self._current_timestep, self._interrupt = None, False
        device = self._execution_device

        # 1. Everything that can be wrong
        size = VideoSettings.read({"frames": num_frames, "height": height, "width": width})
        any_transformer = self.transformer_2 if self.transformer is None else self.transformer
        check_size(size, vae=self.vae.config, transformer=any_transformer.config)
        prompts = 1 if isinstance(prompt, str) else len(prompt_embeds if prompt is None else prompt)
        videos = prompts * num_videos_per_prompt
        if videos < 1:
            raise ValueError(
                f"found {prompts} prompts and num_videos_per_prompt {num_videos_per_prompt}, "
                "expected at least one of each"
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(
                f"output_type: found {output_type!r}, expected one of {', '.join(OUTPUT_TYPES)}"
            )
        given = _conditions_by_prompt(image, conditions, prompts, size)
        sigmas = set_levels(self.scheduler, num_inference_steps, device)
        shape = latent_shape(self.vae, size)
        noise = self.prepare_latents(
            videos, shape[0], height, width, num_frames, torch.float32, device, generator, latents
        )
        if noise.shape != (videos, *shape):
            raise ValueError(
                f"latents have shape {tuple(noise.shape)}, expected {(videos, *shape)}"
            )

        # 2. What is given
        encoded = [encode_conditions(self.vae, these, shape, device=device) for these in given]
        condition = torch.cat([latents for latents, _ in encoded])
        multipliers = encoded[0][1]  # the same of all
        levels = FrameScheduler(self.scheduler, multipliers)
        self._num_timesteps = len(levels.timesteps)

        # 3. Text
        if self.tokenizer is not None:
            max_sequence_length = min(max_sequence_length, count_text_tokens(self.tokenizer))
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt=prompt,
            negative_prompt=negative_prompt,
            do_classifier_free_guidance=self.do_classifier_free_guidance,
            num_videos_per_prompt=num_videos_per_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            max_sequence_length=max_sequence_length,
            device=device,
        )
        texts = {
            "prompt_embeds": _for_each(videos, prompt_embeds, device),
            "negative_prompt_embeds": _for_each(videos, negative_prompt_embeds, device),
        }
        positive = texts["prompt_embeds"]  # which tells the two passes apart

        # 4. The loop
        predicted = {}

        def velocity(transformer, latents, timestep, embeds):
            if self.interrupt:
                return torch.zeros_like(latents)
            name = "cond" if embeds is positive else "uncond"
            if name == "uncond" and not self.do_classifier_free_guidance:
                return predicted["cond"]  # a callback has ended guidance
            time = self._current_timestep = levels.timesteps[levels.index]
            sigma = self.scheduler.sigmas[levels.index]
            # Some schedulers round their timesteps.
            timestep = timestep * (time / (self.scheduler.config.num_train_timesteps * sigma))
            place = {"step_index": levels.index, "sigma": float(sigma)}
            with transformer.cache_context(name, **place, num_inference_steps=num_inference_steps):
                embeds = texts["prompt_embeds" if name == "cond" else "negative_prompt_embeds"]
                ask = model_velocity(transformer, attention_kwargs)
                predicted[name] = ask(latents, timestep, embeds)
            return predicted[name]

        def take_step(latents, prediction, *_):
            if self.interrupt:
                return latents
            step = levels.index
            latents = levels.step(prediction, latents)
            if callback_on_step_end is not None:
                tensors = {"latents": latents, **texts}
                wanted = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                changed = callback_on_step_end(self, step, self._current_timestep, wanted)
                texts.update({name: changed.pop(name, tensor) for name, tensor in texts.items()})
                latents = changed.pop("latents", latents)
            progress.update()
            return latents

        low_noise = None
        if self.config.boundary_ratio is not None:
            second = guidance_scale if guidance_scale_2 is None else guidance_scale_2
            low_noise = LowNoiseExpert(
                velocity=partial(velocity, self.transformer_2),
                boundary=self.config.boundary_ratio,
                guidance_scale=max(second, 1.0),
            )
        with self.progress_bar(total=num_inference_steps) as progress:
            made = sample_latents(
                partial(velocity, self.transformer),
                noise / sigmas[0].item(),  # a scheduler starts from noise, even at a level below 1
                sigmas,
                multipliers=multipliers,
                condition=_for_each(videos, condition, device),
                prompt_embeds=positive,
                negative_embeds=texts["negative_prompt_embeds"],
                guidance_scale=max(guidance_scale, 1.0),
                low_noise=low_noise,
                take_step=take_step,
            )
        self._current_timestep = None
        if not made.isfinite().all():
            raise FloatingPointError(
                "the model's output is not finite; try float32, or a smaller lora_scale"
            )
        if output_type != "latent":
            pixels = decode_latents(self.vae, made)
            made = self.video_processor.postprocess_video(pixels, output_type=output_type)
        self.maybe_free_model_hooks()
        return WanPipelineOutput(frames=made) if return_dict else (made,)


def _conditions_by_prompt(
    image: Any, conditions: Sequence[Any], prompts: int, size: ClipSize
) -> list[list[Condition]]:
    """Conditions of all videos, or of each prompt's if it has an image of its own."""
    if image is None:
        return [make_conditions(conditions, size)]
    images = read_frames(image, "image")
    if len(images) not in (1, prompts):
        raise ValueError(
            f"image: found {len(images)}, expected 1 or one for each of {prompts} prompts"
        )
    return [make_conditions(conditions, size, image=one) for one in images]


def _for_each(
    videos: int, tensor: torch.Tensor | None, device: torch.device | str
) -> torch.Tensor | None:
    """Repeat what there is of each prompt for each of its videos."""
    if tensor is None:
        return None
    if videos % len(tensor):
        raise ValueError(
            f"found {len(tensor)} embeddings, expected a number that divides the {videos} videos"
        )
    return tensor.to(device).repeat_interleave(videos // len(tensor), dim=0)


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
    return PusaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=load_vae(model),
        scheduler=paper_scheduler(PAPER.shift),
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
