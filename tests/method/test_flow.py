import pytest
import torch

from pusa.flow import (
    euler_step,
    fafm_loss,
    interpolate,
    loss_weight,
    per_frame,
    sample_sigma,
    shift_sigma,
    sigma_grid,
    sigma_matrix,
    velocity_target,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_pair(shape=(2, 3, 4, 5, 6), dtype=torch.float32):
    g = generator()
    return (torch.randn(shape, generator=g, dtype=dtype) for _ in range(2))


# Noise levels for sampling


@pytest.mark.parametrize("steps", [1, 2, 10, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_grid_is_the_closed_form(steps, shift):
    grid = sigma_grid(steps, shift)
    expected = [shift * u / (1 + (shift - 1) * u) for u in (1 - k / steps for k in range(steps))]
    assert grid.dtype == torch.float32
    assert grid.tolist() == pytest.approx([*expected, 0], abs=1e-6)
    assert grid[0] == 1
    assert grid[-1] == 0


def test_grid_falls():
    assert (sigma_grid(20).diff() < 0).all()


def test_grid_needs_a_step():
    with pytest.raises(ValueError, match="at least 1, found 0"):
        sigma_grid(0)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan"), float("inf")])
def test_grid_needs_a_shift(shift):
    with pytest.raises(ValueError, match=f"shift must be a number above 0, found {shift}"):
        sigma_grid(10, shift)


def test_matrix_is_the_outer_product():
    sigmas, multipliers = sigma_grid(4), torch.tensor([0.0, 0.3, 1.0])
    matrix = sigma_matrix(sigmas, multipliers)
    assert matrix.shape == (5, 3)
    assert torch.equal(matrix[:, 0], torch.zeros(5))
    assert torch.equal(matrix[:, 1], sigmas * torch.tensor(0.3))
    assert torch.equal(matrix[:, 2], sigmas)


@pytest.mark.parametrize("bad", [[-0.1, 1.0], [0.0, 1.1], [float("nan"), 1.0]])
def test_matrix_refuses_multipliers_outside_0_1(bad):
    with pytest.raises(ValueError, match=r"\[0, 1\], found"):
        sigma_matrix(sigma_grid(2), torch.tensor(bad))


def test_matrix_refuses_a_batch_of_multipliers():
    with pytest.raises(ValueError, match=r"\(frames,\), found \(2, 3\)"):
        sigma_matrix(sigma_grid(2), torch.ones(2, 3))


# The path


def test_interpolate_frame_by_frame():
    x0, x1 = random_pair()
    sigma = torch.rand(2, 4, generator=generator(1))
    mixed = interpolate(x0, x1, sigma)
    for b in range(2):
        for f in range(4):
            s = sigma[b, f].item()
            expected = (1 - s) * x0[b, :, f] + s * x1[b, :, f]
            torch.testing.assert_close(mixed[b, :, f], expected)


def test_interpolate_ends_are_exact():
    x0, x1 = random_pair()
    assert torch.equal(interpolate(x0, x1, torch.zeros(4)), x0)
    assert torch.equal(interpolate(x0, x1, torch.ones(4)), x1)


def test_velocity_is_the_derivative_of_the_path():
    x0, x1 = random_pair(dtype=torch.float64)
    low, high = torch.full((4,), 0.25).double(), torch.full((4,), 0.75).double()
    slope = (interpolate(x0, x1, high) - interpolate(x0, x1, low)) / 0.5
    torch.testing.assert_close(velocity_target(x0, x1), slope)


def test_euler_step_moves_along_the_path():
    x0, x1 = random_pair(dtype=torch.float64)
    sigma = torch.rand(2, 4, generator=generator(1), dtype=torch.float64)
    after = torch.rand(2, 4, generator=generator(2), dtype=torch.float64)
    moved = euler_step(interpolate(x0, x1, sigma), velocity_target(x0, x1), sigma, after)
    torch.testing.assert_close(moved, interpolate(x0, x1, after))


def test_euler_step_of_zero_keeps_every_bit():
    x, velocity = random_pair()
    sigma, after = torch.tensor([0.0, 0.5, 0.5, 0.5]), torch.tensor([0.0, 0.4, 0.4, 0.4])
    moved = euler_step(x, 1e6 * velocity, sigma, after)
    assert torch.equal(moved[:, :, 0], x[:, :, 0])
    assert not torch.equal(moved[:, :, 1], x[:, :, 1])


@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2), (1, 4), (2, 4, 1), ()])
def test_wrong_number_of_frames_raises(shape):
    x0, x1 = random_pair()  # 2 clips of 4 frames
    values = torch.zeros(shape)
    with pytest.raises(ValueError, match="one value per latent frame"):
        per_frame(values, x0)
    with pytest.raises(ValueError, match="one value per latent frame"):
        interpolate(x0, x1, values)


def test_per_frame_error_names_both_shapes():
    with pytest.raises(ValueError, match=r"\(2, 4\) or \(4,\), found \(5,\)"):
        per_frame(torch.zeros(5), torch.zeros(2, 3, 4, 5, 6))


# Training noise levels (PTSS)


def test_synchronous_levels_are_equal_within_a_clip():
    sigma = sample_sigma(500, 6, p_async=0, generator=generator())
    assert torch.equal(sigma, sigma[:, :1].expand(-1, 6))
    assert len(sigma[:, 0].unique()) == 500


