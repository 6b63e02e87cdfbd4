"""What files need: room, to appear whole or not at all, and the name of the device."""

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def describe_device(device: str) -> str:
    """What ``cuda`` or ``cpu`` stands for here: the GPUs that this process sees, or the processor.

    The processor is named as Linux on x86 does in ``/proc/cpuinfo``, which takes no time; elsewhere
    by its kind alone, such as ``arm64``.
    """
    if device == "cuda":
        import torch  # a job without a GPU may do without it

        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return ", ".join(f"{names.count(name)} x {name}" for name in sorted(set(names)))
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def record_beside(table: Path) -> Path:
    """The file with the suffix .json that says how a table was made.

    Raises:
        ValueError: if the table has that name.
    """
    if table.suffix == ".json":
        raise ValueError(f"{table}: the table cannot have the name of its record; expected .csv")
    return table.with_suffix(".json")


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Have a file or a folder appear under its name when it is complete, or not at all.

    Yields a path beside it, in a folder that is made, where nothing is: what is written there
    takes the name at the end, in the place of what had it, and is removed if anything is raised.
    What a killed process left there is removed first.
    """
    path = Path(path)
    partial = path.with_name(f".partial-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove(partial)
    try:
        yield partial
        if partial.is_dir():  # which replaces none but an empty folder
            remove(path)
        os.replace(partial, path)
    finally:
        remove(partial)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise OSError if a folder has not ``needed`` bytes of room for ``what``."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{folder}: {what} needs {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free")
