"""What a GPU can tell of this project, by one command.

    python benchmarks/gpu.py --out FOLDER [--minutes M] [--blocks 40]

Random weights of Wan2.1-T2V-14B's shapes, at the paper's two sizes; nothing is downloaded. Parts
run in order of importance, each in a process of its own, and a finished one is kept in
``FOLDER/<part>.json``, so that the same command goes on where it was stopped. ``FOLDER/gpu.md`` has
the tables. A model of fewer than 40 blocks stands for the whole by its time a block; the part
``blocks`` tells whether that is a straight line. Without a GPU everything runs on the CPU at toy
sizes, which checks the script and measures nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPE = torch.bfloat16

# Of the 14B model, and of the toy that stands for it.
DIM, FFN, HEAD, TEXT = (5120, 13824, 128, 512) if ON_GPU else (256, 512, 128, 16)
LAYERS = 40
#: Pixel frames, height and width.
CLIPS = {"832x480x81": (81, 480, 832), "1280x720x81": (81, 720, 1280)}
if not ON_GPU:
    CLIPS = {"64x64x9": (9, 64, 64), "96x64x9": (9, 64, 96)}
RANKS = (512, 256) if ON_GPU else (8, 4)
BACKENDS = ("native", "_native_cudnn", "_native_flash", "_native_efficient")
ROUTES = ("scalar base", "per frame (ours)", "per token (diffusers)")
TEXT_ENCODER = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "d_kv": 64}
if not ON_GPU:
    TEXT_ENCODER = {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 4, "d_kv": 16}
VAE = {} if ON_GPU else {"base_dim": 16}
TINY_STEPS = 200 if ON_GPU else 3
RESUMED = 200 if ON_GPU else 15  # iterations of the training that is stopped and resumed

Rows = list[dict[str, object]]


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--minutes", type=float, help="no part is started after these")
    parser.add_argument("--blocks", type=int, default=12 if ON_GPU else 4, help="4 to 40")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not 4 <= args.blocks <= LAYERS:
        parser.error(f"--blocks: found {args.blocks}, expected 4 to {LAYERS}")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part:
        rows = PARTS[args.part](args.blocks)
        result = {"run": describe_run(args.blocks), "rows": rows}
        from pusa.records import atomic

        with atomic(args.out / f"{args.part}.json") as partial_file:
            partial_file.write_text(json.dumps(result, indent=1) + "\n")
        return

    started, failed = time.monotonic(), []
    for part in PARTS:
        if read_rows(args, part) is None:
            if args.minutes and time.monotonic() - started > 60 * args.minutes:
                print(f"{part}: no time left; run the same command again")
                continue
            command = [sys.executable, __file__, "--out", str(args.out), "--part", part]
            if subprocess.run([*command, "--blocks", str(args.blocks)]).returncode:
                failed.append(part)
                continue
        print(f"\n{part}\n\n{as_table(read_rows(args, part))}", flush=True)
    write_page(args)
    if failed:
        sys.exit(f"failed, as told above: {', '.join(failed)}")


def describe_run(blocks: int) -> dict[str, object]:
    """What the numbers of a part depend on."""
    driver = ""
    if ON_GPU:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.check_output(query, text=True).split()[0]
    return {
        "device": torch.cuda.get_device_name() if ON_GPU else "CPU, toy sizes",
        "driver": driver,
        "CUDA": torch.version.cuda or "",
        "torch": torch.__version__,
        "blocks": blocks,
    }


def read_rows(args: argparse.Namespace, part: str) -> Rows | None:
    """A finished part's rows; None if it is not finished, or was run on something else."""
    file = args.out / f"{part}.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    return found["rows"] if found.get("run") == describe_run(args.blocks) else None


