"""LoRA files: writing, reading, converting, and merging into a transformer.

Our tensors have diffusers' names, ``transformer.blocks.0.attn1.to_q.lora_A.weight``, so that
`WanPipeline.load_lora_weights` reads a file as it is. The safetensors metadata says how it
was trained and on which base. `pusa.models.lora_formats` reads what others write.

``lora_alpha`` is PEFT's training constant (here always the rank). ``lora_scale`` is the
multiplier at merging, which the paper's tables call alpha: ``W + lora_scale * B A``.
"""

import json
import math
import re
import shutil
from collections import ChainMap
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from pusa.models.folder import WEIGHTS, digest_weights, require_files, weight_files
from pusa.models.lora_formats import (
    ADAPTER_KEY,
    EXPORTS,
    PREFIX,
    LoraFile,
    LoraModule,
    from_wan,
    open_lora,
    require_whole,
    to_wan,
)
from pusa.models.stream import TensorLayout, read_header, read_tensor, write_tensors
from pusa.records import atomic, check_space

METADATA_KEY = "pusa"
#: Metadata key of merged weights: what was merged into them.
MERGED_KEY = "pusa_merged_lora"
#: Rows of a weight that are merged at once.
_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class LoraInfo:
    """How a LoRA was trained; stored in its file.

    Of a file that was not trained here, only what its tensors show is known.
    """

    rank: int  # the largest, should modules differ
    lora_alpha: float  # of a module of that rank
    targets: tuple[str, ...]
    base: str | None  # digest of the transformer's files
    iteration: int | None
    p_async: float | None
    # Trained with a timestep per frame; without, it is not image-to-video.
    vectorized: bool | None
    objective: str | None = None  # `paper` or `authors`


def save_lora(file: str | Path, tensors: dict[str, torch.Tensor], info: LoraInfo) -> None:
    """Write a LoRA; ``tensors`` has PEFT's names, ``blocks.0.attn1.to_q.lora_A.weight``.

    The same tensors and info always give the same bytes.
    """
    layout = {PREFIX + n: TensorLayout(t.dtype, tuple(t.shape)) for n, t in tensors.items()}
    metadata = {
        "format": "pt",
        METADATA_KEY: json.dumps(asdict(info)),
        ADAPTER_KEY: _adapter_metadata(info),
    }
    write_tensors(file, layout, lambda name: tensors[name.removeprefix(PREFIX)], metadata)


def lora_info(lora: LoraFile) -> LoraInfo:
    """How a LoRA was trained, as far as its file tells.

    Raises:
        ValueError: if our metadata is there but not as `save_lora` wrote it, or of another
            iteration than the file's name.
    """
    if METADATA_KEY in lora.metadata:
        try:
            fields = json.loads(lora.metadata[METADATA_KEY])
            info = LoraInfo(**{**fields, "targets": tuple(fields["targets"])})
            if type(info.rank) is not int or not math.isfinite(info.lora_alpha):
                raise ValueError(f"rank {info.rank!r}, alpha {info.lora_alpha!r}")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"{lora.file}: metadata {METADATA_KEY!r} is not of this version ({error})"
            ) from None
        named = re.fullmatch(r"iteration_(\d+)", Path(lora.file).stem)
        if named and info.iteration not in (None, int(named[1])):
            raise ValueError(
                f"{lora.file} says that it is of iteration {info.iteration}: it was exchanged with "
                "another; delete it to have it made again"
            )
        return info
    largest = max(lora.modules.values(), key=lambda module: module.rank)
    return LoraInfo(
        rank=largest.rank,
        lora_alpha=largest.alpha,
        targets=tuple(sorted({re.sub(r"^blocks\.\d+\.", "", name) for name in lora.modules})),
        base=None,
        iteration=None,
        p_async=None,
        vectorized=None,
    )


