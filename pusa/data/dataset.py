"""Training clips in the layout of the released dataset, ``RaphaelLiu/PusaV1_training``.

``metadata.csv`` has the columns ``file_name,text``; the files it names lie beside it or in
``train/``, where DiffSynth-Studio's trainer, for which the dataset was released, looks for them.
Beside a clip may lie what that trainer made of it, ``video_000001.mp4.tensors.pth``.
"""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import is_zipfile

import torch

#: What DiffSynth-Studio adds to the name of a clip for the file of its latents and prompt.
TENSORS = ".tensors.pth"


@dataclass(frozen=True)
class Clip:
    """One caption-video pair; ``path`` is the video, or what was made of it."""

    path: Path
    caption: str


def read_metadata(dataset: str | Path, *, suffix: str = "") -> list[Clip]:
    """Read ``metadata.csv`` and check that every row can be used.

    Args:
        suffix: added to each file name; `TENSORS` asks for the pre-encoded clips.

    Raises:
        FileNotFoundError: if ``metadata.csv``, or a file that it names, is missing.
        ValueError: for text that is not UTF-8 or not CSV, a missing column, an empty caption, a
            file that is named twice or lies outside the dataset's folder, or no rows.
    """
    path = Path(dataset) / "metadata.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a CSV with file_name,text")
    rows = csv.reader(io.StringIO(_decode(path), newline=""), strict=True)
    clips, lines = [], {}
    try:
        header = next(rows, [])
        for column in ("file_name", "text"):
            if column not in header:
                found = ", ".join(header) or "nothing"
                raise ValueError(f"{path}: column {column!r} is missing; found {found}")
        for row in filter(None, rows):  # a blank line is an empty row
            here = f"{path}, line {rows.line_num}"  # where it ends: a caption may have several
            if len(row) != len(header):
                raise ValueError(f"{here}: {len(row)} columns, expected {len(header)} as in line 1")
            name, caption = (row[header.index(column)] for column in ("file_name", "text"))
            if not caption.strip():
                raise ValueError(f"{here}: the caption of {name!r} is empty")
            file = _find_file(Path(dataset), name, suffix, here)
            if file in lines:
                raise ValueError(f"{here}: {name!r} is named in line {lines[file]} already")
            lines[file] = rows.line_num
            clips.append(Clip(file, caption))
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: not CSV ({error})") from None
    if not clips:
        raise ValueError(f"{path}: no clips; expected at least one row")
    return clips


def open_tensors(
    path: Path, *, latents: tuple[int, ...], context: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and prompt embedding of a pre-encoded clip, mapped into memory, not read.

    DiffSynth-Studio at 3edf358, which the authors trained with, saves in
    ``examples/wanvideo/train_wan_t2v.py`` a dict of ``latents`` (channels, frames, height,
    width), ``prompt_emb`` and ``image_emb``, all bfloat16. Its latents are normalised as ours:
    ``diffsynth/models/wan_video_vae.py`` encodes to the posterior's mean, less the mean of the
    channel and divided by its standard deviation, the numbers of Wan2.1's VAE config.
    ``prompt_emb["context"]`` is (1, text_tokens, dim), zero past the prompt's end. The file does
    not say whether the VAE worked in tiles, which changes latents a little.

    Args:
        latents: the expected shape of the latents.
        context: the expected shape of the embedding.

    Raises:
        ValueError: if the file is damaged or not such a dict, a shape is another, or its pickle
            asks for more than tensors, which is never granted.
    """
    found = _load_tensors(path)
    for (name, tensor), shape in zip(found.items(), (latents, context), strict=True):
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            raise ValueError(f"{path}: no {name}; expected floating point numbers {shape}")
        if tensor.shape != shape:
            raise ValueError(f"{path}: {name} of shape {tuple(tensor.shape)}, expected {shape}")
    return tuple(found.values())


def latents_shape(path: Path) -> tuple[int, ...] | None:
    """The shape of a pre-encoded clip's latents, whatever it is; None if it has none.

    Raises:
        ValueError: if the file is damaged, or its pickle asks for more than tensors.
    """
    latents = _load_tensors(path)["latents"]
    return tuple(latents.shape) if isinstance(latents, torch.Tensor) else None


def _load_tensors(path: Path) -> dict[str, Any]:
    """What a file has for latents and for a prompt's embedding, mapped into memory."""
    if not is_zipfile(path):
        raise ValueError(f"{path}: cut off, or not a zip file as torch.save writes them")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle can raise anything
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"its pickle asks for {asked[1]}, and only tensors are read" if asked else "damaged"
        raise ValueError(f"{path}: not read: {why}") from None
    prompt = data.get("prompt_emb") if isinstance(data, dict) else None
    return {
        "latents": data.get("latents") if isinstance(data, dict) else None,
        "prompt_emb.context": prompt.get("context") if isinstance(prompt, dict) else None,
    }


def _decode(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode().removeprefix("\ufeff")  # the mark that spreadsheets write
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte {error.start} of the file, 0x{data[error.start]:02x}, is "
            "not UTF-8"
        ) from None


def _find_file(dataset: Path, name: str, suffix: str, here: str) -> Path:
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts:
        raise ValueError(f"{here}: {name!r} leaves the folder; expected a path below {dataset}")
    candidates = [dataset / f"{place}{suffix}", dataset / "train" / f"{place}{suffix}"]
    for file in candidates:
        if file.is_file():
            return file
    raise FileNotFoundError(f"{here}: {candidates[0]} does not exist, nor {candidates[1]}")
