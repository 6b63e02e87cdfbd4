import pytest
import torch
from torch import nn

from pusa.tiny.fit import fit


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(2, 4, (1, 3, 3), padding=(0, 1, 1)), nn.Flatten(), nn.LazyLinear(3)
    )


@pytest.fixture
def task():
    """A model and a loss with a fixed target."""
    model, x, target = small_model(), torch.randn(8, 2, 1, 4, 4), torch.randn(8, 3)

    model(x)  # gives the lazy layer its parameters

    def loss(_):
        return (model(x) - target).square().mean()

    return model, loss


def test_loss_falls_and_every_parameter_moves(task):
    model, loss = task
    before = [p.detach().clone() for p in model.parameters()]
    losses = fit(model, loss, steps=60, muon_lr=0.02, adamw_lr=0.01, description="test")
    assert len(losses) == 60
    assert losses[-1] < 0.5 * losses[0]
    assert not any(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_loss_that_is_not_finite_stops_before_the_step(task):
    model, loss = task
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(FloatingPointError, match="test: loss is nan at step 0"):
        fit(
            model,
            lambda step: loss(step) * float("nan"),
            steps=3,
            muon_lr=0.1,
            adamw_lr=0.1,
            description="test",
        )
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.fixture
def training(tmp_path, monkeypatch):
    """A function that trains with a checkpoint after every step, and may stop at one."""
    monkeypatch.setattr("pusa.tiny.fit.CHECKPOINT_SECONDS", 0)
    target = torch.randn(8, 3)

    def train(name, stop=None, steps=12):
        model = small_model()
        model(torch.zeros(8, 2, 1, 4, 4))
        torch.manual_seed(1)

        def loss(step):
            if step == stop:
                raise KeyboardInterrupt
            return (model(torch.randn(8, 2, 1, 4, 4)) - target).square().mean()

        file = tmp_path / f"{name}.safetensors"
        options = {"muon_lr": 0.02, "adamw_lr": 0.01, "description": "test", "checkpoint": file}
        return model, fit(model, loss, steps=steps, **options)

    return train


def test_interrupted_training_goes_on_to_the_bit(training):
    model, losses = training("whole")
    for stop in (5, 9):
        with pytest.raises(KeyboardInterrupt):
            training("parts", stop)
    resumed, resumed_losses = training("parts")
    assert resumed_losses == losses
    for a, b in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    again, _ = training("parts", stop=0)  # all is done: nothing is trained
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_checkpoint_of_another_training_is_refused(training):
    training("a")
    with pytest.raises(ValueError, match=r"a\.safetensors is of another training, .*'steps': 12"):
        training("a", steps=13)
