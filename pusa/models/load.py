"""Loading the parts of a text-to-video model from a folder in diffusers' format."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan
from safetensors import safe_open

from pusa.clip import ClipSize, count_latent_frames
from pusa.models.folder import (
    loading,
    read_part,
    require_complete,
    require_files,
    weight_files,
)
from pusa.models.lora import open_merge
from pusa.transformer import VTAWanTransformer3DModel


def load_transformer(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> VTAWanTransformer3DModel:
    """Load a transformer folder (``config.json`` and safetensors) with VTA.

    Tensors go to the device one by one, as eight processes on a node must not hold eight whole
    models in its memory.

    Raises:
        FileNotFoundError: if the folder, its config or a listed shard is missing.
        ValueError: if it is not a transformer's, or lacks a tensor.
    """
    config = read_part(folder, "transformer")
    weight_files(folder)
    with loading(folder):
        check_tensors(folder, config)
        return VTAWanTransformer3DModel.from_pretrained(
            folder,
            torch_dtype=dtype,
            device_map={"": torch.device(device)},
            use_safetensors=True,
        ).eval()


def load_merged(
    folder: str | Path, lora: str | Path, *, lora_scale: float, dtype: torch.dtype
) -> VTAWanTransformer3DModel:
    """Load a transformer folder with a LoRA merged into it, one tensor at a time, on the CPU.

    To the bit what `load_transformer` makes of the folder that `pusa.models.lora.merge_lora`
    writes, without that folder.

    Raises:
        FileNotFoundError, ValueError: as `load_transformer` and `pusa.models.lora.open_merge`.
    """
    config = read_part(folder, "transformer")
    merge = open_merge(folder, lora, lora_scale=lora_scale, dtype=dtype)
    with loading(folder):
        check_tensors(folder, config)
        with init_empty_weights():
            model = VTAWanTransformer3DModel.from_config(config)
    tensors = {name: merge.read(name) for name in model.state_dict()}
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def check_tensors(folder: str | Path, config: dict[str, Any]) -> None:
    """Compare the tensors of a transformer folder with those of the model that its config makes.

    Raises:
        ValueError: that names a tensor which is missing or has another shape.
    """
    with torch.device("meta"):
        model = VTAWanTransformer3DModel.from_config(config)
    found: dict[str, list[int]] = {}
    for file in weight_files(folder):
        with safe_open(file, "pt") as tensors:
            found |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    wrong = [n for n, t in model.state_dict().items() if found.get(n) != list(t.shape)]
    if wrong:
        raise ValueError(
            f"its weights lack {len(wrong)} tensors of the model, or have them in another shape, "
            f"such as {wrong[0]}"
        )


def load_vae(model: str | Path, dtype: torch.dtype = torch.float32) -> AutoencoderKLWan:
    """Load ``vae/`` of a model folder.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if its weights lack a tensor, or its config has not a mean and a standard
            deviation for each latent channel.
    """
    require_files(model, ["vae/config.json"])
    read_part(Path(model) / "vae", "vae")
    with loading(Path(model) / "vae"):
        vae, found = AutoencoderKLWan.from_pretrained(
            model,
            subfolder="vae",
            torch_dtype=dtype,
            output_loading_info=True,
            use_safetensors=True,
        )
    require_complete(Path(model) / "vae", found)
    for key in ("latents_mean", "latents_std"):
        if len(vae.config[key]) != vae.config.z_dim:
            raise ValueError(
                f"{model}/vae/config.json: {key} has {len(vae.config[key])} numbers, expected one "
                f"for each of z_dim {vae.config.z_dim} channels"
            )
    return vae.eval()


def latent_shape(vae: AutoencoderKLWan, size: ClipSize) -> tuple[int, int, int, int]:
    """``(channels, frames, height, width)`` of a clip's latents, and so of its noise."""
    scale = vae.config.scale_factor_spatial
    frames = count_latent_frames(size.frames)
    return vae.config.z_dim, frames, size.height // scale, size.width // scale


def normalise_latents(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Scale each latent channel to zero mean and unit variance, by the VAE's own config."""
    mean, std = _latent_statistics(vae, latents)
    return (latents - mean) / std


def denormalise_latents(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Undo `normalise_latents`."""
    mean, std = _latent_statistics(vae, latents)
    return latents * std + mean


def _latent_statistics(vae: AutoencoderKLWan, latents: torch.Tensor):
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents)
    std = torch.tensor(vae.config.latents_std).view(shape).to(latents)
    return mean, std


def frames_to_pixels(frames: np.ndarray) -> torch.Tensor:
    """``uint8`` (batch, frames, height, width, 3) to [-1, 1] (batch, 3, frames, height, width)."""
    return torch.tensor(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def pixels_to_frames(pixels: torch.Tensor) -> np.ndarray:
    """Undo `frames_to_pixels`, with clamping and rounding.

    Raises:
        FloatingPointError: for pixels that are not finite, which would be black.
    """
    if not pixels.isfinite().all():
        raise FloatingPointError("the VAE's output is not finite; try float32")
    frames = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return frames.permute(0, 2, 3, 4, 1).cpu().numpy()


@torch.no_grad()
def encode_pixels(vae: AutoencoderKLWan, pixels: torch.Tensor) -> torch.Tensor:
    """Encode pixels in [-1, 1], ``(batch, 3, frames, height, width)``, to normalised latents.

    The latents are the posterior's mode: no noise is added, so that a clip always has the
    same latents. ``frames`` is 4k+1; an image is one frame.
    """
    return normalise_latents(vae, vae.encode(pixels).latent_dist.mode().float())


@torch.no_grad()
def decode_latents(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Decode normalised latents to pixels in [-1, 1], ``(batch, 3, frames, height, width)``."""
    return vae.decode(denormalise_latents(vae, latents).to(vae.dtype)).sample.float()
