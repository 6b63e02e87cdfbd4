"""The training loop of the tiny model's parts: Muon and AdamW, warm-up, cosine decay.

Muon (orthogonalised momentum) reaches in minutes here what AdamW alone does not in an hour.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from tqdm import tqdm

WARMUP_STEPS = 50


def fit(
    model: nn.Module,
    loss_of_step: Callable[[int], torch.Tensor],
    *,
    steps: int,
    muon_lr: float,
    adamw_lr: float,
    description: str,
) -> list[float]:
    """Minimise ``loss_of_step(step)`` over the model's parameters and return every loss.

    `torch.optim.Muon` takes matrices only, so a convolution kernel is handed to it as a
    matrix of shape (out channels, everything else) that shares the kernel's memory.

    Raises:
        FloatingPointError: at the first loss that is not finite.
    """
    kernels = [p for p in model.parameters() if p.ndim >= 2 and min(len(p), p[0].numel()) > 1]
    kernel_ids = {id(p) for p in kernels}
    matrices = [nn.Parameter(p.data.view(len(p), -1)) for p in kernels]
    others = [p for p in model.parameters() if id(p) not in kernel_ids]
    optimizers = [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.0),
        torch.optim.AdamW(others, lr=adamw_lr, betas=(0.9, 0.99), weight_decay=0.0),
    ]

    def lr_factor(step: int) -> float:
        decay = 0.5 * (1 + math.cos(math.pi * step / steps))
        return min(1.0, (step + 1) / WARMUP_STEPS) * decay

    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, lr_factor) for o in optimizers]
    losses = []
    progress = tqdm(range(steps), desc=description, mininterval=5)
    for step in progress:
        # bfloat16 activations halve the time of a step; weights and updates stay float32.
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of_step(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{description}: loss is {loss.item()} at step {step}")
        loss.backward()
        for kernel, matrix in zip(kernels, matrices, strict=True):
            if kernel.grad is not None:  # temporal layers rest while single frames are learnt
                matrix.grad, kernel.grad = kernel.grad.view_as(matrix), None
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if step % 50 == 49:
            progress.set_postfix(loss=f"{sum(losses[-50:]) / 50:.4f}", refresh=False)
    return losses
