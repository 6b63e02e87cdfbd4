"""The paper's baseline, Wan-I2V: sampled through diffusers' own `WanImageToVideoPipeline`."""

from pathlib import Path

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image

from pusa.config import VideoSettings
from pusa.models.folder import check_baseline_folder, loading


def load_baseline(folder: str | Path, dtype: str, device: str) -> WanImageToVideoPipeline:
    """Load an image-to-video model without its text encoder, as prompts come embedded.

    ``dtype`` is the transformer's. VAE and image encoder, where there is one, are float32, as
    diffusers advises for Wan.

    Raises:
        FileNotFoundError: if the folder is missing or incomplete.
        ValueError: if it is of another pipeline, such as text-to-video, or has a second expert.
    """
    check_baseline_folder(folder)
    with loading(folder):
        pipeline = WanImageToVideoPipeline.from_pretrained(
            folder,
            tokenizer=None,
            text_encoder=None,
            use_safetensors=True,
            torch_dtype={"transformer": getattr(torch, dtype), "default": torch.float32},
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def continue_image(
    pipeline: WanImageToVideoPipeline,
    image: np.ndarray,
    noise: torch.Tensor,
    settings: VideoSettings,
    *,
    prompt_embeds: torch.Tensor,
    negative_embeds: torch.Tensor,
) -> np.ndarray:
    """Make one video with the pipeline's own scheduler; the pipeline takes one image at a time.

    Args:
        image: ``uint8`` (height, width, 3), of the video's size.
        noise: N(0, I) in the shape of `pusa.models.load.latent_shape`.
        prompt_embeds: ``(text_tokens, dim)``.
        negative_embeds: likewise; unused with a guidance scale of 1.

    Returns:
        ``uint8`` (frames, height, width, 3).

    Raises:
        FloatingPointError: if the model's output is not finite.
    """
    (video,) = pipeline(
        image=Image.fromarray(image),
        height=settings.height,
        width=settings.width,
        num_frames=settings.frames,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        latents=noise[None],
        prompt_embeds=prompt_embeds[None].to(pipeline.device),
        negative_prompt_embeds=negative_embeds[None].to(pipeline.device),
        output_type="np",
    ).frames
    if not np.isfinite(video).all():
        raise FloatingPointError("the baseline's output is not finite; try float32")
    return (255 * video).round().astype(np.uint8)
