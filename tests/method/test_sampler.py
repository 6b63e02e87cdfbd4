from itertools import pairwise

import pytest
import torch

from pusa.flow import euler_step, sigma_grid
from pusa.models.load import load_transformer
from pusa.sampler import LowNoiseExpert, model_velocity, noise_for, sample_latents

SHAPE = (2, 4, 5, 3, 3)  # batch, channels, frames, rows, columns
TEXT = torch.zeros(2, 1, 1)


@pytest.fixture
def noise():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def condition():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


def multipliers(**frames):
    """All frames free, but for ``f0=0.3`` and so on."""
    result = torch.ones(SHAPE[2])
    for name, value in frames.items():
        result[int(name[1:])] = value
    return result


def wild(latents, timestep, _):
    """A velocity that depends on latents and timestep and is nowhere near linear."""
    return torch.sin(3 * latents) + timestep[:, None, :, None, None] / 500


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_linear_field_is_solved_exactly(noise, condition, steps):
    """The straight path from noise to data has a constant velocity: no step is too long."""
    data = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    result = sample_latents(
        lambda x, t, e: noise - data,
        noise,
        sigma_grid(steps),
        multipliers=multipliers(),
        condition=condition,
        prompt_embeds=TEXT,
    )
    torch.testing.assert_close(result, data, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frame", [0, 2, 4])
def test_clean_frame_keeps_every_bit(noise, condition, frame):
    result = sample_latents(
        lambda x, t, e: 1e4 * wild(x, t, e),
        noise,
        sigma_grid(7),
        multipliers=multipliers(**{f"f{frame}": 0}),
        condition=condition,
        prompt_embeds=TEXT,
    )
    assert torch.equal(result[:, :, frame], condition[:, :, frame])
    assert not torch.equal(result[:, :, frame - 1], condition[:, :, frame - 1])


def test_text_to_video_is_the_scalar_euler_loop(noise, condition):
    result = sample_latents(
        wild,
        noise,
        sigma_grid(6),
        multipliers=multipliers(),
        condition=condition,
        prompt_embeds=TEXT,
    )
    x, u = noise.clone(), [1 - k / 6 for k in range(7)]
    levels = [5 * v / (1 + 4 * v) for v in u]
    for now, after in pairwise(levels):
        x = x + (torch.sin(3 * x) + 1000 * now / 500) * (after - now)
    torch.testing.assert_close(result, x, rtol=0, atol=1e-5)


def test_condition_of_free_frames_does_not_matter(noise, condition):
    results = [
        sample_latents(
            wild,
            noise,
            sigma_grid(3),
            multipliers=multipliers(),
            condition=z,
            prompt_embeds=TEXT,
        )
        for z in (condition, torch.zeros_like(condition))
    ]
    assert torch.equal(*results)


def test_noisy_condition(noise, condition):
    """Frame 0 keeps 30 % of the noise: where it starts, and the timestep that it carries."""
    seen = []

    def record(latents, timestep, _):
        seen.append((latents.clone(), timestep.clone()))
        return wild(latents, timestep, _)

    sample_latents(
        record,
        noise,
        sigma_grid(4),
        multipliers=multipliers(f0=0.3, f4=0),
        condition=condition,
        prompt_embeds=TEXT,
    )
    start = seen[0][0]
    torch.testing.assert_close(start[:, :, 0], 0.7 * condition[:, :, 0] + 0.3 * noise[:, :, 0])
    assert torch.equal(start[:, :, 1:4], noise[:, :, 1:4])
    assert torch.equal(start[:, :, 4], condition[:, :, 4])
    assert len(seen) == 4
    for (latents, timestep), u in zip(seen, (1, 0.75, 0.5, 0.25), strict=True):
        t = 1000 * 5 * u / (1 + 4 * u)
        assert timestep.shape == (2, 5)
        assert timestep.dtype == torch.float32
        expected = torch.tensor([0.3 * t, t, t, t, 0.0]).expand(2, 5)
        torch.testing.assert_close(timestep, expected)
        assert torch.equal(latents[:, :, 4], condition[:, :, 4])


def test_noisy_condition_takes_its_own_steps(noise, condition):
    """Under a constant velocity a frame moves by its own share, 0.3, of the way."""
    result = sample_latents(
        lambda x, t, e: torch.ones_like(x),
        noise,
        sigma_grid(4),
        multipliers=multipliers(f0=0.3),
        condition=condition,
        prompt_embeds=TEXT,
    )
    start = 0.7 * condition[:, :, 0] + 0.3 * noise[:, :, 0]
    torch.testing.assert_close(result[:, :, 0], start - 0.3)
    torch.testing.assert_close(result[:, :, 1], noise[:, :, 1] - 1)


def test_guidance_is_the_formula(noise, condition):
    positive, negative = torch.full((2, 1, 1), 2.0), torch.full((2, 1, 1), -1.0)
    result = sample_latents(
        lambda x, t, embeds: embeds[..., None, None].expand_as(x),
        noise,
        sigma_grid(5),
        multipliers=multipliers(),
        condition=condition,
        prompt_embeds=positive,
        negative_embeds=negative,
        guidance_scale=3.0,
    )
    torch.testing.assert_close(result, noise - (-1 + 3 * (2 - -1)))


@pytest.mark.parametrize(("scale", "calls"), [(1.0, ["+"] * 3), (2.0, ["+", "-"] * 3)])
def test_guidance_of_one_skips_the_negative_pass(noise, condition, scale, calls):
    seen = []

    def record(latents, timestep, embeds):
        seen.append("+" if embeds[0, 0, 0] > 0 else "-")
        return latents

    sample_latents(
        record,
        noise,
        sigma_grid(3),
        multipliers=multipliers(),
        condition=condition,
        prompt_embeds=torch.ones(2, 1, 1),
        negative_embeds=-torch.ones(2, 1, 1),
        guidance_scale=scale,
    )
    assert seen == calls


def test_low_noise_expert_takes_over_below_its_boundary(noise, condition):
    """Sigmas of four steps are 1, 15/16, 5/6 and 5/8, whatever a given frame carries."""
    calls, steps = [], []

    def expert(name):
        return lambda x, t, e: calls.append((name, round(t[0, 1].item()))) or torch.ones_like(x)

    def take_step(latents, velocity, sigma, sigma_next):
        steps.append(len(calls))
        return euler_step(latents, velocity, sigma, sigma_next)

    sample_latents(
        expert("high"),
        noise,
        sigma_grid(4),
        multipliers=multipliers(f0=0.3),
        condition=condition,
        prompt_embeds=TEXT,
        negative_embeds=TEXT,
        guidance_scale=1.0,
        low_noise=LowNoiseExpert(velocity=expert("low"), boundary=15 / 16, guidance_scale=2.0),
        take_step=take_step,
    )
    low = [("low", 833)] * 2 + [("low", 625)] * 2
    assert calls == [("high", 1000), ("high", 938), *low]
    assert steps == [1, 2, 4, 6]


def test_low_noise_guidance_without_negative_embeddings_raises(noise, condition):
    low_noise = LowNoiseExpert(velocity=wild, boundary=0.9, guidance_scale=2.5)
    with pytest.raises(ValueError, match=r"guidance_scale 2.5 needs negative_embeds"):
        sample_latents(
            wild,
            noise,
            sigma_grid(2),
            multipliers=multipliers(),
            condition=condition,
            prompt_embeds=TEXT,
            low_noise=low_noise,
        )


def test_guidance_without_negative_embeddings_raises(noise, condition):
    with pytest.raises(ValueError, match=r"guidance_scale 3.0 needs negative_embeds"):
        sample_latents(
            wild,
            noise,
            sigma_grid(2),
            multipliers=multipliers(),
            condition=condition,
            prompt_embeds=TEXT,
            guidance_scale=3.0,
        )


def test_condition_of_another_shape_raises(noise, condition):
    with pytest.raises(ValueError, match=r"condition has shape \(2, 4, 1, 3, 3\)"):
        sample_latents(
            wild,
            noise,
            sigma_grid(2),
            multipliers=multipliers(),
            condition=condition[:, :, :1],
            prompt_embeds=TEXT,
        )


@pytest.mark.parametrize("shape", [(4,), (1,), (2, 5)])
def test_multipliers_of_another_shape_raise(noise, condition, shape):
    with pytest.raises(ValueError, match=r"one per latent frame, \(5,\)"):
        sample_latents(
            wild,
            noise,
            sigma_grid(2),
            multipliers=torch.ones(shape),
            condition=condition,
            prompt_embeds=TEXT,
        )


def test_model_velocity_is_the_model(model):
    transformer = load_transformer(model / "transformer")
    x, t, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([[0.0, 500.0]]), torch.randn(1, 3, 64)
    with torch.no_grad():
        expected = transformer(x, t, text).sample
        assert torch.equal(model_velocity(transformer)(x, t, text), expected)


def test_model_velocity_returns_float32_and_keeps_timesteps_float32(model):
    transformer = load_transformer(model / "transformer", torch.bfloat16)
    seen = {}
    transformer.register_forward_pre_hook(
        lambda _, args: seen.update(types=[a.dtype for a in args])
    )
    x, t, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([[0.0, 998.39]]), torch.randn(1, 3, 64)
    with torch.no_grad():
        assert model_velocity(transformer)(x, t, text).dtype == torch.float32
    assert seen["types"] == [torch.bfloat16, torch.float32, torch.bfloat16]


def test_noise_does_not_depend_on_order():
    shape = (4, 3, 2, 2)
    first = noise_for(0, "a", 0, shape)
    torch.manual_seed(99)
    torch.randn(17)
    noise_for(0, "b", 0, shape)
    assert torch.equal(noise_for(0, "a", 0, shape), first)


def test_noise_differs_between_prompts_samples_and_seeds():
    shape = (8, 5, 4, 4)
    draws = [noise_for(*key, shape) for key in ((0, "a", 0), (0, "b", 0), (0, "a", 1), (1, "a", 0))]
    correlation = torch.corrcoef(torch.stack([d.flatten() for d in draws])) - torch.eye(4)
    assert correlation.abs().max() < 0.2  # 640 values: 5 standard errors
    assert torch.stack(draws).std() == pytest.approx(1, abs=0.1)
