"""Loading the parts of a text-to-video model from a folder in diffusers' format."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from safetensors import safe_open
from transformers import AutoTokenizer, UMT5EncoderModel

from pusa.model_folder import require_files, weight_files
from pusa.transformer import VTAWanTransformer3DModel

#: Metadata key of merged weights: what was merged into them.
MERGED_KEY = "pusa_merged_lora"


def load_transformer(
    folder: str | Path, dtype: torch.dtype = torch.float32
) -> VTAWanTransformer3DModel:
    """Load a transformer folder (``config.json`` and safetensors) with VTA.

    Raises:
        FileNotFoundError: if the folder, its config or a listed shard is missing.
    """
    require_files(folder, ["config.json"])
    weight_files(folder)
    return VTAWanTransformer3DModel.from_pretrained(folder, torch_dtype=dtype).eval()


def load_vae(model: str | Path, dtype: torch.dtype = torch.float32) -> AutoencoderKLWan:
    """Load ``vae/`` of a model folder."""
    require_files(model, ["vae/config.json"])
    return AutoencoderKLWan.from_pretrained(model, subfolder="vae", torch_dtype=dtype).eval()


def load_text_encoder(model: str | Path, dtype: torch.dtype = torch.float32):
    """Load ``tokenizer/`` and ``text_encoder/`` of a model folder."""
    require_files(model, ["tokenizer", "text_encoder/config.json"])
    tokenizer = AutoTokenizer.from_pretrained(Path(model) / "tokenizer")
    encoder = UMT5EncoderModel.from_pretrained(model, subfolder="text_encoder", dtype=dtype)
    return tokenizer, encoder.eval()


def fingerprint(transformer: str | Path) -> str:
    """Identify a transformer by its weights, without loading them.

    Hashes every tensor's name and shape and the values of the two output-head tensors (in
    bfloat16, so that a float16, bfloat16 or float32 copy of one model has one fingerprint).
    """
    digest = sha256()
    shapes, head = {}, {}
    for file in weight_files(transformer):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():
                shapes[name] = weights.get_slice(name).get_shape()
                if name in ("scale_shift_table", "proj_out.bias"):
                    head[name] = weights.get_tensor(name).to(torch.bfloat16)
    for name in sorted(shapes):
        digest.update(f"{name}{shapes[name]}".encode())
    for name in sorted(head):
        digest.update(head[name].view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


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
    """Undo `frames_to_pixels`, with clamping and rounding."""
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


@torch.no_grad()
def encode_prompts(tokenizer, encoder, prompts: list[str], length: int) -> torch.Tensor:
    """Embed prompts to ``(len(prompts), length, dim)``; padding is zero, as Wan was trained.

    Raises:
        ValueError: if a prompt has more than ``length`` tokens.
    """
    cleaned = [prompt_clean(prompt) for prompt in prompts]
    tokens = tokenizer(cleaned, padding=True, add_special_tokens=True, return_tensors="pt")
    counts = tokens.attention_mask.sum(1)
    for prompt, count in zip(prompts, counts.tolist(), strict=True):
        if count > length:
            raise ValueError(f"prompt has {count} tokens, at most {length} fit: {prompt[:80]!r}")
    hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    hidden = hidden * tokens.attention_mask[..., None]
    padded = hidden.new_zeros(len(prompts), length, hidden.shape[-1])
    padded[:, : hidden.shape[1]] = hidden
    return padded
