import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from PIL import Image

from pusa.config import SampleSwitches, SuiteSettings, VideoSettings
from pusa.data.cache import PromptCache
from pusa.data.image import load_image
from pusa.data.video import read_settings, read_video, write_video
from pusa.flow import sigma_grid
from pusa.models.load import (
    decode_latents,
    encode_pixels,
    frames_to_pixels,
    load_transformer,
    load_vae,
    pixels_to_frames,
)
from pusa.models.lora import merge_lora
from pusa.sample import baseline as baselines
from pusa.sample import suite as module
from pusa.sample.baseline import continue_image, load_baseline
from pusa.sample.loop import ALL_OFF
from pusa.sample.suite import sample_suite
from pusa.sampler import model_velocity, noise_for, sample_latents


@pytest.fixture
def make(tmp_path, settings, model, prompts, prompt_cache):
    """A function that makes two prompts' videos under some settings."""

    def call(
        *,
        taken=prompts[:2],
        out="out",
        model=model,
        transformer="",
        lora=None,
        switches=ALL_OFF,
        **changes,
    ):
        chosen = settings.part(SuiteSettings, **{"batch_size": 2, **changes})
        if transformer == "":
            transformer = model / "transformer"
        return sample_suite(
            taken,
            chosen,
            model=model,
            transformer=transformer,
            lora=lora,
            prompt_cache=prompt_cache,
            out=tmp_path / out,
            switches=switches,
            device="cpu",
        )

    return call


def times(folder):
    return {p.name: p.stat().st_mtime_ns for p in sorted(folder.glob("*.mp4"))}


def image_latent(model, prompt):
    image = load_image(prompt.image, height=64, width=64)
    return encode_pixels(load_vae(model), frames_to_pixels(image[None, None]))[:, :, 0]


def test_video_is_what_sampler_and_vae_make(make, model, prompts, prompt_cache, tmp_path, decoded):
    """The whole path from library calls, for the second sample of the second prompt."""
    table = make(samples=2, batch_size=3)
    assert list(table["file"]) == ["0000-0.mp4", "0000-1.mp4", "0001-0.mp4", "0001-1.mp4"]
    assert list(table["index"]) == [0, 0, 1, 1]
    assert list(table["sample"]) == [0, 1, 0, 1]
    assert [len(batch) for batch in decoded] == [3, 1]
    prompt, embeds, vae = prompts[1], PromptCache(prompt_cache), load_vae(model)
    condition = torch.zeros(1, 16, 3, 8, 8)
    condition[:, :, 0] = image_latent(model, prompt)
    latents = sample_latents(
        model_velocity(load_transformer(model / "transformer")),
        noise_for(0, prompt.prompt, 1, (16, 3, 8, 8))[None],
        sigma_grid(2, 5.0),
        multipliers=torch.tensor([0.0, 1.0, 1.0]),
        condition=condition,
        prompt_embeds=embeds[prompt.prompt][None],
        negative_embeds=embeds[""][None],
        guidance_scale=5.0,
    )
    assert torch.equal(decoded[1], latents)
    assert torch.equal(decoded[1][:, :, 0], condition[:, :, 0])
    assert (decoded[0][0, :, 1:] - decoded[0][1, :, 1:]).abs().max() > 0.1  # samples differ
    write_video(tmp_path / "expected.mp4", pixels_to_frames(decode_latents(vae, latents))[0])
    found, expected = (read_video(tmp_path / name) for name in ("out/0001-1.mp4", "expected.mp4"))
    assert np.array_equal(found, expected)


def test_text_to_video_does_not_see_the_image(make, model, prompts, decoded, tmp_path):
    Image.new("RGB", (64, 64), (255, 0, 0)).save(tmp_path / "red.png")
    make(task="t2v", out="a")
    make(task="t2v", out="b", taken=[replace(p, image=tmp_path / "red.png") for p in prompts[:2]])
    assert torch.equal(*decoded)
    assert (decoded[0][:1, :, 0] - image_latent(model, prompts[0])).abs().max() > 0.1
    assert read_settings(tmp_path / "a" / "0000-0.mp4")["given"] == []


def test_batch_size_does_not_change_a_video(make, decoded):
    make(batch_size=1, out="a")
    make(batch_size=2, out="b")
    # Sums over a batch may be ordered differently.
    torch.testing.assert_close(torch.cat(decoded[:2]), decoded[2], rtol=1e-4, atol=1e-4)


def test_record_is_in_the_file(make, settings, model, tmp_path, prompts):
    make(seed=3, guidance_scale=1.0)
    found = read_settings(tmp_path / "out" / "0001-0.mp4")
    assert (found["prompt"], found["sample"]) == (prompts[1].prompt, 0)
    assert (found["given"], found["conditions"][0]["file"]) == (
        [[1, 1, 0.0]],
        prompts[1].image.name,
    )
    expected = settings.part(VideoSettings, seed=3, guidance_scale=1.0).model_dump()
    assert {key: found[key] for key in expected} == expected
    assert (found["model"], found["transformer"]["loras"]) == (model.name, [])


def test_finished_videos_are_kept(make, tmp_path, monkeypatch, decoded):
    make()
    before = times(tmp_path / "out")
    (tmp_path / "out" / "0001-0.mp4").write_bytes(b"half a video")
    decoded.clear()
    table = make()
    assert times(tmp_path / "out")["0000-0.mp4"] == before["0000-0.mp4"]
    assert [len(batch) for batch in decoded] == [1]
    monkeypatch.setattr(module, "load_transformer", None)  # is not even loaded
    assert make(batch_size=1).equals(table)


