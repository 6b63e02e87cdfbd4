import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from pusa.sample.sample_suite import SampleSettings, generate_suite
from safetensors.torch import load_file, save_file

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
from pusa.models.lora import fingerprint
from pusa.records import describe_device
from pusa.sample import sample_suite
from pusa.sample.baseline import continue_image, load_baseline
from pusa.sampler import model_velocity, noise_for, sample_latents

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def settings(size):
    return SampleSettings(size=size, steps=2, shift=5.0, guidance_scale=3.0, seed=0)


@pytest.fixture
def make(tmp_path, model, prompts, prompt_cache):
    """A function that makes two prompts' videos under some settings."""

    def call(settings, *, taken=prompts[:2], samples=1, out="out", **options):
        options = {
            "model": model,
            "transformer": model / "transformer",
            "batch_size": 2,
            **options,
        }
        return generate_suite(
            taken,
            samples,
            settings,
            prompt_cache=prompt_cache,
            out=tmp_path / out,
            **options,
        )

    return call


@pytest.fixture
def decoded(monkeypatch):
    """The latents of every batch that is decoded."""
    seen = []

    def recording(vae, latents):
        seen.append(latents)
        return decode_latents(vae, latents)

    monkeypatch.setattr(sample_suite, "decode_latents", recording)
    return seen


def times(folder):
    return {p.name: p.stat().st_mtime_ns for p in sorted(folder.glob("*.mp4"))}


def test_manifest_and_files(make, settings, tmp_path, prompts):
    table = make(settings, samples=2)
    assert table.to_dict("list") == {
        "file": ["0000-0.mp4", "0000-1.mp4", "0001-0.mp4", "0001-1.mp4"],
        "index": [0, 0, 1, 1],
        "prompt": [prompts[i].prompt for i in (0, 0, 1, 1)],
        "sample": [0, 1, 0, 1],
        "device": [describe_device("cpu")] * 4,
    }
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == list(table["file"])
    assert read_video(tmp_path / "out" / "0000-0.mp4").shape == (9, 64, 64, 3)


def image_latent(model, prompt):
    image = load_image(prompt.image, height=64, width=64)
    return encode_pixels(load_vae(model), frames_to_pixels(image[None, None]))[:, :, 0]


def test_first_latent_is_the_image(make, settings, model, prompts, decoded):
    make(settings, batch_size=1)
    for prompt, latents in zip(prompts[:2], decoded, strict=True):
        assert torch.equal(latents[:, :, 0], image_latent(model, prompt))
        assert not torch.equal(latents[:, :, 1], image_latent(model, prompt))


def test_text_to_video_does_not_see_the_image(make, settings, model, prompts, decoded, tmp_path):
    Image.new("RGB", (64, 64), (255, 0, 0)).save(tmp_path / "red.png")
    other = [replace(p, image=tmp_path / "red.png") for p in prompts[:2]]
    make(replace(settings, task="t2v"), out="a")
    make(replace(settings, task="t2v"), out="b", taken=other)
    assert torch.equal(*decoded)
    assert (decoded[0][:1, :, 0] - image_latent(model, prompts[0])).abs().max() > 0.1


def test_video_is_what_sampler_and_vae_make(
    make, settings, model, prompts, prompt_cache, tmp_path, decoded
):
    """The whole path from library calls, for the second sample of the second prompt."""
    make(settings, samples=2, batch_size=3)
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
        guidance_scale=3.0,
    )
    # The fourth of four videos in batches of three; sums over a batch may be ordered differently.
    torch.testing.assert_close(decoded[1][0], latents[0], rtol=1e-4, atol=1e-4)
    write_video(tmp_path / "expected.mp4", pixels_to_frames(decode_latents(vae, latents))[0])
    found, expected = (
        read_video(tmp_path / name).astype(int) for name in ("out/0001-1.mp4", "expected.mp4")
    )
    assert np.abs(found - expected).mean() < 2  # H.264 of the same frames


def test_samples_differ(make, settings, decoded):
    make(settings, samples=2, batch_size=2)
    assert (decoded[0][0, :, 1:] - decoded[0][1, :, 1:]).abs().max() > 0.1


def test_batch_size_does_not_change_a_video(make, settings, decoded):
    make(settings, batch_size=1, out="a")
    make(settings, batch_size=2, out="b")
    # Sums over a batch may be ordered differently.
    torch.testing.assert_close(torch.cat(decoded[:2]), decoded[2], rtol=1e-4, atol=1e-4)


# Resuming


def test_settings_are_in_the_file(make, settings, tmp_path, prompts):
    make(settings)
    record = read_settings(tmp_path / "out" / "0001-0.mp4")
    assert record["prompt"] == prompts[1].prompt
    assert record["size"] == {"frames": 9, "height": 64, "width": 64}
    for key, value in {"steps": 2, "shift": 5.0, "guidance_scale": 3.0, "seed": 0}.items():
        assert record[key] == value
    assert (record["sample"], record["task"], record["lora"]) == (0, "i2v", {})
    assert len(record["transformer"]) == 16


@pytest.mark.parametrize(("task", "given"), [("i2v", [[1, 1, 0.0]]), ("t2v", [])])
def test_file_says_which_frames_were_given(make, settings, tmp_path, task, given):
    make(replace(settings, task=task))
    assert read_settings(tmp_path / "out" / "0000-0.mp4")["given"] == given


def test_finished_videos_are_kept(make, settings, tmp_path, monkeypatch):
    table = make(settings)
    before = times(tmp_path / "out")
    monkeypatch.setattr(sample_suite, "load_transformer", None)  # is not even loaded
    again = make(settings)
    assert times(tmp_path / "out") == before
    assert again.equals(table)


