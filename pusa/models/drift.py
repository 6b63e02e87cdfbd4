"""How far a model has moved from its base, parameter by parameter (Figure 5).

The relative change is ``||W' - W|| / ||W||`` in the Frobenius norm. Tensors are streamed from
their files, some rows at a time, so that two models of 14B parameters need no memory. Of a LoRA,
``||s B A||`` comes from two matrices of the rank's size, as the square of it is the sum of
``(B^T B) * (A A^T)``; ``B A`` is never formed. Arithmetic is float64.
"""

import math
import re
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from pusa.models.folder import weight_files
from pusa.models.lora import fit_lora
from pusa.models.lora_formats import LoraFile, LoraModule, open_lora
from pusa.models.stream import TensorLayout, read_header, read_tensor

COLUMNS = ["parameter", "module", "block", "relative_change"]
PATCHES = "patch_embedding.weight"
#: Module kinds, by the first pattern that a parameter's name has.
KINDS = {
    r"image_embedder|\.add_[kv]_proj\.|\.norm_added_": "image",
    r"^blocks\.\d+\.(attn[12]\.norm_[qk]|norm2)\.": "norm",
    r"^blocks\.\d+\.attn1\.": "self-attention",
    r"^blocks\.\d+\.attn2\.": "cross-attention",
    r"^blocks\.\d+\.ffn\.": "feed-forward",
    r"^blocks\.\d+\.scale_shift_table$": "modulation",
    r"^(patch_embedding|condition_embedder)\.": "embedding",
    r"^(proj_out\.|scale_shift_table$)": "head",
}
#: Rows of a weight that are compared at once.
_ROWS = 256


def transformer_drift(base: str | Path, other: str | Path) -> pd.DataFrame:
    """The change of every parameter of a transformer folder against the base's.

    The other's patch embedding may take more channels, as Wan-I2V's does: those of the base are
    compared, which come first. Parameters for an image's embedding, which the base lacks, are
    listed without a change, as is one that was zero in the base and is not any more.

    Returns:
        A row for each parameter of ``other``: ``parameter, module`` (its kind), ``block`` (empty
        outside of blocks), ``relative_change``.

    Raises:
        FileNotFoundError: if a folder or one of its files is missing.
        ValueError: if the two have other parameters or shapes, or a file is damaged.
    """
    ours, theirs = _open_weights(base), _open_weights(other)
    added = {name for name in theirs if name not in ours and module_kind(name) == "image"}
    if unlike := sorted((ours.keys() ^ theirs.keys()) - added):
        raise ValueError(
            f"{base} and {other} must have the same parameters but for an image's embedding; "
            f"{unlike[0]} is only in {base if unlike[0] in ours else other}"
        )
    for name in ours:
        shape, found = ours[name][1].shape, theirs[name][1].shape
        if name == PATCHES and found[1] > shape[1]:
            found = (found[0], shape[1], *found[2:])
        if found != shape:
            raise ValueError(
                f"{name} has shape {list(theirs[name][1].shape)} in {other}, but {list(shape)} in "
                f"{base}; expected a model of the same architecture"
            )

    changes = {}
    for name in tqdm(theirs, desc="Comparing parameters", mininterval=2):
        if name in added:
            changes[name] = math.nan
            continue
        before, after = read_tensor(ours[name][0], name), read_tensor(theirs[name][0], name)
        if name == PATCHES:
            after = after[:, : before.shape[1]]
        square = sum(
            ((b.double() - a.double()) ** 2).sum().item()
            for a, b in zip(before.split(_ROWS), after.split(_ROWS), strict=True)
        )
        changes[name] = _relative(name, math.sqrt(square), before)
    return _table(changes)


def lora_drift(base: str | Path, lora: str | Path, *, lora_scale: float = 1.0) -> pd.DataFrame:
    """The change of every parameter by a LoRA of any format, merged at a scale.

    Returns:
        A row for each parameter of the base, as `transformer_drift` has them; what the LoRA does
        not touch has a change of 0.

    Raises:
        FileNotFoundError: if the base or the LoRA is missing.
        ValueError: if the LoRA does not fit the base (`pusa.models.lora.fit_lora`), or a file is
            damaged.
    """
    if not math.isfinite(lora_scale):
        raise ValueError(f"lora_scale is {lora_scale}, expected a finite number")
    weights, opened = _open_weights(base), open_lora(lora)
    changes = dict.fromkeys(weights, 0.0)
    modules = fit_lora(opened, base)
    for name, module in tqdm(modules.items(), desc="Comparing parameters", mininterval=2):
        norm = abs(lora_scale) * lora_norm(opened, module)
        changes[name] = _relative(name, norm, read_tensor(weights[name][0], name))
    return _table(changes)


def lora_norm(lora: LoraFile, module: LoraModule) -> float:
    """``||alpha / rank * B A||`` of a module at scale 1, in the Frobenius norm.

    ``||B A||^2 = tr(A^T B^T B A) = sum((B^T B) * (A A^T))``, both of shape (rank, rank).
    """
    down, up = lora.tensor(module.down).double(), lora.tensor(module.up).double()
    square = ((up.T @ up) * (down @ down.T)).sum().item()
    return abs(module.alpha) / module.rank * math.sqrt(max(square, 0.0))


def mean_by_module(changes: pd.DataFrame) -> pd.Series:
    """Mean relative change of the parameters of each module kind, largest first."""
    return changes.groupby("module")["relative_change"].mean().dropna().sort_values(ascending=False)


def mean_by_block(changes: pd.DataFrame) -> pd.Series:
    """Mean relative change of the parameters of each block, in order."""
    return changes.groupby("block")["relative_change"].mean()


def module_kind(parameter: str) -> str:
    """Which kind of module a parameter of Wan's transformer belongs to, by diffusers' name.

    Raises:
        ValueError: if it is not one of Wan's.
    """
    for pattern, kind in KINDS.items():
        if re.search(pattern, parameter):
            return kind
    raise ValueError(f"{parameter} is no parameter of Wan's transformer by diffusers' names")


def _open_weights(transformer: str | Path) -> dict[str, tuple[Path, TensorLayout]]:
    """Of each parameter of a transformer folder, its file and layout."""
    if (Path(transformer) / "model_index.json").exists():
        raise ValueError(
            f"{transformer} is a whole model, expected its transformer, {transformer}/transformer"
        )
    weights = {}
    for file in weight_files(transformer):
        for name, layout in read_header(file)[0].items():
            weights[name] = (file, layout)
    return weights


def _relative(name: str, change: float, weight: torch.Tensor) -> float:
    """A norm relative to the weight's; 0 for no change, nan for one from nothing."""
    if change == 0:
        return 0.0
    norm = math.sqrt(sum((part.double() ** 2).sum().item() for part in weight.split(_ROWS)))
    if not math.isfinite(change + norm):
        raise ValueError(f"{name} has values that are not finite, in the base or in the other")
    return change / norm if norm else math.nan


def _table(changes: dict[str, float]) -> pd.DataFrame:
    rows = []
    for name, change in changes.items():
        inside = re.match(r"blocks\.(\d+)\.", name)
        rows.append((name, module_kind(name), inside and int(inside[1]), change))
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"block": "Int64"})
    return table.sort_values(["block", "parameter"], ignore_index=True, na_position="first")
