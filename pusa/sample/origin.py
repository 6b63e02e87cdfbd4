"""What identifies the model that a video comes from, told without loading its weights.

Everything that can be wrong with the files, and shows without loading them, is found here.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pusa.clip import ClipSize, count_latent_frames
from pusa.config import Weights
from pusa.digests import digest_folder
from pusa.models.folder import (
    PARTS,
    check_baseline_folder,
    digest_weights,
    has_part,
    read_json,
    read_part,
    require_files,
    weight_files,
)
from pusa.models.lora import digest_lora, fit_lora, lora_info, read_merged
from pusa.models.lora_formats import open_lora


def describe_model(model: str | Path, weights: Weights) -> dict[str, Any]:
    """What identifies a text-to-video model with some weights, for a video's metadata.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the model is not text-to-video, a LoRA does not fit its transformer or is
            applied twice, or the low-noise expert that one is for, or its boundary, is missing.
    """
    model = Path(model)
    require_files(model, list(PARTS))
    index = read_json(model / "model_index.json")
    has_pair = has_part(model, "transformer_2") or weights.transformer_2 is not None
    if weights.loras_2 and not has_pair:
        raise ValueError(
            f"{weights.loras_2[0][0]} is given for the low-noise expert, but {model} has no "
            "transformer_2"
        )
    boundary = index.get("boundary_ratio")
    if has_pair and not (isinstance(boundary, float) and 0 < boundary < 1):
        raise ValueError(
            f"{model}/model_index.json: boundary_ratio of a pair of experts is {boundary!r}, "
            "expected a number between 0 and 1"
        )
    folder = Path(weights.transformer or model / "transformer")
    origin = {
        "model": model.resolve().name,
        "vae": digest_folder(model / "vae"),
        "dtype": weights.dtype,
        "transformer": _describe_transformer(folder, weights.loras),
    }
    if has_pair:
        folder = Path(weights.transformer_2 or model / "transformer_2")
        origin["transformer_2"] = _describe_transformer(folder, weights.loras_2)
        origin["boundary_ratio"] = boundary
    return origin


def describe_baseline(folder: str | Path, dtype: str) -> dict[str, Any]:
    """The same of an image-to-video model for diffusers' own pipeline.

    Raises:
        FileNotFoundError, ValueError: as `pusa.models.folder.check_baseline_folder`.
    """
    folder = Path(folder)
    check_baseline_folder(folder)
    encoder = folder / "image_encoder"
    return {
        "model": folder.resolve().name,
        "vae": digest_folder(folder / "vae"),
        "dtype": dtype,
        "baseline": digest_weights(folder / "transformer"),
        "scheduler": digest_folder(folder / "scheduler"),
        "image_encoder": digest_folder(encoder) if encoder.is_dir() else None,
        "shift": None,  # the scheduler has its own
    }


def _describe_transformer(folder: Path, loras: Iterable[tuple[Path, float]]) -> dict[str, Any]:
    config = read_part(folder, "transformer")
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
                "file": file.name,
                "sha256": digest,
                "lora_scale": scale,
                "vectorized": lora_info(lora).vectorized,
            }
        )
    return {"weights": digest_weights(folder), "merged": merged, "loras": described}


def check_size(size: ClipSize, *, vae: Mapping[str, Any], transformer: Mapping[str, Any]) -> None:
    """Check that the VAE and the patches divide a size, and that the transformer can place it.

    Args:
        vae, transformer: their configs.

    Raises:
        ValueError: that names the nearest sizes.
    """
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
    places = transformer.get("rope_max_seq_len", 1024)  # in each direction
    needed = {
        "frames": count_latent_frames(size.frames),
        "height": size.height // factors[0],
        "width": size.width // factors[1],
    }
    for name, count in needed.items():
        if count > places:
            raise ValueError(
                f"{name}: found {getattr(size, name)}, which are {count} patches, expected at most "
                f"{places}, the transformer's rope_max_seq_len"
            )
