"""The name of what a process computes on, for the records beside its results."""

import platform
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
