"""The LoRA files in use for Wan transformers: whose tensor is whose, and how strong.

| format | a tensor's name | alpha |
|---|---|---|
| ``diffusers``, ours too | ``transformer.blocks.0.attn1.to_q.lora_A.weight`` | metadata |
| ``authors`` | ``blocks.0.self_attn.q.lora_A.default.weight`` | always the rank |
| ``comfy`` | ``diffusion_model.blocks.0.self_attn.q.lora_A.weight`` | a tensor ``….alpha`` |
| ``musubi`` | ``lora_unet_blocks_0_self_attn_q.lora_down.weight`` | a tensor ``….alpha`` |

A file may leave out the prefix ``transformer.`` or the infix ``.default``, have PEFT's own prefix
``base_model.model.``, and say ``lora_down`` for ``lora_A`` and ``lora_up`` for ``lora_B``. Where
it gives no alpha, alpha is the rank. A LoRA adds ``alpha / rank * B A`` to a weight, A of shape
(rank, in_features) and B of shape (out_features, rank). Modules have diffusers' names wherever a
format is not named.
"""

import json
import math
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from pusa.models.stream import TensorLayout, read_header, read_tensor

Format = Literal["diffusers", "authors", "comfy", "musubi"]
#: Formats that are written, and the name of a tensor: its module's, and A or B.
EXPORTS: dict[str, str] = {
    "diffusers": "transformer.{}.lora_{}.weight",
    "authors": "{}.lora_{}.default.weight",
    "comfy": "diffusion_model.{}.lora_{}.weight",
}
#: Metadata key under which diffusers looks for PEFT's config, its keys prefixed like tensors.
ADAPTER_KEY = "lora_adapter_metadata"
PREFIX = "transformer."
PYTORCH = (".pt", ".pth", ".bin", ".ckpt")

_ATTENTION = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
}
#: diffusers' names and the original ones, within a block and outside of blocks.
_BLOCK = {
    **{f"attn1.{ours}": f"self_attn.{wan}" for ours, wan in _ATTENTION.items()},
    **{f"attn2.{ours}": f"cross_attn.{wan}" for ours, wan in _ATTENTION.items()},
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm3",
    "scale_shift_table": "modulation",
}
_OUTSIDE = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
    "scale_shift_table": "head.modulation",
}


def _inverse(names: dict[str, str], separator: str = ".") -> dict[str, str]:
    return {wan.replace(".", separator): ours for ours, wan in names.items()}


def to_wan(module: str) -> str | None:
    """The original name of what diffusers calls ``module``, or None."""
    return _rename(module, _BLOCK, _OUTSIDE)


def from_wan(module: str) -> str | None:
    """The name that diffusers gives what the original model calls ``module``, or None."""
    return _rename(module, _inverse(_BLOCK), _inverse(_OUTSIDE))


def _from_musubi(module: str) -> str | None:
    return _rename(module, _inverse(_BLOCK, "_"), _inverse(_OUTSIDE, "_"), "_")


def _rename(module: str, block: dict, outside: dict, separator: str = ".") -> str | None:
    inside = re.fullmatch(rf"blocks{re.escape(separator)}(\d+){re.escape(separator)}(.+)", module)
    if inside is None:
        return outside.get(module)
    name = block.get(inside[2])
    return name and f"blocks.{inside[1]}.{name}"


class _Key(NamedTuple):
    format: Format
    prefix: str
    module: str
    part: Literal["A", "B", "alpha"]


_KEY = re.compile(
    r"(?P<prefix>transformer\.|diffusion_model\.|lora_unet_|base_model\.model\.|)"
    r"(?P<module>.+?)"
    r"\.(?:lora_(?P<side>A|B|down|up)(?:\.default)?\.weight|alpha)"
)
_SIDES = {"A": "A", "down": "A", "B": "B", "up": "B", None: "alpha"}


def _parse(name: str) -> _Key | None:
    """Read a tensor's name; None if it fits no format."""
    match = _KEY.fullmatch(name)
    if match is None:
        return None
    prefix, module, part = match["prefix"], match["module"], _SIDES[match["side"]]
    if prefix == "lora_unet_":
        kind, ours = "musubi", _from_musubi(module)
    elif prefix == "diffusion_model.":
        kind, ours = "comfy", from_wan(module)
    elif prefix == PREFIX or to_wan(module):
        kind, ours = "diffusers", to_wan(module) and module
    else:
        kind, ours = "authors", from_wan(module)
    if ours is None or (part == "alpha" and kind in ("diffusers", "authors")):
        return None
    return _Key(kind, prefix, ours, part)


@dataclass(frozen=True)
class LoraModule:
    """What a LoRA adds to one weight, and which of the file's tensors hold it."""

    down: str  # A, (rank, in_features)
    up: str  # B, (out_features, rank)
    rank: int
    alpha: float
    shape: tuple[int, int]  # of the weight: (out_features, in_features)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file's header; its tensors are read on demand, in bounded memory."""

    file: Path
    format: Format
    modules: dict[str, LoraModule]
    layout: dict[str, TensorLayout]
    metadata: dict[str, str]

    @property
    def rank(self) -> int:
        """The rank; the largest, should the modules' differ."""
        return max(module.rank for module in self.modules.values())

    def tensor(self, name: str) -> torch.Tensor:
        """Read a tensor by its name in the file."""
        return _read_tensor(self.file, name)


