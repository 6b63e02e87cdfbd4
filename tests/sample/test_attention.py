"""Attention while a video is made; `tests/models/test_attention.py` has the maps themselves."""

import pytest

from pusa.config import AttentionSettings, Weights
from pusa.sample.attention import measure_attention
from pusa.sample.origin import describe_model


@pytest.fixture
def measure(model, prompts, settings):
    """A function that measures steps 0 and 2 of three."""

    def run(weights=Weights(), baseline=None, **changes):  # noqa: B008
        chosen = settings.part(AttentionSettings, **{"steps": 3, "step": [0, 2], **changes})
        image = prompts[0].image
        return measure_attention(
            "A circle.",
            image,
            chosen,
            model=model,
            weights=weights,
            baseline=baseline,
            device="cpu",
        )

    return run


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_base(model, measure, guidance_scale):
    maps, mass, record = measure(guidance_scale=guidance_scale)
    assert list(maps) == [0, 2]
    for weights in maps.values():
        assert weights.shape == (3, 3)
        assert weights.sum(1).tolist() == pytest.approx([1] * 3)
    # Shift 5: the grid is 5 u / (1 + 4 u) at u = 1 and 1/3.
    assert mass["sigma"].tolist() == pytest.approx([1, 5 / 7])
    assert mass["mass"].tolist() == [maps[step][1:, 0].mean().item() for step in (0, 2)]
    assert record == {
        "prompt": "A circle.",
        "steps_total": 3,
        "seed": 0,
        "given": [[1, 1, 0.0]],
        "as_authors": False,
        "block": 1,
        "guidance_scale": guidance_scale,
        "frames": 9,
        "height": 64,
        "width": 64,
        "origin": describe_model(model, Weights()),
    }


def test_as_authors(measure):
    exact, means = (measure(as_authors=chosen) for chosen in (False, True))
    assert means[2] == {**exact[2], "as_authors": True}
    assert means[0][2].sum(1).tolist() == pytest.approx([1] * 3)
    assert (means[0][2] - exact[0][2]).abs().max() > 1e-3


def test_lora_and_baseline_look_elsewhere(measure, baseline, lora):
    base, adapted, other = (
        measure(**options)[0][2]
        for options in ({}, {"weights": Weights(lora=[lora])}, {"baseline": baseline})
    )
    assert (adapted - base).abs().max() > 1e-3
    assert (other - base).abs().max() > 1e-3


def test_baseline_with_a_lora(measure, baseline):
    with pytest.raises(ValueError, match="--baseline is a model of its own"):
        measure(Weights(lora=["x.safetensors"]), baseline)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 2}, "step: found 2, expected one of the 2 steps, from 0"),
        ({"step": [-1]}, "step: found -1, expected one of"),
        ({"frames": 1}, "frames: found 1, expected at least 5"),
    ],
)
def test_what_cannot_be_measured(measure, changes, message):
    with pytest.raises(ValueError, match=message):
        measure(**changes)
