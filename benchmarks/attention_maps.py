"""Time and peak memory of frame-to-frame attention maps, in chunks and from the full matrix.

    python benchmarks/attention_maps.py                # one and two heads; CPU or CUDA
    python benchmarks/attention_maps.py --heads 40     # as in Wan2.1-T2V-14B

Each row is a process of its own; peak memory is what came on top of queries and keys.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from pusa.models.attention import frame_attention

FRAMES, HEAD_DIM = 21, 128


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        way, tokens, heads = args.one
        print(json.dumps(measure(way, int(tokens), int(heads))))
        return
    rows = [("full matrix", 8190, 1), ("in chunks", 8190, 1)]
    rows += [("in chunks", 32760, heads) for heads in args.heads]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{FRAMES} frames, head_dim {HEAD_DIM}, float32, {device}\n")
    print("| way | tokens | heads | seconds | peak MiB |\n|---|---|---|---|---|")
    for row in rows:
        command = [sys.executable, *sys.argv, "--one", *map(str, row)]
        seconds, peak = json.loads(subprocess.check_output(command, text=True))
        print(f"| {row[0]} | {row[1]:,} | {row[2]} | {seconds:.1f} | {peak:.0f} |")


def measure(way: str, tokens: int, heads: int) -> tuple[float, float]:
    """Seconds, and MiB beyond the inputs, of one map."""
    cuda = torch.cuda.is_available()
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, tokens, heads, HEAD_DIM, generator=generator)
    if cuda:
        query, key = query.cuda(), key.cuda()
        torch.cuda.synchronize()
    before = torch.cuda.memory_allocated() if cuda else resident()
    start = time.perf_counter()
    (full_matrix if way == "full matrix" else frame_attention)(query, key, FRAMES).cpu()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if cuda else resident()
    return seconds, (peak - before) / 2**20


def resident() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def full_matrix(query: torch.Tensor, key: torch.Tensor, frames: int) -> torch.Tensor:
    """The same map by its definition."""
    query, key = query.transpose(1, 2), key.transpose(1, 2)
    weights = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1)
    return weights.unflatten(3, (frames, -1)).sum(4).unflatten(2, (frames, -1)).mean((1, 3))


if __name__ == "__main__":
    main()
