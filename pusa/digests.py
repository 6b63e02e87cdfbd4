"""What identifies a file: the SHA-256 of its content, read once.

Reading 28 GB takes a minute, so the digest of a large file is remembered in the user's cache
folder, for as long as the file's size, inode and times are what they were when it was read. The
time of the last change of the inode is among them: no program can set that one back.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pusa.records import atomic, record_beside

#: Bytes from which a digest is remembered; a smaller file is read in the time of a look-up.
LARGE = 64 * 2**20


def digest_file(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path = Path(path).resolve()
    state = _describe_state(path)
    if state["size"] < LARGE:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    note = _note_of(path)
    with suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads(note.read_text())
        if known["state"] == state:
            return known["sha256"]
    found = _read_large(path)
    _remember(path, state, found)
    return found


def digest_files(files: Iterable[str | Path]) -> str:
    """SHA-256 of files' names and contents, in the order of their names."""
    digest = sha256()
    for path in sorted(map(Path, files), key=lambda file: file.name):
        digest.update(f"{path.name} {digest_file(path)}\n".encode())
    return digest.hexdigest()


def digest_folder(folder: str | Path) -> str:
    """SHA-256 of the names and contents of a folder's files; hidden ones do not count."""
    return digest_files(f for f in Path(folder).iterdir() if f.is_file() and f.name[0] != ".")


def remember_digest(path: str | Path, digest: str) -> None:
    """Take a digest that was verified elsewhere, as after a download, for the file as it is now."""
    path = Path(path).resolve()
    state = _describe_state(path)
    if state["size"] >= LARGE:
        _remember(path, state, digest)


def describe_file(path: Path) -> dict:
    """Size in bytes and SHA-256 of a file, as records hold them."""
    return {"size": path.stat().st_size, "sha256": digest_file(path)}


def write_record(tables: Sequence[Path], about: Mapping[str, Any]) -> None:
    """Write JSON beside the first of some tables: what they were made from, and their digests."""
    digests = {table.name: digest_file(table) for table in tables}
    with atomic(record_beside(tables[0])) as partial:
        partial.write_text(json.dumps({**about, "sha256": digests}, indent=1, ensure_ascii=False))


def _remember(path: Path, state: dict[str, int], digest: str) -> None:
    # A home folder may be read-only or full; then the file is read again next time.
    with suppress(OSError), atomic(_note_of(path)) as partial:
        partial.write_text(json.dumps({"file": str(path), "state": state, "sha256": digest}))


def _describe_state(path: Path) -> dict[str, int]:
    found = os.stat(path)
    return {
        "size": found.st_size,
        "inode": found.st_ino,
        "modified_ns": found.st_mtime_ns,
        "changed_ns": found.st_ctime_ns,
    }


def _note_of(path: Path) -> Path:
    import pooch  # which VBench's own environment lacks, where no file is large

    return pooch.os_cache("pusa") / "digests" / f"{sha256(str(path).encode()).hexdigest()}.json"


def _read_large(path: Path) -> str:
    """Read a file with progress, as it may take a minute."""
    digest = sha256()
    with (
        path.open("rb") as file,
        tqdm(
            total=path.stat().st_size,
            desc=f"SHA-256 of {path.name}",
            unit="B",
            unit_scale=True,
            mininterval=5,
        ) as progress,
    ):
        while chunk := file.read(16 * 2**20):
            digest.update(chunk)
            progress.update(len(chunk))
    return digest.hexdigest()
