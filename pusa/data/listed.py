"""Lists that stand, in Snakemake's eyes, for the files beside them, and which no longer do.

A list of videos is an output, and its videos are not, so that an interrupted job keeps those that
it finished; a dataset's ``metadata.csv`` stands for thousands of clips. Snakemake makes a list
again where it is missing. What should count as missing is found here.
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
from pusa.data.noted import clock, read_note, write_note
from pusa.data.suite import INFO_FILE
from pusa.digests import digest_file
from pusa.models.folder import read_part, weight_files
from pusa.records import remove

GALLERY = "gallery"
#: What reading a damaged list raises.
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OSError, csv.Error)
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
        if listing.name not in _NAMED:
            return (_unlike if listing.suffix == ".json" else find_changed)(listing)
        files = [_beside(listing.parent, name) for name in _NAMED[listing.name](listing)]
        if not files:
            return [listing]
        return [file for file in files if not file.is_file()] or _changed(listing, files)
    except _DAMAGED:
        return [listing]


def _unlike(record: Path) -> list[Path]:
    """The tables of `pusa.digests.write_record` that are not what it was written for."""
    digests = json.loads(record.read_text(encoding="utf-8"))["sha256"]
    tables = {_beside(record.parent, name): digest for name, digest in digests.items()}
    return [t for t, digest in tables.items() if not t.is_file() or digest_file(t) != digest]


def _changed(listing: Path, files: list[Path]) -> list[Path]:
    """Those of the files that are another content than when the list was new."""
    at = clock(listing.parent)
    page = listing / "index.html" if listing.name == GALLERY else listing
    made = page.stat().st_mtime_ns  # a job writes its list anew
    note = read_note(listing)
    known, checked = (note["files"], note["at"]) if note.get("made") == made else ({}, 0)
    seen, read = {}, False
    for file in files:
        name = str(file.relative_to(listing.parent))
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
    """Those of single files that are another content than `note_files` found last.

    So a table that was edited by hand is told from one that its job wrote, whatever its time.
    """
    noted = read_note(note)
    known = noted.get("files", {})
    touched = (f for f in files if f.is_file() and f.stat().st_ctime_ns >= noted.get("at", 0))
    return [f for f in touched if known.get(_name(f, note), "") not in ("", digest_file(f))]


def note_files(files: Iterable[Path], note: Path) -> None:
    """Note the contents of single files, as their jobs have just left them."""
    at = clock(note.parent)
    digests = {_name(file, note): digest_file(file) for file in files if file.is_file()}
    with suppress(OSError):  # of another owner
        write_note(note, {"at": at, "files": digests})


def _name(file: Path, note: Path) -> str:
    return str(file.relative_to(note.parent))


def take_away(listing: Path, lost: list[Path], *, for_good: bool) -> None:
    """Have Snakemake make a list again: take it away, until the process ends or for good.

    For good, files that are lost because they are others go with it. Of folders only a gallery.
    """
    if for_good:
        for file in lost:
            if file != listing:
                file.unlink(missing_ok=True)
        remove(listing)
        return
    listing.rename(_hidden(listing))
    atexit.register(bring_back, listing)


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
    inside = os.path.normpath(name)
    if inside == "." or inside.startswith("..") or os.path.isabs(inside) or path.is_dir():
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
    json.loads(run.read_text())
    yield from (file.name for file in sorted(run.parent.glob("iteration_*.safetensors")))
    yield from (file.name for file in sorted(run.parent.glob("*.csv")))


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