def as_table(rows: Rows) -> str:
    """Rows as Markdown."""
    import pandas as pd

    shown = [
        {k: f"{v:,.3g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
    ]
    return pd.DataFrame(shown).fillna("").to_markdown(index=False)


def write_page(args: argparse.Namespace) -> None:
    """``gpu.md``: what was run on, and a table for each part that is finished."""
    told = ", ".join(f"{k} {v}" for k, v in describe_run(args.blocks).items() if v)
    command = f"python benchmarks/gpu.py --out FOLDER --blocks {args.blocks}"
    lines = [f"# Measured on {told}", f"`{command}`; dim {DIM}, ffn {FFN}, {TEXT} text tokens."]
    for part, function in PARTS.items():
        rows = read_rows(args, part)
        about = function.__doc__.split("\n\n")[0].replace("\n    ", " ")
        lines += [f"## {part}", about, "not measured" if rows is None else as_table(rows)]
    (args.out / "gpu.md").write_text("\n\n".join(lines) + "\n")


# Measuring


def side_by_side(functions: dict[str, Callable], rounds: int = 3) -> dict[str, float]:
    """Median seconds of each, interleaved, after a first round that does not count."""
    times = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(some[1:]) for name, some in times.items()}


def peak_gib(function: Callable) -> float:
    """GiB that a call takes at most, with what was there before; 0 on a CPU."""
    if not ON_GPU:
        function()
        return 0.0
    synchronize()
    torch.cuda.reset_peak_memory_stats()
    function()
    return torch.cuda.max_memory_allocated() / 2**30


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if ON_GPU:
        torch.cuda.synchronize()


def latent_size(clip: str) -> tuple[int, int, int]:
    """Latent frames, height and width."""
    frames, height, width = CLIPS[clip]
    return (frames - 1) // 4 + 1, height // 8, width // 8


def count_tokens(clip: str) -> int:
    """Tokens of a clip."""
    frames, height, width = latent_size(clip)
    return frames * height * width // 4


def forward_flops(clip: str, blocks: int) -> float:
    """Operations of a forward pass, counted as the plan does."""
    from pusa.speed import Shape

    return Shape(DIM, FFN, blocks).forward_flops(count_tokens(clip), TEXT)


def build(blocks: int, *, vectorized: bool = True, device: torch.device = DEVICE):
    """A transformer with random weights."""
    from diffusers import WanTransformer3DModel

    from pusa import VTAWanTransformer3DModel

    kind = VTAWanTransformer3DModel if vectorized else WanTransformer3DModel
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(DTYPE)
        model = kind(
            num_attention_heads=DIM // HEAD,
            attention_head_dim=HEAD,
            ffn_dim=FFN,
            num_layers=blocks,
            text_dim=TEXT_ENCODER["d_model"],
        )
        torch.set_default_dtype(torch.float32)
    # As `from_pretrained` leaves it: what the model keeps in float32 is float32.
    for name, parameter in model.named_parameters():
        if any(kept in name for kept in kind._keep_in_fp32_modules):
            parameter.data = parameter.data.float()
    return model.eval().requires_grad_(False)


def make_inputs(clip: str) -> dict[str, torch.Tensor]:
    """Random latents, a timestep per frame and a prompt."""
    torch.manual_seed(1)
    shape = (1, 16, *latent_size(clip))
    return {
        "hidden_states": torch.randn(shape).to(DEVICE, DTYPE),
        "timestep": 1000 * torch.rand(1, shape[2]).to(DEVICE),
        "encoder_hidden_states": torch.randn(1, TEXT, TEXT_ENCODER["d_model"]).to(DEVICE, DTYPE),
    }


