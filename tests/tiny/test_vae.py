import pytest
import torch

from pusa.tiny.vae import CURRICULUM, _decode_unclamped, _stage, build_vae


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return build_vae().eval()


def test_shapes_are_those_of_wan(vae):
    with torch.no_grad():
        latents = vae.encode(torch.rand(1, 3, 9, 64, 64)).latent_dist.mean
        assert latents.shape == (1, 16, 3, 8, 8)
        assert vae.decode(latents).sample.shape == (1, 3, 9, 64, 64)


def test_decoding_without_the_clamp_is_decoding_inside_it(vae):
    latents = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        free, clamped = _decode_unclamped(vae, latents), vae.decode(latents).sample
    torch.testing.assert_close(free.clamp(-1, 1), clamped, rtol=1e-5, atol=1e-5)
    assert free.abs().max() > 1


@pytest.mark.parametrize(
    ("progress", "stage"),
    [(0, 0), (0.19, 0), (0.21, 1), (0.54, 1), (0.56, 2), (0.81, 3), (0.999, 3)],
)
def test_curriculum(progress, stage):
    assert tuple(_stage(progress)) == CURRICULUM[stage][1:]


def test_curriculum_adds_up():
    assert sum(share for share, _, _ in CURRICULUM) == pytest.approx(1)
    assert all(frames % 4 == 1 for _, frames, _ in CURRICULUM)
