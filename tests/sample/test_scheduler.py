from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from pusa.flow import euler_step, sigma_grid, sigma_matrix
from pusa.sample.scheduler import FrameScheduler, paper_scheduler, set_levels

MULTIPLIERS = torch.tensor([0.0, 0.3, 1.0, 0.3, 0.7])
UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 5.0, 7.3])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 30, 50])
def test_levels_of_the_paper_to_the_bit(steps, shift):
    assert torch.equal(set_levels(paper_scheduler(shift), steps, "cpu"), sigma_grid(steps, shift))


def test_steps_of_the_paper_to_the_bit():
    scheduler, generator = paper_scheduler(), torch.Generator().manual_seed(0)
    sigmas = sigma_matrix(set_levels(scheduler, 4, "cpu"), MULTIPLIERS)
    steps = FrameScheduler(scheduler, MULTIPLIERS)
    expected = latents = torch.randn(2, 3, 5, 4, 4, generator=generator)
    for sigma, sigma_next in pairwise(sigmas):
        velocity = torch.randn(latents.shape, generator=generator)
        latents = steps.step(velocity, latents)
        expected = euler_step(expected, velocity, sigma, sigma_next)
        assert torch.equal(latents, expected)
    assert steps.index == 4


@pytest.mark.parametrize(
    "scheduler", [FlowMatchEulerDiscreteScheduler(shift=3.0), UniPCMultistepScheduler(**UNIPC)]
)
def test_any_scheduler_lands_on_the_data(scheduler):
    """With the velocity of a straight path, each frame from its own level."""
    generator = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 1, 3, 5, 4, 4, generator=generator)
    sigmas = set_levels(scheduler, 5, "cpu")
    start = (sigmas[0] * MULTIPLIERS).view(5, 1, 1)
    steps = FrameScheduler(scheduler, MULTIPLIERS)
    latents = (1 - start) * data + start * noise
    for _ in range(5):
        latents = steps.step(noise - data, latents)
    torch.testing.assert_close(latents, data, rtol=1e-4, atol=1e-4)
    assert torch.equal(latents[:, :, 0], data[:, :, 0])


def test_spacing_is_kept_in_a_folder(tmp_path, recwarn):
    paper_scheduler(3.0).save_pretrained(tmp_path)
    again = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path)
    assert torch.equal(set_levels(again, 10, "cpu"), sigma_grid(10, 3.0))
    assert not recwarn


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler])
def test_scheduler_of_another_kind_is_refused(kind):
    with pytest.raises(ValueError, match=f"is a {kind.__name__}, expected one of flow matching"):
        set_levels(kind(), 5, "cpu")


def test_no_step_is_refused():
    with pytest.raises(ValueError, match="num_inference_steps must be at least 1, found 0"):
        set_levels(paper_scheduler(), 0, "cpu")
