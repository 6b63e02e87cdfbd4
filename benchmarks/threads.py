"""What threads that wait for each other cost on a CPU, alone and on a machine that is busy.

    python benchmarks/threads.py

A thread of GNU's OpenMP, PyTorch's, spins for some milliseconds before it sleeps. Where another
program has the processor, it spins on what the thread that it waits for could run on.
`pusa.cli.main` has it spin for less, GOMP_SPINCOUNT=10000.
"""

import os
import subprocess
import sys
from contextlib import ExitStack
from statistics import median

ROUNDS = 3
WAITS = {
    "as it comes": {},
    "GOMP_SPINCOUNT=10000 (ours)": {"GOMP_SPINCOUNT": "10000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
# Encodes clips with the embedded VAE, as the caching of latents does.
ENCODE = """
import time, torch
from pusa.models.load import encode_pixels, load_vae
vae = load_vae("pusa/tiny/model")
pixels = torch.rand(4, 3, 33, 64, 64) * 2 - 1
encode_pixels(vae, pixels)
start = time.perf_counter()
encode_pixels(vae, pixels)
print(time.perf_counter() - start)
"""
BUSY = "while True: pass"


def seconds(settings: dict[str, str]) -> float:
    """How long four clips take, in a process of its own that has all processors."""
    environment = os.environ | {"OMP_NUM_THREADS": str(os.cpu_count())} | settings
    command = [sys.executable, "-c", ENCODE]
    return float(subprocess.check_output(command, env=environment, text=True).splitlines()[-1])


def main() -> None:
    """Print a table, times as ratios to the first row alone on the machine."""
    found: dict[tuple[str, bool], list[float]] = {}
    for busy in (False, True):
        with ExitStack() as others:
            for _ in range(os.cpu_count() if busy else 0):
                other = others.enter_context(subprocess.Popen([sys.executable, "-c", BUSY]))
                others.callback(other.kill)
            for _ in range(ROUNDS):
                for name, settings in WAITS.items():
                    found.setdefault((name, busy), []).append(seconds(settings))
    unit = median(found[next(iter(WAITS)), False])
    print(f"| {os.cpu_count()} threads | alone | beside as many busy processes |\n|---|---|---|")
    for name in WAITS:
        cells = [
            f"{median(t) / unit:.2f} ({min(t) / unit:.2f}, {max(t) / unit:.2f})"
            for t in (found[name, False], found[name, True])
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
