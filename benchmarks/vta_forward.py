"""Time and peak memory of Wan's forward pass with one timestep per clip, per token, per frame.

    python benchmarks/vta_forward.py                     # 2 layers, 8,190 tokens; CPU or CUDA
    python benchmarks/vta_forward.py --dim 5120 --layers 40 --height 480 --width 832 --frames 81 \
        --dtype bfloat16                                 # Wan2.1-T2V-14B at the paper's size

Weights are random. Times are interleaved in one process, variant after variant, and given as a
ratio to the scalar base; peak memory is measured in a process per variant, less what the weights
and inputs take.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from pusa import VTAWanTransformer3DModel

VARIANTS = ("scalar base", "per token (diffusers)", "per frame (ours)")


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--frames", type=int, default=81, help="pixel frames, 4k+1")
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--width", type=int, default=416)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(json.dumps(peak_memory(args, args.memory_of)))
        return

    memory = {}
    for variant in VARIANTS:
        command = [sys.executable, *sys.argv, "--memory-of", variant]
        memory[variant] = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])

    models, inputs = build(args, VARIANTS), make_inputs(args)
    times = {variant: [] for variant in VARIANTS}
    outputs = {v: forward(models, v, inputs) for v in VARIANTS}  # warm-up, and the check below
    for _ in range(args.rounds):
        for variant in VARIANTS:
            synchronize()
            start = time.perf_counter()
            forward(models, variant, inputs)
            synchronize()
            times[variant].append(time.perf_counter() - start)
    error = (outputs[VARIANTS[1]] - outputs[VARIANTS[2]]).abs().max().item()

    latents = inputs["hidden_states"]
    tokens = latents.shape[2] * latents.shape[3] * latents.shape[4] // 4
    base = statistics.median(times[VARIANTS[0]])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{tokens} tokens, dim {args.dim}, {args.layers} layers, {args.dtype}, {device}\n")
    print("| variant | time, ratio to scalar (min, max) | peak MiB |\n|---|---|---|")
    for variant in VARIANTS:
        ratios = sorted(t / base for t in times[variant])
        print(
            f"| {variant} | {statistics.median(ratios):.2f} ({ratios[0]:.2f}, {ratios[-1]:.2f}) "
            f"| {memory[variant]:.0f} |"
        )
    print(f"\nper frame against per token, largest difference of the output: {error:.1e}")


def build(args: argparse.Namespace, variants: tuple[str, ...]) -> dict[str, torch.nn.Module]:
    """One base and one VTA model of the same weights; the per-token route uses the base."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = {
        "num_attention_heads": args.dim // 128,
        "attention_head_dim": 128,
        "ffn_dim": args.dim * 27 // 10,
        "num_layers": args.layers,
        "text_dim": 512,
    }
    dtype = getattr(torch, args.dtype)
    with torch.device(device):
        ours = VTAWanTransformer3DModel(**config).to(dtype).eval().requires_grad_(False)
        if variants == VARIANTS[2:]:
            return {VARIANTS[2]: ours}
        base = WanTransformer3DModel(**config).to(dtype).eval().requires_grad_(False)
    base.load_state_dict(ours.state_dict())
    return {VARIANTS[0]: base, VARIANTS[1]: base, VARIANTS[2]: ours}


def make_inputs(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Random latents, a timestep per frame, a prompt."""
    torch.manual_seed(1)
    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, args.dtype)
    shape = (1, 16, (args.frames - 1) // 4 + 1, args.height // 8, args.width // 8)
    return {
        "hidden_states": torch.randn(shape).to(device, dtype),
        "timestep": 1000 * torch.rand(1, shape[2]).to(device),
        "encoder_hidden_states": torch.randn(1, 512, 512).to(device, dtype),
    }


@torch.no_grad()
def forward(models: dict, variant: str, inputs: dict) -> torch.Tensor:
    """One forward pass; each variant is given its own form of the timestep."""
    latents, timestep = inputs["hidden_states"], inputs["timestep"]
    if variant == VARIANTS[0]:
        timestep = timestep[:, 0]
    elif variant == VARIANTS[1]:
        timestep = timestep.repeat_interleave(latents.shape[3] * latents.shape[4] // 4, dim=1)
    return models[variant](**{**inputs, "timestep": timestep}, return_dict=False)[0]


def peak_memory(args: argparse.Namespace, variant: str) -> float:
    """MiB that one forward pass takes beyond weights and inputs."""
    chosen = (variant,) if variant == VARIANTS[2] else VARIANTS
    models, inputs = build(args, chosen), make_inputs(args)
    if torch.cuda.is_available():
        models = {variant: models[variant]}
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        forward(models, variant, inputs)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    forward(models, variant, inputs)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