def test_only_the_missing_one_is_made(make, settings, tmp_path, decoded):
    make(settings)
    before = times(tmp_path / "out")
    (tmp_path / "out" / "0001-0.mp4").write_bytes(b"half a video")
    decoded.clear()
    make(settings)
    after = times(tmp_path / "out")
    assert after["0000-0.mp4"] == before["0000-0.mp4"]
    assert [len(batch) for batch in decoded] == [1]
    assert len(read_video(tmp_path / "out" / "0001-0.mp4")) == 9


@pytest.mark.parametrize(
    "change",
    [{"steps": 3}, {"seed": 1}, {"guidance_scale": 1.0}, {"shift": 3.0}, {"task": "t2v"}],
)
def test_other_settings_are_made_anew(make, settings, tmp_path, change):
    make(settings)
    before = times(tmp_path / "out")
    make(replace(settings, **change))
    after = times(tmp_path / "out")
    assert all(after[name] != before[name] for name in before)


def test_another_transformer_is_made_anew(make, settings, tmp_path, new_transformer):
    make(settings)
    before = times(tmp_path / "out")
    new_transformer(seed=4).save_pretrained(tmp_path / "other")
    make(settings, transformer=tmp_path / "other")
    assert all(time != before[name] for name, time in times(tmp_path / "out").items())


def test_another_scale_of_one_lora_is_made_anew(make, settings, tmp_path, model):
    """A merge leaves the fingerprint's tensors alone; what was merged is compared too."""
    for name in ("one", "two"):
        shutil.copytree(model / "transformer", tmp_path / name)
        tensors = {k: t.clone() for k, t in load_file(tmp_path / name / WEIGHTS).items()}
        metadata = {"format": "pt", "pusa_merged_lora": f'{{"lora_scale": "{name}"}}'}
        save_file(tensors, tmp_path / name / WEIGHTS, metadata)
    make(settings, transformer=tmp_path / "one")
    before = times(tmp_path / "out")
    make(settings, transformer=tmp_path / "two")
    assert all(time != before[name] for name, time in times(tmp_path / "out").items())


def test_another_image_is_made_anew(make, settings, tmp_path, prompts):
    make(settings)
    before = times(tmp_path / "out")
    Image.new("RGB", (64, 64), (255, 0, 0)).save(tmp_path / "red.png")
    make(settings, taken=[replace(p, image=tmp_path / "red.png") for p in prompts[:2]])
    assert all(time != before[name] for name, time in times(tmp_path / "out").items())


def test_uncached_prompt_is_named(make, settings, prompts):
    with pytest.raises(ValueError, match="a purple moon"):
        make(settings, taken=[replace(prompts[0], prompt="a purple moon")])


# A baseline, sampled by diffusers' own pipeline


@pytest.fixture
def make_baseline(make, baseline):
    return partial(make, model=baseline, transformer=None)


def test_baseline_is_sampled_by_its_own_pipeline(
    make_baseline, settings, baseline, prompts, prompt_cache, size, tmp_path
):
    table = make_baseline(settings, samples=2, batch_size=3)
    assert list(table["file"]) == ["0000-0.mp4", "0000-1.mp4", "0001-0.mp4", "0001-1.mp4"]
    embeds = PromptCache(prompt_cache)
    expected = continue_image(
        load_baseline(baseline),
        load_image(prompts[1].image, height=64, width=64),
        noise_for(0, prompts[1].prompt, 1, (16, 3, 8, 8)),
        size=size,
        prompt_embeds=embeds[prompts[1].prompt],
        negative_embeds=embeds[""],
        steps=2,
        guidance_scale=3.0,
    )
    write_video(tmp_path / "expected.mp4", expected)
    found, expected = (read_video(tmp_path / name) for name in ("out/0001-1.mp4", "expected.mp4"))
    assert np.array_equal(found, expected)


def test_baselines_settings_are_in_the_file(make_baseline, settings, tmp_path, baseline):
    make_baseline(settings)
    record = read_settings(tmp_path / "out" / "0001-0.mp4")
    assert record["baseline"] == fingerprint(baseline / "transformer")
    assert (record["steps"], record["given"]) == (2, [[1, 1, 0.0]])
    assert record["shift"] is None  # the pipeline has a scheduler of its own
    assert not {"transformer", "lora"} & record.keys()


def test_baselines_finished_videos_are_kept(make_baseline, settings, tmp_path, monkeypatch):
    make_baseline(settings)
    before = times(tmp_path / "out")
    monkeypatch.setattr(sample_suite, "load_baseline", None)  # is not even loaded
    make_baseline(settings)
    assert times(tmp_path / "out") == before


def test_baseline_with_another_scheduler_is_made_anew(make_baseline, settings, tmp_path, baseline):
    make_baseline(settings)
    before = times(tmp_path / "out")
    other = shutil.copytree(baseline, tmp_path / "other")
    FlowMatchEulerDiscreteScheduler(shift=8.0).save_pretrained(other / "scheduler")
    make_baseline(settings, model=other)
    assert all(time != before[name] for name, time in times(tmp_path / "out").items())


def test_baseline_makes_no_video_from_text_alone(make_baseline, settings):
    with pytest.raises(ValueError, match="makes video from an image, but task is t2v"):
        make_baseline(replace(settings, task="t2v"))


def test_text_to_video_model_needs_a_transformer(make, settings):
    with pytest.raises(ValueError, match="is of a WanPipeline, expected a WanImageToVideoPipeline"):
        make(settings, transformer=None)
