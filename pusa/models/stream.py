"""Safetensors files one tensor at a time, so that memory does not grow with the file.

The safetensors library reads lazily but keeps every page that was touched in memory, and writes
only what is all in memory. Here a tensor is read through a mapping of its own, which ends with
it, and a file is written from a layout that is known before its tensors are.

The format (https://huggingface.co/docs/safetensors): eight bytes, little-endian, with the length
of the header; the header, JSON; the tensors' bytes without gaps.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from pusa.records import atomic

#: The format's names of types; those that a tensor of ours or of a base may have.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorLayout(NamedTuple):
    """What a header tells of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def read_header(file: str | Path) -> tuple[dict[str, TensorLayout], dict[str, str]]:
    """The tensors of a file, in the order of their data, and its metadata.

    Raises:
        ValueError: if the file is damaged, cut short, or has a tensor of an unknown type.
    """
    layout = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.offset_keys():
                tensor = opened.get_slice(name)
                dtype = tensor.get_dtype()
                if dtype not in DTYPES:
                    raise ValueError(
                        f"{file}: tensor {name} is of type {dtype}, expected one of "
                        + ", ".join(DTYPES)
                    )
                layout[name] = TensorLayout(DTYPES[dtype], tuple(tensor.get_shape()))
            return layout, opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file} is not a readable safetensors file ({error})") from None


def read_tensor(file: str | Path, name: str) -> torch.Tensor:
    """One tensor, mapped from the file; its pages are let go when the tensor is."""
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name)


def write_tensors(
    file: str | Path,
    layout: dict[str, TensorLayout],
    read: Callable[[str], torch.Tensor],
    metadata: dict[str, str],
) -> None:
    """Write a file, asking ``read(name)`` for one tensor after the other.

    The same tensors and metadata always give the same bytes: wider types come first, as the
    safetensors library has them for the sake of alignment, then names are in order. The file
    appears under its name when it is complete.

    Raises:
        ValueError: if a tensor is not what the layout says.
    """
    file = Path(file)
    names = sorted(layout, key=lambda name: (-layout[name].dtype.itemsize, name))
    header: dict[str, dict] = {"__metadata__": dict(sorted(metadata.items()))}
    start = 0
    for name in names:
        dtype, shape = layout[name]
        end = start + layout[name].nbytes
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    with atomic(file) as partial, partial.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            stream.write(_data(file, name, read(name), layout[name]))


def _data(file: Path, name: str, tensor: torch.Tensor, expected: TensorLayout) -> np.ndarray:
    """A tensor's bytes, if it is what the layout says."""
    found = TensorLayout(tensor.dtype, tuple(tensor.shape))
    if found != expected:
        raise ValueError(f"{file}: tensor {name} is {found}, expected {expected}")
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
