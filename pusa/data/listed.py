"""Lists that stand, in Snakemake's eyes, for the files beside them, and which no longer do.

A list of videos is an output, and its videos are not, so that an interrupted job keeps those that
it finished; a dataset's ``metadata.csv`` stands for thousands of clips. Snakemake makes a list
again where it is missing. What should count as missing is found here, and which single files, such
as tables, are not what their jobs wrote.
"""

import atexit
import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from pusa.data.manifest import find_changed
from pusa.data.noted import clock, finished_at, read_note, write_note
from pusa.data.suite import INFO_FILE
from pusa.digests import digest_file
from pusa.models.folder import read_part, weight_files
from pusa.records import remove

GALLERY = "gallery"
#: What reading a damaged list raises.
_DAMAGED = (
    *(ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError),
    csv.Error,
)
#: Of a model that was trained here.
_MODEL = {
    "scheduler": ["scheduler_config.json"],
    "text_encoder": ["config.json", "model.safetensors"],
    "tokenizer": ["tokenizer.json", "tokenizer_config.json"],
    "transformer": ["config.json", "diffusion_pytorch_model.safetensors"],
    "vae": ["config.json", "diffusion_pytorch_model.safetensors"],
}


def lost_files(listing: Path) -> list[Path]:
    """The files that a list stands for and that are missing, or no longer what they were.

    A list of videos says what they are; of other files it is noted when they are first seen beside
    a list that was just made.

    Args:
        listing: ``metadata.csv`` of a dataset, `pusa.data.suite.INFO_FILE`, ``index.json`` of a
            latent cache, ``model_index.json`` of a model, ``config.json`` of a merged transformer,
            ``run.json`` of a training, the folder of a gallery, a list of videos, or another
            ``.json``, the record of measured tables. One that cannot be read, or is empty, counts
            as lost itself.
    """
    try:
        names = _NAMED.get(listing.name)
        if names is None and listing.suffix != ".json":
            return find_changed(listing)
        names = names or _tables
        files = [_beside(listing.parent, name) for name in names(listing)]
        if not files:
            return [listing]
        missing = [file for file in files if not file.is_file()]
        unlike = _unlike(listing) if names is _tables and not missing else []
        return missing or unlike or _changed(listing, files)
    except _DAMAGED:
        return [listing]


def _changed(listing: Path, files: list[Path]) -> list[Path]:
    """Those of a list and its files that are another content than when the list was new."""
    at = clock(listing.parent)
    page = listing / "index.html" if listing.name == GALLERY else listing
    made = finished_at(listing) or page.stat().st_mtime  # a job writes its list anew
    note = read_note(listing, at)
    known, checked = (note["files"], note["at"]) if note.get("made") == made else ({}, 0)
    seen, read = {}, False
    for file in [page, *files]:
        name = _name(file, listing)
        if name in known and file.stat().st_ctime_ns < checked:
            seen[name] = known[name]
        else:
            seen[name], read = digest_file(file), True
    changed = [name for name, digest in seen.items() if known.get(name, digest) != digest]
    if read and not changed:
        with suppress(OSError):  # of another owner
            write_note(listing, {"made": made, "at": at, "files": seen})
    return [listing.parent / name for name in changed]


def edited_files(files: Iterable[Path], note: Path) -> list[Path]:
    """Those of single files that are another content than their jobs left, or touched at least.

    Content is told by `note_files`, where it has seen the file as its job left it.
    """
    noted = read_note(note, clock(note.parent))
    known, at = noted.get("files", {}), noted.get("at", 0)
    edited = []
    for file in filter(Path.exists, files):
        made, digest = known.get(_name(file, note), (None, None))
        if not file.is_file():
            edited.append(file)
        elif made is None or finished_at(file) not in (None, made):
            edited += [file] if _is_touched(file) else []
        elif file.stat().st_ctime_ns >= at and digest_file(file) != digest:
            edited.append(file)
    return edited


def note_files(files: Iterable[Path], note: Path) -> None:
    """Note the contents of single files that are as their jobs left them."""
    at = clock(note.parent)
    kept = [file for file in files if file.is_file() and not _is_touched(file)]
    found = {_name(f, note): (finished_at(f) or f.stat().st_mtime, digest_file(f)) for f in kept}
    with suppress(OSError):  # of another owner
        write_note(note, {"at": at, "files": found})


def _is_touched(file: Path) -> bool:
    return finished_at(file) not in (None, file.stat().st_mtime)


