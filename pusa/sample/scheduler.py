"""What a scheduler of diffusers is asked for: noise levels, and steps for each frame's own.

A frame with noise multiplier ``m`` carries ``m s_k`` where the scheduler's level is ``s_k``; so a
scheduler serves it whose levels are all multiplied by ``m``. With `FlowMatchEulerDiscreteScheduler`
that is Algorithm 1 to the bit.
"""

from copy import deepcopy

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin

from pusa.flow import SHIFT

#: In a scheduler's config, it asks for the paper's levels; diffusers' own pipelines do not look at
#: it, and without the underscore they would warn of it.
SPACING = "_timestep_spacing"


def paper_scheduler(shift: float = SHIFT) -> FlowMatchEulerDiscreteScheduler:
    """Euler steps between the levels of `pusa.flow.sigma_grid`; saved and loaded as diffusers' own.

    diffusers itself spaces levels from 1 down to 1/1000, as its models were trained, so that the
    last step is almost nothing. The paper's are 1 to 1/steps, which diffusers calls trailing.
    """
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.register_to_config(**{SPACING: "trailing"})
    return scheduler


def set_levels(scheduler: SchedulerMixin, steps: int, device: torch.device | str) -> torch.Tensor:
    """Set a scheduler's timesteps.

    Returns:
        Its noise levels ``(steps + 1,)``, float32, on the CPU.

    Raises:
        ValueError: if there is no step, or the scheduler is not one of flow matching.
    """
    if steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, found {steps}")
    trailing = scheduler.config.get(SPACING) == "trailing"
    if trailing and isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        levels = torch.linspace(1, 0, steps + 1)[:-1]  # which it shifts
        scheduler.set_timesteps(sigmas=levels.numpy(), device=device)
    else:
        scheduler.set_timesteps(steps, device=device)
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or not (sigmas.min() >= 0 and sigmas.max() <= 1):
        raise ValueError(
            f"the scheduler is a {type(scheduler).__name__}, expected one of flow matching, such "
            "as FlowMatchEulerDiscreteScheduler, or UniPCMultistepScheduler with use_flow_sigmas"
        )
    scheduler.set_begin_index(0)
    return sigmas.float().cpu()


class FrameScheduler:
    """Steps of a scheduler for frames of different noise multipliers: a copy of it for each."""

    def __init__(self, scheduler: SchedulerMixin, multipliers: torch.Tensor) -> None:
        """``multipliers`` is ``(frames,)``; the scheduler's timesteps have been set."""
        self.timesteps = scheduler.timesteps
        self.index = 0  # of the step that is next
        self._parts = []
        for multiplier in multipliers.unique():
            if multiplier > 0:  # what is clean stays as it is
                own = deepcopy(scheduler)
                own.sigmas = own.sigmas * multiplier.to(own.sigmas.device)
                self._parts.append((own, (multipliers == multiplier).nonzero().flatten()))

    def step(self, velocity: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Take the next step of ``(batch, channels, frames, height, width)``."""
        time = self.timesteps[self.index]
        after = latents.clone()
        for scheduler, frames in self._parts:
            after[:, :, frames] = scheduler.step(
                velocity[:, :, frames], time, latents[:, :, frames], return_dict=False
            )[0]
        self.index += 1
        return after