def convert_lora(
    source: str | Path,
    out: str | Path,
    *,
    to: Literal["diffusers", "authors", "comfy"],
    rank: int | None = None,
) -> tuple[LoraFile, LoraFile]:
    """Write a LoRA of any format as ``diffusers``, ``authors`` or ``comfy``.

    A and B keep their bits. An alpha other than the rank is carried: by ``comfy`` as a tensor
    per module, by ``diffusers`` in the metadata. The ``authors`` format has no place for it; B
    is multiplied by ``alpha / rank``, and a LoRA is refused where that would round. Metadata
    goes along, and says whether the LoRA was trained with a timestep per frame: without, it is
    not image-to-video, and ``null`` is for unknown.

    Returns:
        The headers of both files; the second is read back.

    Raises:
        FileExistsError: if ``out`` exists.
        ValueError: if ``out`` is not to be safetensors, ``source`` is refused by `open_lora`, or
            ``rank`` is given and not its rank.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise ValueError(f"{out} is to be written as safetensors, expected a name in .safetensors")
    if out.exists():
        raise FileExistsError(f"{out} exists already, expected a new file")
    lora = open_lora(source)
    require_whole(lora)
    if rank not in (None, lora.rank):
        raise ValueError(f"{source} has rank {lora.rank}, expected {rank}")
    info = lora_info(lora)
    layout, parts = {}, {}
    for name, module in lora.modules.items():
        module_name = name if to == "diffusers" else to_wan(name)
        for side, tensor in (("A", module.down), ("B", module.up)):
            key = EXPORTS[to].format(module_name, side)
            layout[key], parts[key] = lora.layout[tensor], (name, side)
        if to == "comfy" and module.alpha != module.rank:
            key = f"diffusion_model.{module_name}.alpha"
            layout[key], parts[key] = TensorLayout(torch.float64, ()), (name, "alpha")

    def read(key: str) -> torch.Tensor:
        name, part = parts[key]
        module = lora.modules[name]
        if part == "alpha":
            return torch.tensor(module.alpha, dtype=torch.float64)
        if part == "B" and to == "authors" and module.alpha != module.rank:
            return _fold_alpha(lora, name)
        return lora.tensor(module.down if part == "A" else module.up)

    if to == "authors":
        info = replace(info, lora_alpha=info.rank)
    metadata = {**lora.metadata, "format": "pt", METADATA_KEY: json.dumps(asdict(info))}
    metadata.pop(ADAPTER_KEY, None)
    if to == "diffusers":
        metadata[ADAPTER_KEY] = _adapter_metadata(info, lora.modules)
    write_tensors(out, layout, read, metadata)
    return lora, open_lora(out)


def _fold_alpha(lora: LoraFile, name: str) -> torch.Tensor:
    """``alpha / rank * B``, if it can be had without rounding."""
    module = lora.modules[name]
    up = lora.tensor(module.up)
    exact = up.double() * (module.alpha / module.rank)
    folded = exact.to(up.dtype)
    if not torch.equal(folded.double(), exact):
        raise ValueError(
            f"{lora.file}: module {name} has alpha {module.alpha} and rank {module.rank}; the "
            f"authors' format has no alpha, and lora_B in {up.dtype} cannot take up their ratio "
            "exactly; expected another format to convert to"
        )
    return folded


def _adapter_metadata(info: LoraInfo, modules: dict[str, LoraModule] | None = None) -> str:
    """PEFT's config for diffusers, keys prefixed like tensors; modules may differ from info."""
    config = {"r": info.rank, "lora_alpha": info.lora_alpha, "target_modules": info.targets}
    modules = modules or {}
    ranks = {name: m.rank for name, m in modules.items() if m.rank != info.rank}
    alphas = {name: m.alpha for name, m in modules.items() if m.alpha != info.lora_alpha}
    config |= {"rank_pattern": ranks} if ranks else {}
    config |= {"alpha_pattern": alphas} if alphas else {}
    return json.dumps({PREFIX + key: value for key, value in config.items()})


@dataclass(frozen=True, kw_only=True)
class Merge:
    """A LoRA with the base that it is to be merged into, whose headers fit each other."""

    #: What is merged: ``sha256`` of the LoRA, and ``lora_scale``.
    record: dict[str, Any]
    #: The result's tensors by the base's files.
    shards: dict[Path, dict[str, TensorLayout]]
    #: One tensor of the result by its name, made as it is asked for.
    read: Callable[[str], torch.Tensor]