def test_asynchronous_levels_are_independent():
    sigma = sample_sigma(4000, 4, p_async=1, generator=generator())
    # 4000 draws: a correlation of independent columns stays within 4 / sqrt(4000) = 0.06.
    correlation = torch.corrcoef(sigma.T) - torch.eye(4)
    assert correlation.abs().max() < 0.07
    assert (sigma[:, 0] != sigma[:, 1]).all()


@pytest.mark.parametrize("p_async", [0.0, 0.3, 1.0])
def test_every_level_is_uniform(p_async):
    sigma = sample_sigma(8000, 3, p_async=p_async, generator=generator())
    assert sigma.dtype == torch.float32
    assert sigma.min() >= 0
    assert sigma.max() < 1
    for column in sigma.T:
        share = torch.histc(column, 10, 0, 1) / 8000
        # Standard error of a share of 0.1 in 8000 draws is 0.0034.
        assert (share - 0.1).abs().max() < 0.015


def test_p_async_is_the_share_of_asynchronous_clips():
    sigma = sample_sigma(4000, 4, p_async=0.3, generator=generator())
    asynchronous = (sigma != sigma[:, :1]).any(1).float().mean()
    assert asynchronous == pytest.approx(0.3, abs=0.03)  # 4 standard errors


@pytest.mark.parametrize("p_async", [0.0, 0.5, 1.0])
def test_levels_repeat_with_the_generator(p_async):
    draw = [sample_sigma(8, 3, p_async=p_async, generator=generator(s)) for s in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


def test_shifted_levels_lie_on_the_grid():
    sigma = sample_sigma(3000, 5, p_async=1, distribution="shifted", generator=generator())
    u = torch.arange(1, 1001, dtype=torch.float64) / 1000
    grid = 5 * u / (1 + 4 * u)
    distance = (sigma.double()[..., None] - grid).abs().amin(-1)
    assert distance.max() < 1e-6
    assert sigma.dtype == torch.float32
    assert len(sigma.unique()) > 990  # 15,000 draws of 1000 levels
    # E[5u/(1+4u)] over U[0, 1] is 5/4 - (5/16) ln 5.
    assert sigma.mean() == pytest.approx(0.7471, abs=0.01)


def test_shift_of_one_changes_nothing():
    sigma = torch.rand(10, generator=generator())
    assert torch.equal(shift_sigma(sigma, 1.0), sigma)


@pytest.mark.parametrize("p_async", [-0.1, 1.1])
def test_p_async_outside_0_1_raises(p_async):
    with pytest.raises(ValueError, match=r"p_async must lie in \[0, 1\]"):
        sample_sigma(1, 1, p_async=p_async)


def test_unknown_distribution_raises():
    with pytest.raises(ValueError, match="uniform or shifted, found 'logit'"):
        sample_sigma(1, 1, p_async=1, distribution="logit")


# The loss


def test_gaussian_weight_is_the_closed_form():
    levels = [5 * u / (1 + 4 * u) for u in (1 - k / 1000 for k in range(1000))]
    bell = torch.tensor(
        [2.718281828459045 ** (-2 * ((1000 * s - 500) / 1000) ** 2) for s in levels]
    ).double()
    expected = (bell - bell.min()) / (bell - bell.min()).mean()
    weight = loss_weight(torch.tensor(levels, dtype=torch.float32), "gaussian")
    torch.testing.assert_close(weight.double(), expected, rtol=0, atol=1e-4)
    assert weight.min() == pytest.approx(0, abs=1e-5)
    assert weight.mean() == pytest.approx(1, abs=1e-5)


def test_gaussian_weight_is_symmetric_about_the_middle():
    sigma = torch.tensor([0.5, 0.3, 0.7])
    middle, low, high = loss_weight(sigma, "gaussian").tolist()
    assert low == pytest.approx(high, rel=1e-5)
    assert middle > low


def test_no_weight_is_one():
    assert torch.equal(loss_weight(torch.rand(2, 3), "none"), torch.ones(2, 3))


def test_unknown_weighting_raises():
    with pytest.raises(ValueError, match="none or gaussian, found 'cosine'"):
        loss_weight(torch.zeros(1), "cosine")


@pytest.mark.parametrize("weighted", [False, True])
def test_fafm_loss_against_a_loop(weighted):
    x0, x1 = random_pair((2, 3, 4, 2, 2))
    prediction = torch.randn(x0.shape, generator=generator(5))
    weight = torch.rand(2, 4, generator=generator(6)) if weighted else None
    total = 0.0
    for b in range(2):
        for c in range(3):
            for f in range(4):
                for row in range(2):
                    for column in range(2):
                        at = (b, c, f, row, column)
                        error = prediction[at].item() - (x1[at].item() - x0[at].item())
                        total += error**2 * (weight[b].mean().item() if weighted else 1)
    assert fafm_loss(prediction, x0, x1, weight).item() == pytest.approx(total / 96, rel=1e-5)


def test_fafm_loss_of_the_true_velocity_is_zero():
    x0, x1 = random_pair()
    assert fafm_loss(x1 - x0, x0, x1) == 0


def test_fafm_loss_is_float32_for_a_bfloat16_prediction():
    x0, x1 = random_pair()
    loss = fafm_loss((x1 - x0).bfloat16(), x0, x1)
    assert loss.dtype == torch.float32
    assert 0 < loss < 1e-3