def test_other_settings_are_made_anew(make, tmp_path):
    make()
    before = times(tmp_path / "out")
    make(shift=3.0)
    assert all(time != before[name] for name, time in times(tmp_path / "out").items())


def test_a_lora_is_merged_as_weights_are_loaded(make, model, lora, tmp_path):
    """The video is that of a merged folder; its record names base, LoRA and scale."""
    merge_lora(model / "transformer", lora, tmp_path / "merged", lora_scale=1.4)
    make(lora=(lora, 1.4))
    make(transformer=tmp_path / "merged", out="folder")
    make(out="base")
    names = [tmp_path / f / "0000-0.mp4" for f in ("out", "folder", "base")]
    ours, folder, base = map(read_video, names)
    assert np.array_equal(ours, folder)
    assert not np.array_equal(ours, base)
    told, merged, plain = (read_settings(name)["transformer"] for name in names)
    assert told == plain | {"merged": merged["merged"]}
    assert told["merged"]["lora_scale"] == 1.4
    before = times(tmp_path / "out")
    make(lora=(lora, 1.4))
    assert times(tmp_path / "out") == before
    make(lora=(lora, 1.5))
    assert all(time != before[name] for name, time in times(tmp_path / "out").items())


def test_a_lora_without_a_transformer_is_refused(make_baseline, lora):
    with pytest.raises(ValueError, match="without a transformer, expected one to merge into"):
        make_baseline(lora=(lora, 1.4))


def test_what_only_rounds_otherwise_is_told_and_makes_nothing_anew(make, tmp_path, monkeypatch):
    """Another attention kernel, as another device would be."""
    # diffusers makes it every model's.
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", AttentionBackendName.NATIVE)
    make(out="plain")
    switches = SampleSwitches(attention_backend="_native_math")
    make(switches=switches)
    plain, other = (read_video(tmp_path / f / "0000-0.mp4").astype(int) for f in ("plain", "out"))
    assert np.abs(plain - other).max() <= 3
    record = read_settings(tmp_path / "out/0000-0.mp4")
    assert record["made_with"]["attention_backend"] == "_native_math"
    assert "switches" not in record
    before = times(tmp_path / "out")
    make()
    assert times(tmp_path / "out") == before


def test_what_changes_a_video_makes_it_anew(make, tmp_path, monkeypatch):
    """Tiles, where there are several; and it is part of the record."""
    tiling = AutoencoderKLWan.enable_tiling
    monkeypatch.setattr(AutoencoderKLWan, "enable_tiling", lambda vae: tiling(vae, 32, 32, 16, 16))
    make()
    before, whole = times(tmp_path / "out"), read_video(tmp_path / "out/0000-0.mp4")
    switches = SampleSwitches(vae_tiling=True)
    make(switches=switches)
    after = times(tmp_path / "out")
    assert all(time != before[name] for name, time in after.items())
    tiled = read_video(tmp_path / "out/0000-0.mp4")
    assert np.abs(whole.astype(int) - tiled).max() > 3
    assert read_settings(tmp_path / "out/0000-0.mp4")["switches"] == {"vae_tiling": True}
    make(switches=switches)
    assert times(tmp_path / "out") == after


def test_a_switch_that_cannot_be_used_is_named(make):
    with pytest.raises(ValueError, match="--attention-backend flash cannot be used"):
        make(switches=SampleSwitches(attention_backend="flash"))


def test_uncached_prompt_is_named(make, prompts):
    with pytest.raises(ValueError, match="a purple moon"):
        make(taken=[replace(prompts[0], prompt="a purple moon")])


# A baseline, sampled by diffusers' own pipeline


@pytest.fixture
def make_baseline(make, baseline):
    return partial(make, model=baseline, transformer=None)


def test_baseline_is_sampled_by_its_own_pipeline(
    make_baseline, settings, baseline, prompts, prompt_cache, tmp_path, monkeypatch
):
    native = SampleSwitches(attention_backend="native")  # diffusers' default
    table = make_baseline(samples=2, batch_size=3, switches=native)
    assert list(table["file"]) == ["0000-0.mp4", "0000-1.mp4", "0001-0.mp4", "0001-1.mp4"]
    embeds = PromptCache(prompt_cache)
    expected = continue_image(
        load_baseline(baseline, "float32", "cpu"),
        load_image(prompts[1].image, height=64, width=64),
        noise_for(0, prompts[1].prompt, 1, (16, 3, 8, 8)),
        settings,
        prompt_embeds=embeds[prompts[1].prompt],
        negative_embeds=embeds[""],
    )
    write_video(tmp_path / "expected.mp4", expected)
    found, expected = (read_video(tmp_path / name) for name in ("out/0001-1.mp4", "expected.mp4"))
    assert np.array_equal(found, expected)
    record = read_settings(tmp_path / "out" / "0001-1.mp4")
    assert (record["steps"], record["given"], record["shift"]) == (2, [[1, 1, 0.0]], None)
    monkeypatch.setattr(baselines, "load_baseline", None)  # is not even loaded
    assert make_baseline(samples=2).equals(table)


def test_baseline_makes_no_video_from_text_alone(make_baseline):
    with pytest.raises(ValueError, match="makes video from an image, but task is t2v"):
        make_baseline(task="t2v")


def test_text_to_video_model_needs_a_transformer(make):
    with pytest.raises(ValueError, match="is of a WanPipeline, expected a WanImageToVideoPipeline"):
        make(transformer=None)


@pytest.mark.slow
def test_no_pipeline_of_diffusers_is_imported():
    """They take seconds, and each job of a suite would."""
    code = (
        "import sys, pusa.sample.suite; "
        "found = [m for m in sys.modules if m.startswith(('diffusers.pipelines.wan', 'ftfy'))]; "
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