def open_lora(file: str | Path) -> LoraFile:
    """Read the header of a LoRA of any of the formats, told apart by its tensors' names.

    ``.pt``, ``.pth``, ``.bin`` and ``.ckpt`` are read as PyTorch's, weights only; anything else as
    safetensors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, of no known format or of two, or a module is not whole.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"LoRA {file} does not exist")
    if file.suffix in PYTORCH:
        metadata = {}
        layout = {n: TensorLayout(t.dtype, tuple(t.shape)) for n, t in _load_pt(file).items()}
    else:
        layout, metadata = read_header(file)
    if not layout:
        raise ValueError(f"{file} holds no tensors, expected a LoRA")

    first, parts = None, {}
    for name in sorted(layout):
        key = _parse(name)
        if key is None:
            raise ValueError(
                f"{file}: tensor {name} is not of a LoRA in a known format (diffusers, authors, "
                "comfy, musubi) on Wan's modules"
            )
        first = first or (key, name)
        if (key.format, key.prefix) != (first[0].format, first[0].prefix):
            raise ValueError(
                f"{file}: tensor {name} does not fit the {first[0].format} format of {first[1]}"
            )
        previous = parts.setdefault(key.module, {}).setdefault(key.part, name)
        if previous != name:
            raise ValueError(f"{file}: tensors {previous} and {name} are for the same module")

    kind = first[0].format
    config = _adapter_config(file, metadata) if kind == "diffusers" else {}
    modules = {name: _module(file, name, parts[name], layout, config) for name in sorted(parts)}
    return LoraFile(file, kind, modules, layout, metadata)


def require_whole(lora: LoraFile) -> None:
    """Refuse a LoRA in which a block lacks what another has: parts of it must have got lost.

    Raises:
        ValueError: that names a module which is not there.
    """
    blocks, kinds = set(), set()
    for name in lora.modules:
        if inside := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
            blocks.add(int(inside[1]))
            kinds.add(inside[2])
    # A number that no model has must not be counted up to.
    last = min(max(blocks, default=-1), len(blocks))
    wanted = {f"blocks.{n}.{kind}" for n in range(last + 1) for kind in kinds}
    if missing := sorted(wanted - set(lora.modules)):
        raise ValueError(
            f"{lora.file} lacks {len(missing)} of {len(wanted)} modules, such as {missing[0]}, "
            "which other blocks have; expected a whole LoRA"
        )


def _module(file: Path, name: str, parts: dict, layout: dict, config: dict) -> LoraModule:
    """Put a module's tensors together, and check that they belong together."""
    for side in "AB":
        if side not in parts:
            raise ValueError(f"{file}: {min(parts.values())} has no lora_{side} beside it")
        dtype, shape = layout[parts[side]]
        if len(shape) != 2 or 0 in shape or not dtype.is_floating_point:
            raise ValueError(
                f"{file}: tensor {parts[side]} has shape {list(shape)} and type {dtype}, "
                "expected two dimensions and a floating-point type"
            )
    down, up = layout[parts["A"]].shape, layout[parts["B"]].shape
    if down[0] != up[1]:
        raise ValueError(
            f"{file}: module {name} has rank {down[0]} in lora_A {list(down)} but {up[1]} in "
            f"lora_B {list(up)}"
        )
    rank = down[0]
    alpha = _by_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", rank))
    if "alpha" in parts:
        value = _read_tensor(file, parts["alpha"])
        alpha = value.item() if value.numel() == 1 else math.nan
    if not isinstance(alpha, int | float) or not abs(alpha) < 1e30:
        raise ValueError(f"{file}: module {name} has alpha {alpha}, expected one finite number")
    alpha = int(alpha) if alpha == int(alpha) else alpha
    return LoraModule(parts["A"], parts["B"], rank, alpha, (up[0], down[1]))


def _adapter_config(file: Path, metadata: dict[str, str]) -> dict:
    """PEFT's config in a file of diffusers; empty if there is none."""
    try:
        config = json.loads(metadata.get(ADAPTER_KEY, "{}"))
        config = {key.removeprefix(PREFIX): value for key, value in config.items()}
        patterns = dict(config.get("alpha_pattern") or {})
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise ValueError(f"{file}: metadata {ADAPTER_KEY!r} is not PEFT's config as JSON") from None
    for pattern in patterns:
        # PEFT allows any regular expression, of which some take for ever.
        if not re.fullmatch(r"\^?(?:[\w.]|\\\.)+", pattern):
            raise ValueError(f"{file}: alpha_pattern has {pattern!r}, expected a module's name")
    for option in ("use_dora", "use_rslora"):
        if config.get(option):
            raise ValueError(f"{file} is a LoRA with PEFT's {option}, expected one without")
    return config


def _by_pattern(patterns: dict[str, float] | None, module: str, default: float) -> float:
    """Look a module up as PEFT does: a pattern is a regular expression for a name's end."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _read_tensor(file: Path, name: str) -> torch.Tensor:
    # Loaded anew for each tensor: pages of a mapping stay in memory as long as it does.
    return _load_pt(file)[name] if file.suffix in PYTORCH else read_tensor(file, name)


def _load_pt(file: Path) -> dict[str, torch.Tensor]:
    """Map a file that `torch.save` wrote; nothing but tensors is taken from it."""
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{file} holds more than tensors, which is not read, as it could run code"
        ) from None
    except (RuntimeError, OSError, EOFError):
        raise ValueError(
            f"{file} is damaged, or not of torch.save's zip format; expected a LoRA's tensors"
        ) from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and torch.is_tensor(tensor) for name, tensor in tensors.items()
    ):
        raise ValueError(f"{file} does not hold tensors by name, expected a LoRA")
    return tensors
