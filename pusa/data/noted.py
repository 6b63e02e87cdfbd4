"""When the files that a list stands for were found to be as they should be.

A note is a hidden file beside the list. So what was not touched since is not read again, and what
was is known by its content.
"""

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from pusa.records import atomic


def clock(folder: Path) -> int:
    """What time a folder's file system takes it to be, in its inodes' nanoseconds; 0 if unknown."""
    with suppress(OSError), tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
        return os.stat(file.name).st_ctime_ns
    return 0


def read_note(listing: Path) -> dict[str, Any]:
    """What was noted of a list, with ``at``, the time; nothing if there is no whole note."""
    with suppress(OSError, ValueError, RecursionError):
        note = json.loads(_note_of(listing).read_text())
        if isinstance(note, dict) and isinstance(note.get("at"), int):
            return note
    return {}


def write_note(listing: Path, note: dict[str, Any]) -> None:
    """Note something of a list, with ``at``, the time from `clock` before it was looked at."""
    with atomic(_note_of(listing)) as partial:
        partial.write_text(json.dumps(note))


def _note_of(listing: Path) -> Path:
    return listing.with_name(f".checked-{listing.name}.json")