def timestep_for(route: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The form of the timestep that a route takes."""
    timestep, (*_, height, width) = inputs["timestep"], inputs["hidden_states"].shape
    if route == ROUTES[0]:
        return timestep[:, 0]
    return timestep if route == ROUTES[1] else timestep.repeat_interleave(height * width // 4, 1)


@torch.no_grad()
def forward(model, route: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """One forward pass."""
    return model(**{**inputs, "timestep": timestep_for(route, inputs)}, return_dict=False)[0]


# Parts


@cache
def measure_ceiling(_: int) -> Rows:
    """The device's own speed at products and attention of the real sizes, in bfloat16."""
    rows = []
    for clip in CLIPS:
        tokens = count_tokens(clip)
        a = torch.randn(tokens, DIM, device=DEVICE, dtype=DTYPE)
        w = torch.randn(FFN, DIM, device=DEVICE, dtype=DTYPE)
        seconds = side_by_side({"": lambda a=a, w=w: a @ w.T})[""]
        flops = 2 * tokens * DIM * FFN
        what = f"product of {tokens:,} x {DIM:,} and {FFN:,} x {DIM:,}"
        rows.append({"what": what, "ms": 1e3 * seconds, "TFLOP/s": flops / seconds / 1e12})
        q = torch.randn(1, DIM // HEAD, tokens, HEAD, device=DEVICE, dtype=DTYPE)
        seconds = side_by_side(
            {"": lambda q=q: torch.nn.functional.scaled_dot_product_attention(q, q, q)}
        )[""]
        what = f"attention of {tokens:,} tokens, {DIM // HEAD} heads of {HEAD}"
        flops = 4 * tokens**2 * DIM
        rows.append({"what": what, "ms": 1e3 * seconds, "TFLOP/s": flops / seconds / 1e12})
    return rows


def measure_forward(blocks: int) -> Rows:
    """One forward pass, scaled to 40 blocks, and its share of the device's own speed.

    That of products and attention of the same sizes, each by its share of the operations.
    """
    return [row for clip in CLIPS for row in _forward_rows(clip, blocks)]


def _forward_rows(clip: str, blocks: int) -> Rows:
    scalar, ours, inputs = build(blocks, vectorized=False), build(blocks), make_inputs(clip)
    passes = {
        route: partial(forward, ours if route == ROUTES[1] else scalar, route, inputs)
        for route in ROUTES
    }
    seconds = side_by_side(passes)
    ceiling = _flop_seconds(clip, blocks)
    return [
        {
            "clip": clip,
            "route": route,
            "seconds": seconds[route] * LAYERS / blocks,
            "to scalar": seconds[route] / seconds[ROUTES[0]],
            "of ceiling": ceiling / seconds[route],
            "GiB beyond weights": peak_gib(one) - _allocated_gib(),
        }
        for route, one in passes.items()
    ]


def measure_blocks(blocks: int) -> Rows:
    """Whether time is a straight line in the number of blocks: a quarter beside what the line says.

    The line goes through a half and the whole.
    """
    clip = next(iter(CLIPS))
    inputs, times = make_inputs(clip), {}
    for n in (blocks // 4, blocks // 2, blocks):
        times[n] = side_by_side({"": partial(forward, build(n), ROUTES[1], inputs)})[""]
    (quarter, half, whole), (_, b, c) = times, times.values()
    line = {quarter: c - (whole - quarter) * (c - b) / (whole - half)}
    return [{"blocks": n, "seconds": t, "line": line.get(n, t)} for n, t in times.items()]


def measure_kernels(blocks: int) -> Rows:
    """One forward pass of ours by attention backend, and with compiled blocks."""
    clip, rows = next(iter(CLIPS)), []
    model = build(blocks)
    one = partial(forward, model, ROUTES[1], make_inputs(clip))
    for backend in BACKENDS:
        try:
            model.set_attention_backend(backend)
            seconds = side_by_side({"": one})[""]
        except (RuntimeError, ValueError, NotImplementedError) as error:
            rows.append({"backend": backend, "note": str(error).splitlines()[0][:80]})
            continue
        rows.append({"backend": backend, "seconds": seconds * LAYERS / blocks})
    model.set_attention_backend("native")
    model.compile_repeated_blocks()
    seconds = side_by_side({"": one})[""]
    rows.append({"backend": "native, compiled", "seconds": seconds * LAYERS / blocks})
    return rows


def measure_step(blocks: int) -> Rows:
    """One guided sampling step, two passes, through the sampler, scaled to 40 blocks."""
    from pusa.flow import sigma_grid
    from pusa.sampler import model_velocity, sample_latents

    rows = []
    model = build(blocks)
    for clip in CLIPS:
        inputs = make_inputs(clip)
        noise = inputs["hidden_states"].float()

        def step(inputs=inputs, noise=noise):
            sample_latents(
                model_velocity(model),
                noise,
                sigma_grid(1),
                multipliers=torch.ones(noise.shape[2]),
                condition=torch.zeros_like(noise),
                prompt_embeds=inputs["encoder_hidden_states"],
                negative_embeds=inputs["encoder_hidden_states"],
                guidance_scale=5.0,
            )

        rows.append({"clip": clip, "seconds": side_by_side({"": step})[""] * LAYERS / blocks})
    return rows


def measure_training(blocks: int) -> Rows:
    """One training step of a LoRA on one clip: forward, backward with recomputing, optimizer.

    Time is scaled to 40 blocks. Memory is of the blocks that ran, measured, and counted for the
    same on the meta device.
    """
    from pusa.train.engine import join_processes

    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}.items():
        os.environ.setdefault(name, str(value))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29517")
    join_processes()
    rows = []
    for clip in CLIPS:
        for rank, lora_dtype, offload in (
            (RANKS[0], "bfloat16", "activations"),  # the authors'
            (RANKS[0], "bfloat16", "none"),
            (RANKS[0], "bfloat16", "both"),
            (RANKS[0], "float32", "none"),
            (RANKS[1], "bfloat16", "none"),
        ):
            row = {"clip": clip, "rank": rank, "LoRA": lora_dtype, "offload": offload}
            try:
                row |= _train_once(clip, blocks, rank, lora_dtype, offload)
            except torch.OutOfMemoryError:
                row["note"] = "out of memory"
            rows.append(row)
            if ON_GPU:
                torch.cuda.empty_cache()
    return rows


def _train_once(
    clip: str, blocks: int, rank: int, lora_dtype: str, offload: str
) -> dict[str, float]:
    from pusa.config import TrainSettings
    from pusa.train.engine import prepare, start_engine
    from pusa.train.step import offloaded, training_loss

    settings = TrainSettings(
        rank=rank,
        iterations=[1],
        total_batch=1,
        micro_batch=1,
        dtype="bfloat16",
        lora_dtype=lora_dtype,
        offload=offload,
        gradient_checkpointing=True,
    )
    engine, _ = start_engine(settings, prepare(build(blocks).train(), settings), 1)
    inputs = make_inputs(clip)
    x0, prompt = inputs["hidden_states"].float(), inputs["encoder_hidden_states"]

    def step() -> None:
        sigma = inputs["timestep"] / 1000
        with offloaded(settings, engine.device):
            loss = training_loss(engine, x0, torch.randn_like(x0), sigma, prompt, settings)
        engine.backward(loss)
        engine.step()

    seconds = side_by_side({"": step}, rounds=2)[""]
    measured = {
        "seconds": seconds * LAYERS / blocks,
        # Forward, forward again, and the gradients of activations, which take two forwards.
        "of ceiling": 4 * _flop_seconds(clip, blocks) / seconds,
        "GiB": peak_gib(step),
        "GiB counted": count_training_gib(clip, blocks, rank, lora_dtype, offload),
    }
    engine.destroy()
    return measured


def count_training_gib(clip: str, blocks: int, rank: int, lora_dtype: str, offload: str) -> float:
    """Memory of a training step, counted on the meta device as `pusa memory` does."""
    from pusa.config import MemorySettings
    from pusa.memory import add_deepspeed, count_step

    frames, height, width = CLIPS[clip]
    settings = MemorySettings(
        frames=frames,
        height=height,
        width=width,
        text_tokens=TEXT,
        rank=rank,
        total_batch=1,
        lora_dtype=lora_dtype,
        offload=offload,
    )
    transformer = {
        "num_attention_heads": DIM // HEAD,
        "attention_head_dim": HEAD,
        "ffn_dim": FFN,
        "num_layers": blocks,
        "in_channels": 16,
        "text_dim": TEXT_ENCODER["d_model"],
    }
    return sum(add_deepspeed(count_step(transformer, settings), settings).values())


def measure_vae(_: int) -> Rows:
    """Encoding and decoding a clip in float32, bare and through pusa, and with tiling; a prompt."""
    return [row for clip in CLIPS for row in _vae_rows(clip)] + [_text_row()]


@torch.no_grad()
def _vae_rows(clip: str) -> Rows:
    from diffusers import AutoencoderKLWan

    from pusa.models.load import decode_latents, encode_pixels

    with torch.device(DEVICE):
        vae = AutoencoderKLWan(**VAE).eval().requires_grad_(False)
        pixels = torch.rand(1, 3, *CLIPS[clip]) * 2 - 1
    latents = vae.encode(pixels).latent_dist.mode()
    bare = {"encode": partial(vae.encode, pixels), "decode": partial(vae.decode, latents)}
    ours = {
        "encode by pusa": partial(encode_pixels, vae, pixels),
        "decode by pusa": partial(decode_latents, vae, latents),
    }
    seconds = side_by_side(bare | ours, rounds=2)
    memory = {name: peak_gib(one) for name, one in bare.items()}
    vae.enable_tiling()
    tiled = {f"{name}, tiled": one for name, one in bare.items()}
    seconds |= side_by_side(tiled, rounds=2)
    memory |= {name: peak_gib(one) for name, one in tiled.items()}
    return [
        {
            "what": name,
            "clip": clip,
            "seconds": taken,
            "speed to bare": seconds[name[:6]] / taken,
            "GiB": memory.get(name, ""),
        }
        for name, taken in seconds.items()
    ]


@torch.no_grad()
def _text_row() -> dict[str, object]:
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device(DEVICE):
        encoder = UMT5EncoderModel(UMT5Config(vocab_size=256384, **TEXT_ENCODER)).to(DTYPE).eval()
        tokens = torch.randint(0, 1000, (1, TEXT))
    seconds = side_by_side({"": partial(encoder, tokens)})[""]
    return {"what": f"encode a prompt of {TEXT} tokens", "seconds": seconds}


def measure_merge(blocks: int) -> Rows:
    """Merging a LoRA beside a copy of the files and PEFT's merge, by benchmarks/merge_lora.py."""
    script = Path(__file__).with_name("merge_lora.py")
    sizes = {"dim": DIM, "ffn-dim": FFN, "layers": blocks, "rank": RANKS[0], "rounds": 1}
    command = [sys.executable, str(script), *(f"--{k}={v}" for k, v in sizes.items())]
    lines = subprocess.check_output(command, text=True).splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    names = table[0]
    return [dict(zip(names, cells, strict=True)) for cells in table[2:]]


def measure_tiny(_: int) -> Rows:
    """Training of the embedded model's base: steps a second, 16 clips each, of the second half."""
    from pusa.flow import TRAIN_TIMESTEPS, fafm_loss, interpolate
    from pusa.tiny.base import BATCH, build_transformer
    from pusa.tiny.fit import fit

    torch.manual_seed(0)
    transformer = build_transformer().to(DEVICE)
    x0 = torch.randn(BATCH, 16, 9, 8, 8, device=DEVICE)
    prompt = torch.randn(BATCH, 20, transformer.config.text_dim, device=DEVICE)
    moments = []

    def loss_of_step(_: int) -> torch.Tensor:
        synchronize()
        moments.append(time.perf_counter())
        x1, sigma = torch.randn_like(x0), torch.rand(BATCH, device=DEVICE)
        noisy = interpolate(x0, x1, sigma[:, None].expand(-1, x0.shape[2]))
        prediction = transformer(noisy, TRAIN_TIMESTEPS * sigma, prompt, return_dict=False)[0]
        return fafm_loss(prediction, x0, x1)

    fit(transformer, loss_of_step, steps=TINY_STEPS, muon_lr=1e-3, adamw_lr=1e-3,
        description="tiny")  # fmt: skip
    taken = statistics.median(b - a for a, b in pairwise(moments[TINY_STEPS // 2 :]))
    return [{"what": "the embedded base", "ms a step": 1e3 * taken, "steps a second": 1 / taken}]


def measure_agreement(_: int) -> Rows:
    """Largest differences of a pass through two blocks, in standard deviations of the output.

    And whether a training that is stopped and resumed ends with the very weights of another.
    """
    inputs = make_inputs(next(iter(CLIPS)))
    scalar, ours = build(2, vectorized=False), build(2)
    scalar.load_state_dict(ours.state_dict())
    full = {name: tensor.float() for name, tensor in inputs.items()}
    low = forward(ours, ROUTES[1], inputs).float()
    low_by_token = forward(scalar, ROUTES[2], inputs).float()
    high = forward(ours.float(), ROUTES[1], full)
    high_by_token = forward(scalar.float(), ROUTES[2], full)
    compared = {
        "ours and per token, bfloat16": (low, low_by_token),
        "ours and per token, float32": (high, high_by_token),
        "ours, bfloat16 and float32": (low, high),
    }
    rows = [
        {"what": what, "largest difference": ((a - b).abs().max() / high.std()).item()}
        for what, (a, b) in compared.items()
    ]
    return [*rows, {"what": "a training resumed, to the bit", "equal": resumes_to_the_bit()}]


def resumes_to_the_bit() -> bool:
    """Whether `pusa train` of the embedded model ends alike with and without a stop."""
    from safetensors.torch import load_file, save_file

    model = Path(__file__).parents[1] / "pusa/tiny/model"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = folder / "cache"
        cache.mkdir()
        generator = torch.Generator().manual_seed(0)
        clips = {str(i): torch.randn(16, 9, 8, 8, generator=generator) for i in range(12)}
        save_file(clips, cache / "latents-00000.safetensors")
        from pusa.data.cache import cache_prompts

        cache_prompts({"a red circle"}, model, cache / "captions.safetensors", text_tokens=20)
        listed = [
            {"shard": "latents-00000.safetensors", "name": i, "caption": "a red circle", "file": i}
            for i in clips
        ]
        (cache / "index.json").write_text(json.dumps({"made": {}, "clips": listed}))

        def train(name: str, *, stopped: bool) -> dict[str, torch.Tensor]:
            out, state = folder / name, folder / f"{name}-state"
            options = {"rank": 4, "total-batch": 4, "validation-clips": 0, "checkpoint-every": 1,
                       "learning-rate": 1e-2, "iterations": RESUMED, "state": state}  # fmt: skip
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command = [*torchrun, "--nproc-per-node", "1", "-m", "pusa", "train", str(cache),
                       str(model / "transformer"), str(out),
                       *(f"--{key}={value}" for key, value in options.items())]  # fmt: skip
            if stopped:
                process = subprocess.Popen(command, stdout=sys.stderr)
                while process.poll() is None and not [*state.glob("checkpoint*")]:
                    time.sleep(0.05)
                process.terminate()
                if process.wait() == 0 or not [*state.glob("checkpoint*")]:
                    raise RuntimeError("the training was not stopped on its way")
            subprocess.run(command, check=True, stdout=sys.stderr)
            return load_file(out / f"iteration_{RESUMED}.safetensors")

        whole, resumed = train("whole", stopped=False), train("resumed", stopped=True)
        return all(torch.equal(whole[key], resumed[key]) for key in whole)


def _flop_seconds(clip: str, blocks: int) -> float:
    """How long a forward pass would take at the device's own speed at products and attention."""
    product, attention = measure_ceiling(0)[2 * list(CLIPS).index(clip) :][:2]
    attention_flops = 4 * count_tokens(clip) ** 2 * DIM * blocks
    product_flops = forward_flops(clip, blocks) - attention_flops
    return sum(
        flops / (1e12 * row["TFLOP/s"])
        for flops, row in ((attention_flops, attention), (product_flops, product))
    )


def _allocated_gib() -> float:
    return torch.cuda.memory_allocated() / 2**30 if ON_GPU else 0.0


PARTS = {
    "ceiling": measure_ceiling,
    "forward": measure_forward,
    "step": measure_step,
    "training": measure_training,
    "tiny": measure_tiny,
    "blocks": measure_blocks,
    "kernels": measure_kernels,
    "agreement": measure_agreement,
    "vae": measure_vae,
    "merge": measure_merge,
}

if __name__ == "__main__":
    main()
