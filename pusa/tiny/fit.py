"""The training loop of the tiny model's parts: Muon and AdamW, warm-up, a constant rate, decay.

Muon (orthogonalised momentum) reaches in minutes here what AdamW alone does not in an hour.
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import ModelMixin
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from pusa.records import atomic

WARMUP_STEPS = 50
DECAY = 0.25  # share of the steps in which the learning rate falls to zero
CHECKPOINT_SECONDS = 120
COMPILED_STEPS = 500  # compiling takes half a minute, and saves a third of a step


def fit(
    model: nn.Module,
    loss_of_step: Callable[[int], torch.Tensor],
    *,
    steps: int,
    muon_lr: float,
    adamw_lr: float,
    description: str,
    checkpoint: Path | None = None,
) -> list[float]:
    """Minimise ``loss_of_step(step)`` over the model's parameters and return every loss.

    `torch.optim.Muon` takes matrices only, so a convolution kernel is handed to it as a
    matrix of shape (out channels, everything else) that shares the kernel's memory.

    Args:
        loss_of_step: draws by torch's generator for the CPU, if at all.
        checkpoint: a file that is written every two minutes; if it is there, training goes on
            from it, and on a CPU ends with the very weights that it would have ended with.

    Raises:
        FloatingPointError: at the first loss that is not finite.
        ValueError: if the checkpoint is of another training.
    """
    kernels = [p for p in model.parameters() if p.ndim >= 2 and min(len(p), p[0].numel()) > 1]
    kernel_ids = {id(p) for p in kernels}
    matrices = [nn.Parameter(p.data.view(len(p), -1)) for p in kernels]
    others = [p for p in model.parameters() if id(p) not in kernel_ids]
    optimizers = {
        "muon": torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.0),
        "adamw": torch.optim.AdamW(others, lr=adamw_lr, betas=(0.9, 0.99), weight_decay=0.0),
    }
    rates = {"muon": muon_lr, "adamw": adamw_lr}
    run = {"description": description, "steps": steps, **rates}
    losses: list[float] = []
    if checkpoint and checkpoint.exists():
        losses = _read_checkpoint(checkpoint, run, model, optimizers)
    saved = time.monotonic()
    start = len(losses)
    progress = tqdm(
        range(start, steps), desc=description, initial=start, total=steps, mininterval=5
    )
    device = next(model.parameters()).device.type
    half = device != "cpu" or torch.cpu.get_capabilities().get("amx_bf16", False)
    # On a CPU flash attention's backward pass is slow in bfloat16: half of the time of a step.
    attention = [SDPBackend.MATH]
    if device != "cpu":
        attention += [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    for step in progress:
        rate = min(1.0, (step + 1) / WARMUP_STEPS, (1 - step / steps) / DECAY)
        for name, optimizer in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[name] * rate
        # With matrix instructions for bfloat16 such activations halve the time of a step, without
        # them they cost a third more; weights and updates are float32.
        with torch.autocast(device, torch.bfloat16, enabled=half), sdpa_kernel(attention):
            loss = loss_of_step(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{description}: loss is {loss.item()} at step {step}")
        loss.backward()
        for kernel, matrix in zip(kernels, matrices, strict=True):
            if kernel.grad is not None:  # temporal layers rest while single frames are learnt
                matrix.grad, kernel.grad = kernel.grad.view_as(matrix), None
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if step % 50 == 49:
            progress.set_postfix(loss=f"{sum(losses[-50:]) / 50:.4f}", refresh=False)
        if checkpoint and (time.monotonic() - saved > CHECKPOINT_SECONDS or step + 1 == steps):
            _write_checkpoint(checkpoint, run, model, optimizers, losses)
            saved = time.monotonic()
    return losses


def compile_blocks(transformer: ModelMixin, steps: int) -> None:
    """Compile a transformer's blocks if that pays for so many steps, and there is a compiler."""
    if steps >= COMPILED_STEPS and (transformer.device.type != "cpu" or shutil.which("g++")):
        transformer.compile_repeated_blocks()


def _write_checkpoint(file: Path, run: dict, model, optimizers, losses: list[float]) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, optimizer in optimizers.items():
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{i}.{key}": tensor for key, tensor in state.items()}
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    tensors["generator"] = torch.get_rng_state()
    with atomic(file) as partial:
        save_file(
            {n: t.contiguous() for n, t in tensors.items()}, partial, {"run": json.dumps(run)}
        )


def _read_checkpoint(file: Path, run: dict, model, optimizers) -> list[float]:
    """Put a checkpoint's state in place, and return the losses until then."""
    with safe_open(file, "pt") as saved:
        made = json.loads(saved.metadata()["run"])
        tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118
    shapes = {f"model.{name}": tensor.shape for name, tensor in model.state_dict().items()}
    if made != run or any(
        name not in tensors or tensors[name].shape != shape for name, shape in shapes.items()
    ):
        raise ValueError(f"{file} is of another training, {made}, expected {run}; delete it")
    for name, tensor in model.state_dict().items():
        tensor.copy_(tensors[f"model.{name}"])  # in place: matrices share the kernels' memory
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            kind, *place = key.split(".", 2)
            if kind == name:
                state.setdefault(int(place[0]), {})[place[1]] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    torch.set_rng_state(tensors["generator"])
    return tensors["losses"].tolist()
