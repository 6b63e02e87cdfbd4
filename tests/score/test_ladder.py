"""Known damage to the true continuation, ordered as a person would order it, on moving scenes."""

from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest

from pusa.models.load import (
    decode_latents,
    encode_pixels,
    frames_to_pixels,
    load_vae,
    pixels_to_frames,
)
from pusa.score import weight_free
from pusa.tiny import world

pytestmark = pytest.mark.slow

SCENES = 6


def other(names, name):
    """Another of a kind of thing."""
    return next(n for n in names if n != name)


@pytest.fixture(scope="module")
def ladder():
    """Mean value of each measure on each rung."""
    vae = load_vae("pusa/tiny/model")
    values = {}
    for seed in range(SCENES):
        rng = np.random.default_rng(seed)
        scene = world.sample_scene(rng, with_shape=True, moving=True)
        tones = ((0.75, 0.6, 0.6), (0.95, 0.8, 0.8))
        ground = replace(scene, texture=other(world.TEXTURES, scene.texture), tones=tones)
        thing = replace(
            scene,
            shape=other(world.SHAPES, scene.shape),
            colour=other(world.COLOURS, scene.colour),
        )
        truth = world.render(scene)
        image = truth[0]
        latents = encode_pixels(vae, frames_to_pixels(truth[None]))
        frozen = np.repeat(truth[:1], len(truth), axis=0)
        rungs = {
            "truth": truth,
            "vae": pixels_to_frames(decode_latents(vae, latents))[0],
            "blurred": np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in truth]),
            "frozen": frozen,
            "noise": np.clip(frozen + rng.normal(0, 5, frozen.shape), 0, 255).astype(np.uint8),
            "shuffled": truth[[0, *(1 + rng.permutation(len(truth) - 1))]],
            "ground": np.concatenate([image[None], world.render(ground)[1:]]),
            "thing": np.concatenate([image[None], world.render(thing)[1:]]),
        }
        flow = weight_free.optical_flow(truth)
        for rung, clip in rungs.items():
            features = weight_free.ClipFeatures(clip, image)
            found = {name: measure(features) for name, measure in weight_free.MEASURES.items()}
            found["reference_psnr"] = weight_free.reference_psnr(clip, truth)
            found["motion_match"] = weight_free.motion_match(features.flow, flow)
            found["motion_explained"] = weight_free.motion_explained(clip, truth, image)
            for name, value in found.items():
                values.setdefault((name, rung), []).append(value)
    return {key: np.mean(value) for key, value in values.items()}


@pytest.mark.parametrize(
    ("name", "order"),
    [
        # A picture that stands still is most like itself: VBench-I2V rewards it, and so do these.
        ("i2v_subject", "frozen > truth > vae > blurred > thing > ground"),
        ("i2v_background", "frozen > truth > vae > blurred > thing > ground"),
        ("subject_consistency", "frozen > truth > thing > ground"),
        ("subject_consistency", "truth > shuffled"),
        ("background_consistency", "frozen > truth > thing > ground"),
        ("background_consistency", "truth > shuffled > noise"),
        ("motion_smoothness", "frozen > truth > vae > noise > shuffled"),
        ("dynamic_degree", "truth > noise"),
        ("dynamic_degree", "truth > frozen"),
        ("imaging_quality", "truth > vae > blurred"),
        ("imaging_quality", "frozen > noise"),
        ("aesthetic_quality", "truth > vae > blurred"),
        ("reference_psnr", "truth > vae > blurred > shuffled > frozen"),
        ("reference_psnr", "frozen > noise"),
        ("motion_match", "truth > shuffled"),
        ("motion_match", "truth > noise"),
        ("motion_match", "truth > frozen"),
        # The one that stillness does not win.
        ("motion_explained", "truth > vae > blurred > shuffled > frozen"),
        ("motion_explained", "blurred > thing > frozen"),
    ],
)
def test_order(ladder, name, order):
    rungs = order.split(" > ")
    found = [ladder[name, rung] for rung in rungs]
    assert all(a > b for a, b in pairwise(found)), dict(zip(rungs, found, strict=True))


def test_stillness_explains_nothing(ladder):
    assert ladder["motion_explained", "truth"] == 1
    assert ladder["motion_explained", "frozen"] == 0
    assert ladder["dynamic_degree", "frozen"] == ladder["dynamic_degree", "noise"] == 0
