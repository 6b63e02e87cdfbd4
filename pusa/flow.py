"""Flow matching with one timestep per latent frame: the maths, and nothing else.

Convention, used in the whole library. ``x0`` is data, ``x1`` is noise from N(0, I).
``sigma`` in [0, 1] grows towards noise and plays both the paper's ``tau`` and Wan's
``sigma``; the transformer is given ``timestep = 1000 * sigma``. Video tensors are
``(batch, channels, frames, height, width)`` in latent space, and a per-frame quantity is
``(batch, frames)`` or ``(frames,)``. Everything here is float32: bfloat16 would turn
timestep 998.39 into 1000. Equation numbers are those of the paper, arXiv 2507.16116.
"""

import math
from typing import Literal

import torch

TRAIN_TIMESTEPS = 1000
SHIFT = 5.0  # Wan's

TimestepDistribution = Literal["uniform", "shifted"]
LossWeighting = Literal["none", "gaussian"]


def shift_sigma(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """Wan's resolution-dependent warp of the noise level, ``s * sigma / (1 + (s-1) * sigma)``."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigma_grid(steps: int, shift: float = SHIFT) -> torch.Tensor:
    """The sampler's noise levels, shape ``(steps + 1,)``, from 1 down to 0.

    ``u = linspace(1, 0, steps + 1)``, shifted (the authors' code; the paper says only that
    ``sigma_1 > ... > sigma_S`` approach 0). The last step lands on data exactly.

    Raises:
        ValueError: if there is no step, or ``shift`` is not a finite number above 0.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, found {steps}")
    if not 0 < shift < math.inf:
        raise ValueError(f"shift must be a number above 0, found {shift}")
    return shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float32), shift)


def sigma_matrix(sigmas: torch.Tensor, multipliers: torch.Tensor) -> torch.Tensor:
    """Noise level of every frame at every step, shape ``(steps + 1, frames)``.

    ``multipliers``, shape ``(frames,)``, is what tells the tasks apart: 1 for a frame to be
    made, 0 for a clean condition, between for a condition that keeps some noise. With this
    one rule, ``sigma_i(k) = m_i * sigma(k)``, every task of the paper is the same loop
    (Algorithm 1 is the case ``m = (0, 1, ..., 1)``).
    """
    if multipliers.ndim != 1:
        raise ValueError(
            f"noise multipliers must have shape (frames,), found {tuple(multipliers.shape)}"
        )
    if not ((multipliers >= 0) & (multipliers <= 1)).all():
        raise ValueError(f"noise multipliers must lie in [0, 1], found {multipliers.tolist()}")
    return sigmas[:, None] * multipliers[None, :]


def interpolate(x0: torch.Tensor, x1: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """``X_tau = (1 - tau) * X0 + tau * X1`` frame by frame (eqs. 6 and 10).

    Args:
        x0: data, ``(batch, channels, frames, height, width)``.
        x1: noise of the same shape.
        sigma: ``(batch, frames)`` or ``(frames,)``.
    """
    sigma = per_frame(sigma, x0)
    return (1 - sigma) * x0 + sigma * x1


def velocity_target(x0: torch.Tensor, x1: torch.Tensor) -> torch.Tensor:
    """``U = X1 - X0``, constant along the path (eq. 9)."""
    return x1 - x0


def euler_step(
    x: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor, sigma_next: torch.Tensor
) -> torch.Tensor:
    """``x + v * (sigma_next - sigma)`` with every frame's own step (Algorithm 1).

    A clean condition has ``sigma = sigma_next = 0``: a step of zero, so it is unchanged to
    the bit and needs no special case.
    """
    return x + velocity * per_frame(sigma_next - sigma, x)


def per_frame(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """View ``(batch, frames)`` or ``(frames,)`` so that it broadcasts over ``x``.

    Raises:
        ValueError: if the number of frames, or of clips, is not that of ``x``.
    """
    if values.shape not in {(x.shape[0], x.shape[2]), (x.shape[2],)}:
        raise ValueError(
            f"expected one value per latent frame, shape {(x.shape[0], x.shape[2])} or "
            f"{(x.shape[2],)}, found {tuple(values.shape)}"
        )
    return values.reshape(-1, 1, x.shape[2], 1, 1)


def sample_sigma(
    batch: int,
    frames: int,
    *,
    p_async: float,
    distribution: TimestepDistribution = "uniform",
    shift: float = SHIFT,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Probabilistic timestep sampling, PTSS: training noise levels ``(batch, frames)``.

    With probability ``p_async`` each frame of a clip draws its own level, otherwise one
    level is shared by all its frames. Pusa trains with ``p_async = 1``.

    Args:
        distribution: ``uniform`` draws from U[0, 1] (the paper); ``shifted`` picks one of
            1000 levels of the shifted grid (the authors' code).
    """
    if not 0 <= p_async <= 1:
        raise ValueError(f"p_async must lie in [0, 1], found {p_async}")
    u = torch.rand(batch, frames, generator=generator)
    asynchronous = torch.rand(batch, 1, generator=generator) < p_async
    u = torch.where(asynchronous, u, u[:, :1])
    if distribution == "uniform":
        return u
    if distribution == "shifted":
        index = (u * TRAIN_TIMESTEPS).floor()
        return shift_sigma(1 - index / TRAIN_TIMESTEPS, shift)
    raise ValueError(f"timestep distribution must be uniform or shifted, found {distribution!r}")


def loss_weight(
    sigma: torch.Tensor, weighting: LossWeighting = "none", shift: float = SHIFT
) -> torch.Tensor:
    """Weight of each noise level in the loss, in the shape of ``sigma``.

    ``none`` is the paper's unweighted objective. ``gaussian`` is the authors' code:
    ``exp(-2 ((t - 500) / 1000)^2)``, shifted to a minimum of 0 and scaled to a mean of 1,
    both taken over the 1000 levels of the shifted training grid.
    """
    if weighting == "none":
        return torch.ones_like(sigma)
    if weighting == "gaussian":
        u = torch.linspace(1, 0, TRAIN_TIMESTEPS + 1, dtype=torch.float32)[:-1]
        grid = _bell(shift_sigma(u, shift))
        return (_bell(sigma) - grid.min()) / (grid - grid.min()).mean()
    raise ValueError(f"loss weighting must be none or gaussian, found {weighting!r}")


def _bell(sigma: torch.Tensor) -> torch.Tensor:
    return torch.exp(-2 * (sigma - 0.5).square())


def fafm_loss(
    prediction: torch.Tensor,
    x0: torch.Tensor,
    x1: torch.Tensor,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Frame-aware flow matching: mean of ``|v(X_tau, tau) - (X1 - X0)|^2`` (eq. 11).

    The norm of eq. 11 is divided by the number of elements, so that a loss does not depend
    on a clip's size. ``weight``, ``(batch, frames)``, is averaged over a clip's frames and
    scales that clip's error, as in the authors' code: frames are not weighted one by one.
    """
    error = (prediction.float() - velocity_target(x0, x1)).square().mean((1, 2, 3, 4))
    if weight is not None:
        error = error * weight.mean(1)
    return error.mean()
