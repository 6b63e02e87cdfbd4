"""One sampler for every task: Euler steps with a noise level per latent frame (Algorithm 1)."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch

from pusa.flow import TRAIN_TIMESTEPS, euler_step, interpolate, sigma_matrix

#: ``velocity(latents, timestep, prompt_embeds)``, timestep of shape (batch, frames)
Velocity = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class LowNoiseExpert:
    """The second transformer of Wan2.2, which makes the last steps."""

    velocity: Velocity
    boundary: float  # it takes over at the first step with sigma below this
    guidance_scale: float


@torch.no_grad()
def sample_latents(
    velocity: Velocity,
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    multipliers: torch.Tensor,
    condition: torch.Tensor,
    prompt_embeds: torch.Tensor,
    negative_embeds: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
    low_noise: LowNoiseExpert | None = None,
    take_step: Callable[..., torch.Tensor] = euler_step,
) -> torch.Tensor:
    """Integrate from noise to data.

    Frame ``i`` starts at ``(1 - m_i s_0) z_i + m_i s_0 eps_i`` and carries the noise level
    ``m_i s_k`` at step ``k``. With ``m = 1`` everywhere this is plain text-to-video sampling;
    ``m = 0`` pins a frame to its condition.

    Args:
        velocity: the model, see `model_velocity`.
        noise: ``eps``, N(0, I), ``(batch, channels, frames, height, width)``.
        sigmas: ``(steps + 1,)``, from `pusa.flow.sigma_grid`.
        multipliers: ``m``, ``(frames,)``, in [0, 1].
        condition: ``z``, normalised latents in the shape of ``noise``; its value matters
            only where ``m < 1``.
        prompt_embeds: ``(batch, text_tokens, dim)``.
        negative_embeds: the unconditional pass of guidance, ``(batch, text_tokens, dim)``.
        guidance_scale: ``v = v_neg + g (v_pos - v_neg)``; 1 skips the negative pass.
        low_noise: takes over from ``velocity`` for all frames at once, by the step's ``s_k``,
            whatever ``m_i s_k`` a frame carries.
        take_step: of latents, velocity, ``sigma`` and ``sigma_next``, each ``(frames,)``; Euler's,
            as in the paper, or another that may do more than step.

    Returns:
        Latents in the shape of ``noise``; a frame with ``m = 0`` equals ``condition`` bit for
        bit.

    Raises:
        ValueError: if shapes disagree, or guidance lacks negative embeddings.
    """
    if condition.shape != noise.shape:
        raise ValueError(
            f"condition has shape {tuple(condition.shape)}, expected the noise's "
            f"{tuple(noise.shape)}"
        )
    if multipliers.shape != noise.shape[2:3]:
        raise ValueError(
            f"multipliers have shape {tuple(multipliers.shape)}, expected one per latent "
            f"frame, ({noise.shape[2]},)"
        )
    for scale in (guidance_scale, low_noise.guidance_scale if low_noise else 1):
        if scale != 1 and negative_embeds is None:
            raise ValueError(f"guidance_scale {scale} needs negative_embeds")
    levels = sigma_matrix(sigmas, multipliers).to(noise.device)  # (steps + 1, frames)
    latents = interpolate(condition, noise, levels[0])
    for step in range(len(levels) - 1):
        if low_noise and sigmas[step] < low_noise.boundary:
            velocity, guidance_scale = low_noise.velocity, low_noise.guidance_scale
        sigma, sigma_next = levels[step], levels[step + 1]
        timestep = (TRAIN_TIMESTEPS * sigma).expand(len(latents), -1)
        prediction = velocity(latents, timestep, prompt_embeds)
        if guidance_scale != 1:
            negative = velocity(latents, timestep, negative_embeds)
            prediction = negative + guidance_scale * (prediction - negative)
        latents = take_step(latents, prediction, sigma, sigma_next)
    return latents


def model_velocity(transformer, attention_kwargs: dict[str, Any] | None = None) -> Velocity:
    """The transformer as a `Velocity`: computes in its own dtype, returns float32."""

    def velocity(latents, timestep, prompt_embeds):
        output = transformer(
            latents.to(transformer.dtype),
            timestep,
            prompt_embeds.to(transformer.dtype),
            attention_kwargs=attention_kwargs,
            return_dict=False,
        )
        return output[0].float()

    return velocity


def noise_for(seed: int, prompt: str, sample: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The noise of one (prompt, sample), whatever batch or shard it is drawn in.

    Always drawn on the CPU, so that a GPU, or another one, starts from the same noise.
    """
    digest = sha256(f"{seed}|{sample}|{prompt}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(shape, generator=generator)
