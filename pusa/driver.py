"""Why PyTorch finds no GPU on a node that has one: its build of CUDA, and the NVIDIA driver."""

import os
import re
import subprocess
from pathlib import Path

#: Of a build for each CUDA: the oldest driver that runs it, and the index of PyTorch's wheels. A
#: driver runs every minor version of its CUDA. Source: NVIDIA's CUDA Compatibility, "Minor Version
#: Compatibility", table 1; indices as torch 2.13 has them.
BUILDS = {13: (580, "cu130"), 12: (525, "cu126")}
WHEELS = "https://download.pytorch.org/whl"
PROC = Path("/proc/driver/nvidia/version")


def find_driver() -> str | None:
    """The version of this node's NVIDIA driver, such as ``550.54.15``; None without one."""
    if PROC.exists() and (found := re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", PROC.read_text())):
        return found[0]
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:  # where /proc has nothing, as in Windows' Linux
        done = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.match(r"\d{3,}\.\d+(\.\d+)?$", done.stdout.partition("\n")[0].strip())
    return found[0] if found else None


def explain_no_gpu(torch_version: str, cuda: str | None, driver: str | None) -> str:
    """One sentence on why PyTorch finds no GPU, and what would help.

    Args:
        torch_version: such as ``2.13.0+cu130``.
        cuda: that PyTorch was built for, such as ``13.0``; None for its CPU build.
        driver: from `find_driver`.
    """
    built = f"for CUDA {cuda}" if cuda else "without CUDA"
    told = f"PyTorch {torch_version}, built {built}, finds no GPU"
    if driver is None:
        return f"{told} here, nor is there an NVIDIA driver"
    told += f", though this node has NVIDIA's driver {driver}"
    found = int(driver.partition(".")[0])
    needed, _ = BUILDS.get(int(cuda.partition(".")[0]), (None, "")) if cuda else (None, "")
    if needed is not None and found >= needed:
        told += ", which is new enough: was the job given one?"
        return (
            f"{told} CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')!r}"
        )
    if needed is not None:
        told += f", and that needs {needed} or newer"
    fitting = [index for oldest, index in BUILDS.values() if found >= oldest]
    if not fitting:
        return f"{told}; expected a driver from {min(BUILDS.values())[0]} on"
    return f"{told}; install torch from {WHEELS}/{fitting[0]}, as docs/cluster.md says"
