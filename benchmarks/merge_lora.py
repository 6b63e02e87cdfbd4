"""Time and peak memory of merging a LoRA: tensor by tensor (ours), by PEFT, and a plain copy.

    python benchmarks/merge_lora.py                      # Wan2.1-T2V-1.3B's shapes, rank 64
    python benchmarks/merge_lora.py --dim 5120 --ffn-dim 13824 --layers 40 --rank 512  # 14B

Weights are random. Every run is a process of its own, variant after variant, round after round.
Times leave out imports and are given as a ratio to the copy's median; memory is the process's
peak, and how much of it came after the imports.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

# Nothing large is imported here: a process starts with its parent's peak as its own.
SCALE = 1.4
SHARD_SIZE = "1GB"
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=1536, help="a multiple of 128")
    parser.add_argument("--ffn-dim", type=int, default=8960)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for the files; temporary if not given")
    parser.add_argument("--step", choices=("build", "compare", *VARIANTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(STEPS[args.step](args)))
        return

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        base = run_step(folder, "build")
        measured = {variant: [] for variant in VARIANTS}
        for _ in range(args.rounds):
            for variant in VARIANTS:
                shutil.rmtree(Path(folder) / variant, ignore_errors=True)
                measured[variant].append(run_step(folder, variant))
        difference = run_step(folder, "compare")

    copy = statistics.median(run["seconds"] for run in measured["copy"])
    print(
        f"{base['bytes'] / 2**30:.2f} GiB in {base['shards']} shards, {args.dtype}, LoRA of rank "
        f"{args.rank} with {base['lora_bytes'] / 2**20:.0f} MiB; largest tensor "
        f"{base['largest_bytes'] / 2**20:.0f} MiB\n"
    )
    print(
        "| variant | time, ratio to copy (min, max) | peak MiB | after imports |\n|---|---|---|---|"
    )
    for variant, description in VARIANTS.items():
        ratios = sorted(run["seconds"] / copy for run in measured[variant])
        peak = max(run["peak"] for run in measured[variant])
        grown = max(run["peak"] - run["imported"] for run in measured[variant])
        print(
            f"| {description} | {statistics.median(ratios):.2f} ({ratios[0]:.2f}, {ratios[-1]:.2f})"
            f" | {peak / 2**10:.0f} | {grown / 2**10:.0f} |"
        )
    print(f"\nours and PEFT's, largest difference of a weight: {difference:.1e}")


def run_step(folder: str, step: str):
    """One step in a process of its own; what it printed last."""
    command = [sys.executable, *sys.argv, "--step", step, "--folder", folder]
    return json.loads(subprocess.check_output(command, text=True).splitlines()[-1])


def build(args: argparse.Namespace) -> dict:
    """Write the base and the LoRA; say how large they are."""
    import torch
    from diffusers import WanTransformer3DModel

    from pusa.models.folder import digest_weights
    from pusa.models.lora import LoraInfo, save_lora

    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, args.dtype))
    model = WanTransformer3DModel(
        num_attention_heads=args.dim // 128,
        attention_head_dim=128,
        ffn_dim=args.ffn_dim,
        num_layers=args.layers,
    )
    torch.set_default_dtype(torch.float32)
    base = args.folder / "base"
    model.save_pretrained(base, max_shard_size=SHARD_SIZE)
    tensors = {}
    for name, module in model.named_modules():
        if name.startswith("blocks.") and name.endswith(TARGETS):
            columns, rows = module.in_features, module.out_features
            tensors[f"{name}.lora_A.weight"] = 0.02 * torch.randn(args.rank, columns)
            tensors[f"{name}.lora_B.weight"] = 0.02 * torch.randn(rows, args.rank)
    info = LoraInfo(
        rank=args.rank,
        lora_alpha=args.rank,
        targets=TARGETS,
        base=digest_weights(base),
        iteration=0,
        p_async=1.0,
        vectorized=True,
    )
    save_lora(args.folder / "lora.safetensors", tensors, info)
    shards = list(base.glob("*.safetensors"))
    return {
        "bytes": sum(shard.stat().st_size for shard in shards),
        "shards": len(shards),
        "lora_bytes": (args.folder / "lora.safetensors").stat().st_size,
        "largest_bytes": max(p.nbytes for p in model.parameters()),
    }


def copy(args: argparse.Namespace) -> dict:
    """Copy the base's files."""
    with Measurement() as measurement:
        shutil.copytree(args.folder / "base", args.folder / "copy")
    return measurement.result


def merge_streaming(args: argparse.Namespace) -> dict:
    """Merge with this library."""
    from pusa.models.lora import merge_lora

    with Measurement() as measurement:
        lora = args.folder / "lora.safetensors"
        merge_lora(args.folder / "base", lora, args.folder / "ours", lora_scale=SCALE)
    return measurement.result


def merge_with_peft(args: argparse.Namespace) -> dict:
    """Load, adapt, merge and save, with diffusers and PEFT."""
    import torch
    from diffusers import WanTransformer3DModel
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    with Measurement() as measurement:
        model = WanTransformer3DModel.from_pretrained(
            args.folder / "base", torch_dtype=getattr(torch, args.dtype)
        )
        config = LoraConfig(r=args.rank, lora_alpha=SCALE * args.rank, target_modules=list(TARGETS))
        model = get_peft_model(model, config)
        tensors = load_file(args.folder / "lora.safetensors")
        tensors = {
            f"base_model.model.{k.removeprefix('transformer.')}": t for k, t in tensors.items()
        }
        set_peft_model_state_dict(model, tensors)
        del tensors
        model.merge_and_unload().save_pretrained(args.folder / "peft", max_shard_size=SHARD_SIZE)
    return measurement.result


def compare(args: argparse.Namespace) -> float:
    """The largest difference between the two merged models; both differ from the base."""
    from pusa.models.folder import weight_files
    from pusa.models.stream import read_header, read_tensor

    homes = {}
    for variant in ("ours", "peft", "base"):
        files = weight_files(args.folder / variant)
        homes[variant] = {name: file for file in files for name in read_header(file)[0]}
    largest, changed = 0.0, 0
    for name in homes["base"]:
        base, ours, peft = (read_tensor(homes[v][name], name) for v in ("base", "ours", "peft"))
        largest = max(largest, (ours.float() - peft.float()).abs().max().item())
        changed += not ours.equal(base)
    assert changed == 10 * args.layers, changed
    return largest


class Measurement:
    """Seconds and peak memory (KiB) of a ``with`` block; ``result`` when it is left."""

    def __enter__(self):
        self.result = {"imported": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_):
        self.result["seconds"] = time.perf_counter() - self._start
        self.result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


VARIANTS = {
    "copy": "copy of the files",
    "ours": "tensor by tensor (ours)",
    "peft": "`merge_and_unload` (PEFT)",
}
STEPS = {
    "build": build,
    "compare": compare,
    "copy": copy,
    "ours": merge_streaming,
    "peft": merge_with_peft,
}

if __name__ == "__main__":
    main()