def open_merge(
    base: str | Path, lora: str | Path, *, lora_scale: float, dtype: torch.dtype | None = None
) -> Merge:
    """Prepare ``W + lora_scale * (alpha / rank) * B A`` of all tensors of a transformer folder.

    One tensor of the base and one module of the LoRA are read at a time, so that memory does not
    grow with the model. Arithmetic is float32 and each value is rounded once. The base has
    diffusers' names or the original ones, the LoRA any format.

    Args:
        dtype: type of the result's tensors, but float32 for those that diffusers keeps so: just
            what `from_pretrained` makes of a float32 result. Without it every tensor keeps its own.

    Raises:
        FileNotFoundError: if the base, one of its shards, or the LoRA is missing.
        ValueError: if a file is damaged, the LoRA was made for another base, a LoRA module finds
            no weight or one of another shape, or the base already has a LoRA merged into it; by
            ``read``, if a tensor of the result is not finite.
    """
    base = Path(base)
    if not abs(lora_scale) < 1e30:  # also if it is no number
        raise ValueError(f"lora_scale is {lora_scale}, expected a finite number")
    if (base / "model_index.json").exists():
        raise ValueError(f"{base} is a whole model, expected its transformer, {base}/transformer")
    require_files(base, ["config.json"])
    shards = {file: read_header(file)[0] for file in weight_files(base)}
    if merged := read_merged(base):
        raise ValueError(f"{base} already holds a merged LoRA ({merged}); merge into the original")
    opened = open_lora(lora)
    modules = fit_lora(opened, base)
    place = {name: file for file, layout in shards.items() for name in layout}
    if dtype is not None:
        shards = {file: _stored_as(dtype, layout) for file, layout in shards.items()}
    layouts = dict(ChainMap(*shards.values()))

    def read(name: str) -> torch.Tensor:
        weight, stored = read_tensor(place[name], name), layouts[name]
        if name in modules:
            return _add(weight, opened, name, modules[name], lora_scale, stored.dtype)
        return weight.to(stored.dtype)

    record = {"sha256": digest_lora(opened), "lora_scale": lora_scale}
    return Merge(record=record, shards=shards, read=read)


def merge_lora(
    base: str | Path,
    lora: str | Path,
    out: str | Path,
    *,
    lora_scale: float,
    dtype: torch.dtype | None = None,
) -> None:
    """Write what `open_merge` gives as a transformer folder.

    It says in its metadata what was merged, and appears under its name when it is complete.

    Raises:
        FileNotFoundError, ValueError: as `open_merge`.
        FileExistsError: if ``out`` is there and not an empty folder.
        OSError: if the disk has no room for the result.
    """
    base, out = Path(base), Path(out).resolve()
    merge = open_merge(base, lora, lora_scale=lora_scale, dtype=dtype)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} exists already, expected a new or empty folder")
    metadata = {"format": "pt", MERGED_KEY: json.dumps(merge.record)}
    size = sum(tensor.nbytes for layout in merge.shards.values() for tensor in layout.values())

    def read(name: str) -> torch.Tensor:
        tensor = merge.read(name)
        progress.update(tensor.nbytes)
        return tensor

    with (
        atomic(out) as unfinished,
        tqdm(total=size, desc="merge", unit="B", unit_scale=True, mininterval=5) as progress,
    ):
        check_space(unfinished.parent, size, "the merged transformer")
        unfinished.mkdir()
        for file, layout in merge.shards.items():
            write_tensors(unfinished / file.name, layout, read, metadata)
        for extra in base.glob("*.json"):
            shutil.copyfile(extra, unfinished / extra.name)
        index = unfinished / f"{WEIGHTS}.safetensors.index.json"
        if dtype is not None and index.exists():
            told = json.loads(index.read_text())
            index.write_text(json.dumps(told | {"metadata": {"total_size": size}}, indent=2))


def _stored_as(dtype: torch.dtype, layout: dict[str, TensorLayout]) -> dict[str, TensorLayout]:
    """The layout of tensors that are loaded as ``dtype``, by diffusers' own rule."""
    from pusa.transformer import VTAWanTransformer3DModel  # seconds, for few who merge

    kept = {*VTAWanTransformer3DModel._keep_in_fp32_modules}
    stored = {}
    for name, tensor in layout.items():
        parts = _diffusers_name(name).split(".")
        loaded = dtype if kept.isdisjoint(parts) else torch.float32
        stored[name] = tensor._replace(dtype=loaded) if tensor.dtype.is_floating_point else tensor
    return stored


