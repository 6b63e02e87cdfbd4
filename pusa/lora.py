"""LoRA files: writing, reading, and merging into a transformer.

Tensors have diffusers' names, ``transformer.blocks.0.attn1.to_q.lora_A.weight``, so that
`WanPipeline.load_lora_weights` reads a file as it is. The safetensors metadata says how it
was trained and on which base.

``lora_alpha`` is PEFT's training constant (here always the rank). ``lora_scale`` is the
multiplier at merging, which the paper's tables call alpha: ``W + lora_scale * B A``.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from pusa.model_folder import require_files, weight_files

METADATA_KEY = "pusa"
PREFIX = "transformer."
#: Metadata key of merged weights: what was merged into them.
MERGED_KEY = "pusa_merged_lora"


@dataclass(frozen=True, kw_only=True)
class LoraInfo:
    """How a LoRA was trained; stored in its file."""

    rank: int
    lora_alpha: int
    targets: tuple[str, ...]
    base: str  # fingerprint of the transformer
    iteration: int
    p_async: float
    vectorized: bool  # trained with a timestep per frame; without, it is not image-to-video


def save_lora(file: str | Path, tensors: dict[str, torch.Tensor], info: LoraInfo) -> None:
    """Write a LoRA; ``tensors`` has PEFT's names, ``blocks.0.attn1.to_q.lora_A.weight``."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    # diffusers looks for rank and alpha under this key, prefixed like the tensors.
    adapter = {"r": info.rank, "lora_alpha": info.lora_alpha, "target_modules": info.targets}
    metadata = {
        "format": "pt",
        METADATA_KEY: json.dumps(asdict(info)),
        "lora_adapter_metadata": json.dumps({PREFIX + k: v for k, v in adapter.items()}),
    }
    partial = file.with_name(f".partial-{file.name}")
    save_file({PREFIX + k: v.contiguous().cpu() for k, v in tensors.items()}, partial, metadata)
    os.replace(partial, file)


def read_lora(file: str | Path) -> tuple[dict[str, torch.Tensor], LoraInfo]:
    """Read what `save_lora` wrote; tensor names without the prefix.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a LoRA of ours, or is damaged.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"LoRA {file} does not exist")
    try:
        with safe_open(file, framework="pt") as weights:
            metadata = weights.metadata() or {}
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a readable safetensors file ({error})") from None
    if METADATA_KEY not in metadata:
        raise ValueError(f"{file} has no {METADATA_KEY!r} metadata; expected a LoRA trained here")
    fields = json.loads(metadata[METADATA_KEY])
    info = LoraInfo(**{**fields, "targets": tuple(fields["targets"])})
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}, info


def merge_lora(base: str | Path, lora: str | Path, out: str | Path, *, lora_scale: float) -> None:
    """Write ``W + lora_scale * (lora_alpha / rank) * B A`` as a transformer folder.

    Shards are read and written one at a time; arithmetic is float32 and every tensor keeps
    its storage type. The result says in its metadata what was merged.

    Raises:
        ValueError: if the LoRA was trained on another base, the base already has one merged
            into it, or a LoRA tensor finds no weight.
    """
    base, out = Path(base), Path(out)
    require_files(base, ["config.json"])
    tensors, info = read_lora(lora)
    found = fingerprint(base)
    if info.base != found:
        raise ValueError(
            f"{lora} was trained on the base {info.base}, but {base} is {found}; "
            "a LoRA fits only the model that it was trained on"
        )
    merged = read_merged(base)
    if merged:
        raise ValueError(f"{base} already holds a merged LoRA ({merged}); merge into the original")

    unused = {name.rsplit(".lora_", 1)[0] for name in tensors}
    unknown = {f"{module}.weight" for module in unused} - tensor_names(base)
    if unknown:
        raise ValueError(
            f"{lora}: {len(unknown)} of {len(unused)} modules are not in {base}, such as "
            f"{min(unknown)}"
        )
    scale = lora_scale * info.lora_alpha / info.rank
    record = {"sha256": _digest_tensors(tensors), "lora_scale": lora_scale}
    metadata = {"format": "pt", MERGED_KEY: json.dumps(record)}
    out.mkdir(parents=True, exist_ok=True)
    for file in weight_files(base):
        shard = load_file(file)
        for module in list(unused):
            name = f"{module}.weight"
            if name in shard:
                down = tensors[f"{module}.lora_A.weight"].float()
                up = tensors[f"{module}.lora_B.weight"].float()
                weight = shard[name]
                shard[name] = (weight.float() + scale * (up @ down)).to(weight.dtype)
                unused.remove(module)
        save_file(shard, out / file.name, metadata)
    for extra in base.glob("*.json"):
        shutil.copyfile(extra, out / extra.name)


def read_merged(transformer: str | Path) -> dict:
    """What was merged into a transformer folder: empty for a base model."""
    with safe_open(weight_files(transformer)[0], framework="pt") as weights:
        return json.loads((weights.metadata() or {}).get(MERGED_KEY, "{}"))


def fingerprint(transformer: str | Path) -> str:
    """Identify a transformer by its weights, without loading them.

    Hashes every tensor's name and shape and the signs of the two output-head tensors: signs
    are as peculiar to a training as values, but a copy in another float type keeps them.
    """
    digest = sha256()
    shapes, head = {}, {}
    for file in weight_files(transformer):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (a handle, not a dict)
                shapes[name] = weights.get_slice(name).get_shape()
                if name in ("scale_shift_table", "proj_out.bias"):
                    head[name] = torch.signbit(weights.get_tensor(name))
    for name in sorted(shapes):
        digest.update(f"{name}{shapes[name]}".encode())
    for name in sorted(head):
        digest.update(head[name].numpy().tobytes())
    return digest.hexdigest()[:16]


def tensor_names(transformer: str | Path) -> set[str]:
    """Names of all tensors of a transformer folder."""
    names = set()
    for file in weight_files(transformer):
        with safe_open(file, framework="pt") as weights:
            names.update(weights.keys())
    return names


def _digest_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """Of names and values; a file's own bytes vary, as safetensors shuffles its metadata."""
    digest = sha256()
    for name in sorted(tensors):
        digest.update(
            name.encode() + tensors[name].contiguous().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
