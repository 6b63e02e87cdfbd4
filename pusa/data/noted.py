"""When the files that a list stands for were found to be as they should be.

A note is a hidden file beside the list. So what was not touched since is not read again, and what
was is known by its content. Which writing of the list it is about is told by Snakemake's own record
of the job, and not by the list's time, which an edit or a copy changes.
"""

import json
import os
import tempfile
from base64 import urlsafe_b64encode
from contextlib import suppress
from pathlib import Path
from typing import Any

from pusa.records import atomic

#: Where Snakemake keeps a record of every output, and the locks of a call that is at work.
STATE = Path(".snakemake")
_LONGEST = 254  # bytes of a part of a record's path


def clock(folder: Path) -> int:
    """What time a folder's file system takes it to be, in its inodes' nanoseconds; 0 if unknown."""
    with suppress(OSError), tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
        return os.stat(file.name).st_ctime_ns
    return 0


def finished_at(output: Path) -> float | None:
    """The time that an output had when its job ended, by Snakemake's record.

    None without one, or where the record is of an earlier job than the last, which was interrupted.
    """
    name = urlsafe_b64encode(str(output).encode()).decode()
    *folders, last = (name[i : i + _LONGEST] for i in range(0, len(name), _LONGEST))
    place = Path(*(f"@{folder}" for folder in folders), last)
    if (STATE / "incomplete" / place).exists():
        return None
    record = STATE / "metadata" / place
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        return float(json.loads(record.read_text())["endtime"])
    return None


def locked_files() -> set[str]:
    """Outputs of a Snakemake that is at work in this folder, or that was killed at it."""
    locks = STATE.glob("locks/*.output.lock")
    return {name for lock in locks for name in lock.read_text().splitlines()}


def read_note(listing: Path, now: int) -> dict[str, Any]:
    """What was noted of a list, with ``at``, the time; nothing if there is no whole note.

    Args:
        now: from `clock`.
    """
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        note = json.loads(_note_of(listing).read_text())
        at, files = note["at"], note.get("files", {})
        if isinstance(at, int) and isinstance(files, dict):
            if at > now:  # of a clock that was ahead: all is to be read
                note["at"] = 0
            return note
    return {}


def write_note(listing: Path, note: dict[str, Any]) -> None:
    """Note something of a list, with ``at``, the time from `clock` before it was looked at."""
    with atomic(_note_of(listing)) as partial:
        partial.write_text(json.dumps(note))


def _note_of(listing: Path) -> Path:
    return listing.with_name(f".checked-{listing.name}.json")