def _name(file: Path, note: Path) -> str:
    return str(file.relative_to(note.parent))


def take_away(listing: Path, lost: list[Path], *, for_good: bool) -> None:
    """Have Snakemake make a list again: take it away, until the process ends or for good.

    For good, files that are lost because they are others go with it. Of folders only a gallery.

    Raises:
        FileExistsError: if a folder has the name of the list.
    """
    if listing.name != GALLERY:
        _refuse_folder(listing)
    if for_good:
        for file in lost:
            if not file.is_dir():
                file.unlink(missing_ok=True)
        remove(listing)
        return
    listing.rename(_hidden(listing))
    atexit.register(bring_back, listing)


def keep_edited(file: Path) -> Path:
    """Move a file that was edited aside, so that its job runs again; returns where it is kept.

    Raises:
        FileExistsError: if it is a folder.
    """
    _refuse_folder(file)
    return file.replace(file.with_name(f"{file.name}.edited"))


def _refuse_folder(file: Path) -> None:
    if file.is_dir():
        raise FileExistsError(f"{file} is a folder, expected a file; move it away")


def bring_back(listing: Path) -> None:
    """Bring a list back that was taken away for a while, by a process that was killed perhaps."""
    hidden = _hidden(listing)
    if hidden.exists() and not listing.exists():
        hidden.rename(listing)


def _hidden(listing: Path) -> Path:
    return listing.with_name(f".hidden-{listing.name}")


def _beside(folder: Path, name: str) -> Path:
    """A file that a list in a folder names; none but such a file is ever removed."""
    path = folder / name
    inside = path.parent.resolve().is_relative_to(folder.resolve())  # through links, too
    if not inside or os.path.normpath(name).startswith(".."):
        raise ValueError(f"found the name {name!r}, expected a file in {folder}")
    return path


def _clips(metadata: Path) -> Iterator[str]:
    with metadata.open(newline="", encoding="utf-8") as lines:
        yield from (row["file_name"] for row in csv.DictReader(lines))


def _images(info_file: Path) -> Iterator[str]:
    entries = json.loads(info_file.read_text(encoding="utf-8"))
    for index, entry in enumerate(entries):
        yield f"crop/1-1/{entry['image_name']}"
        yield f"reference/{index:04d}.mp4"


def _shards(index: Path) -> Iterator[str]:
    yield "captions.safetensors"
    yield from sorted({clip["shard"] for clip in json.loads(index.read_text())["clips"]})


def _parts(model_index: Path) -> Iterator[str]:
    for part in _MODEL.keys() & json.loads(model_index.read_text()).keys():
        yield from (f"{part}/{name}" for name in _MODEL[part])


def _weights(config: Path) -> Iterator[str]:
    read_part(config.parent, "transformer")
    yield from (file.name for file in weight_files(config.parent))


def _trained(run: Path) -> Iterator[str]:
    """LoRA files, or transformer folders, and logs."""
    dict(json.loads(run.read_text()))
    for pattern in ("iteration_*.safetensors", "iteration_*/*", "*.csv"):
        yield from (str(file.relative_to(run.parent)) for file in sorted(run.parent.glob(pattern)))


def _tables(record: Path) -> list[str]:
    """What `pusa.digests.write_record` was called for."""
    names = list(json.loads(record.read_text(encoding="utf-8"))["sha256"])
    own = (f"{record.stem}.csv", f"{record.stem}-mass.csv")
    if own[0] not in names or not set(names) <= set(own):
        raise ValueError(f"{record} is the record of {', '.join(names)}, expected {own[0]}")
    return names


def _unlike(record: Path) -> list[Path]:
    digests = json.loads(record.read_text(encoding="utf-8"))["sha256"]
    tables = {record.parent / name: digest for name, digest in digests.items()}
    return [table for table, digest in tables.items() if digest_file(table) != digest]


def _videos(gallery: Path) -> Iterator[str]:
    page = (gallery / "index.html").read_text(encoding="utf-8")
    found = re.findall(r'"(videos/[^"]+\.mp4)"', page)
    yield from (f"{gallery.name}/{unquote(name)}" for name in found)


_NAMED = {
    "metadata.csv": _clips,
    INFO_FILE: _images,
    "index.json": _shards,
    "model_index.json": _parts,
    "config.json": _weights,
    "run.json": _trained,
    GALLERY: _videos,
}