def fit_lora(lora: LoraFile, base: str | Path) -> dict[str, LoraModule]:
    """Check by the headers that a LoRA belongs on a transformer folder.

    Returns:
        The LoRA's modules by the names that the folder gives their weights.

    Raises:
        ValueError: if the LoRA was made for another base or lost parts, or a module finds no
            weight or one of another shape.
    """
    base = Path(base)
    made_for = lora_info(lora).base
    if made_for is not None and (found := digest_weights(base)) != made_for:
        raise ValueError(
            f"{lora.file} was trained on a base of SHA-256 {made_for[:16]}, but {base} is "
            f"{found[:16]}; a LoRA fits only the model that it was trained on, and files are "
            "compared: a copy in another precision or other shards is another base"
        )
    weights = dict(ChainMap(*(read_header(file)[0] for file in weight_files(base))))
    modules = _find_weights(lora, base, weights)
    require_whole(lora)
    in_lora, in_base = _count_blocks(lora.modules), _count_blocks(map(_diffusers_name, weights))
    if in_lora not in (0, in_base):
        raise ValueError(
            f"{lora.file} has {in_lora} blocks, but {base} has {in_base}; they must agree"
        )
    return modules


def _find_weights(
    lora: LoraFile, base: Path, weights: dict[str, TensorLayout]
) -> dict[str, LoraModule]:
    """The LoRA's modules by the names that the base gives their weights."""
    modules, missing = {}, []
    for name, module in lora.modules.items():
        key = next((k for k in (f"{name}.weight", f"{to_wan(name)}.weight") if k in weights), None)
        if key is None:
            missing.append(name)
            continue
        dtype, shape = weights[key]
        if shape != module.shape:
            raise ValueError(
                f"{lora.file}: module {name} is for a weight of shape {list(module.shape)}, but "
                f"{key} in {base} is {list(shape)}; a LoRA fits only models of its own shape"
            )
        if not dtype.is_floating_point:
            raise ValueError(f"{base}: {key} is stored as {dtype}, expected a floating-point type")
        modules[key] = module
    if missing:
        raise ValueError(
            f"{lora.file}: {len(missing)} of {len(lora.modules)} modules are not in {base}, "
            f"such as {missing[0]}"
        )
    return modules


def _count_blocks(names: Iterable[str]) -> int:
    return len({inside[1] for name in names if (inside := re.match(r"blocks\.(\d+)\.", name))})


def _add(
    weight: torch.Tensor,
    lora: LoraFile,
    name: str,
    module: LoraModule,
    lora_scale: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``W + lora_scale * (alpha / rank) * B A`` of the weight ``name``, as ``dtype``."""
    down, up = lora.tensor(module.down).float(), lora.tensor(module.up).float()
    scale = lora_scale * module.alpha / module.rank
    merged = torch.empty_like(weight, dtype=dtype)
    # Some rows at a time: float32 copies of a whole weight would be several times its size.
    for rows in range(0, len(weight), _ROWS):
        part = slice(rows, rows + _ROWS)
        merged[part] = torch.addmm(weight[part].float(), up[part], down, alpha=scale)
    if not merged.isfinite().all():
        raise ValueError(
            f"{name} with {lora.file} at scale {scale:g} has values that are not finite"
        )
    return merged


def read_merged(transformer: str | Path) -> dict:
    """What was merged into a transformer folder: empty for a base model."""
    _, metadata = read_header(weight_files(transformer)[0])
    return json.loads(metadata.get(MERGED_KEY, "{}"))


def _diffusers_name(tensor: str) -> str:
    """The name that diffusers gives a tensor, which may have its original name."""
    module, _, kind = tensor.rpartition(".")
    if kind in ("weight", "bias"):
        return f"{from_wan(module) or module}.{kind}"
    return from_wan(tensor) or tensor


def digest_lora(lora: LoraFile) -> str:
    """SHA-256 of diffusers' names and the values; the same for a LoRA in any format."""
    digest = sha256()
    for name, module in lora.modules.items():
        for side, tensor in (("A", module.down), ("B", module.up)):
            digest.update(f"{name}.lora_{side}.weight".encode())
            digest.update(lora.tensor(tensor).detach().contiguous().view(torch.uint8).numpy())
        if module.alpha != module.rank:
            digest.update(f"{name}.alpha {module.alpha}".encode())
    return digest.hexdigest()
