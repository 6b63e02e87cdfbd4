from itertools import pairwise

import accelerate
import numpy as np
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pusa.config import Weights
from pusa.models.load import encode_pixels, frames_to_pixels
from pusa.models.lora import convert_lora, merge_lora
from pusa.sample import pipeline as module
from pusa.sample.conditioning import parse_placement, read_conditions
from pusa.sample.frames import prompt_encoder, sample_frames
from pusa.sample.pipeline import PusaPipeline, load_pipeline
from pusa.sampler import noise_for
from pusa.tiny.text import TEXT_TOKENS
from pusa.transformer import VTAWanTransformer3DModel

PROMPT = "a red circle moves slowly left over stripes, camera static"
SHAPE = (16, 3, 8, 8)  # latents of the size of the tests
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pipeline(model):
    pipeline = load_pipeline(model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make(pipeline, prompts, settings, **given):
    """Videos with the project's noise."""
    prompts = [prompts] if isinstance(prompts, str) else prompts
    return sample_frames(pipeline, prompts, settings, embed=prompt_encoder(pipeline), **given)


def velocities(transformer):
    """What a transformer computes for random latents, timesteps and text."""
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(1, 16, 3, 4, 4, generator=generator)
    text = torch.randn(1, 5, 64, generator=generator)
    with torch.no_grad():
        output = transformer(
            latents.to(transformer.dtype),
            torch.tensor([[0.0, 300.0, 900.0]]),
            text.to(transformer.dtype),
            return_dict=False,
        )
    return output[0].float()


# What it makes


def test_text_to_video_is_the_scalar_loop_of_the_base(model, pipeline, changed):
    """diffusers' own model and prompt embeddings, one timestep per clip, Euler steps by hand."""
    changes = {"steps": 3, "guidance_scale": 2.0, "negative_prompt": "dots", "seed": 4}
    made = make(pipeline, PROMPT, changed(**changes))

    base = WanPipeline.from_pretrained(model)
    positive, negative = base.encode_prompt(PROMPT, "dots", max_sequence_length=TEXT_TOKENS)
    latents = noise_for(4, PROMPT, 0, SHAPE)[None]
    levels = [5 * u / (1 + 4 * u) for u in (1, 2 / 3, 1 / 3, 0)]
    with torch.no_grad():
        for sigma, sigma_next in pairwise(levels):
            time = torch.tensor([1000 * sigma])
            with_prompt = base.transformer(latents, time, positive).sample
            without = base.transformer(latents, time, negative).sample
            velocity = without + 2 * (with_prompt - without)
            latents = latents + (sigma_next - sigma) * velocity
        mean = torch.tensor(base.vae.config.latents_mean).view(1, -1, 1, 1, 1)
        std = torch.tensor(base.vae.config.latents_std).view(1, -1, 1, 1, 1)
        pixels = base.vae.decode(latents * std + mean).sample
    expected = ((pixels[0].clamp(-1, 1) + 1) * 127.5).permute(1, 2, 3, 0)
    assert made.shape == (1, 9, 64, 64, 3)
    assert made.dtype == np.uint8
    assert np.abs(made[0] - expected.numpy()).max() < 1  # rounded


#: Conditions by task: what is given where, the latent frames that keep every bit, and those that
#: only begin near what was given.
TASKS = {
    "text_to_video": ([], [], []),
    "image_to_video": (["{image}@1"], [0], []),
    "start_end": (["{image}@1", "{other}@9"], [0, 2], []),
    "start_end_noise": (["{image}@1:0.3", "{other}@9:0.7"], [], [0, 2]),
    "start_last_four": (["{clip}@1", "{clip}#6@6-9"], [0, 2], []),
    "completion": (["{clip}@1-5", "{clip}#6@6-9:0.5"], [0, 1], [2]),
    "extension": (["{clip}#-5@1-5"], [0, 1], []),
    "keyframe": (["{image}@5"], [1], []),
    "closed_loop": (["{image}@1", "{image}@9"], [0, 2], []),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task(pipeline, size, changed, media, decoded, task):
    texts, clean, noisy = TASKS[task]
    placements = [parse_placement(text.format(**media)) for text in texts]
    conditions = read_conditions(placements, size)
    made = make(pipeline, PROMPT, changed(guidance_scale=1.0), conditions=conditions)
    assert made.shape == (1, 9, 64, 64, 3)

    given = {}
    for condition in conditions:
        latents = encode_pixels(pipeline.vae, frames_to_pixels(condition.pixels[None]))
        places = condition.latent_frames
        given |= zip(places, latents[0, :, -len(places) :].unbind(1), strict=True)
    assert sorted(given) == sorted(clean + noisy)
    for place in range(3):
        kept = place in given and torch.equal(decoded[0][0, :, place], given[place])
        assert kept == (place in clean)


def test_noisy_frame_starts_near_its_condition(pipeline, size, changed, media, monkeypatch):
    seen = []

    def record(*_):
        def velocity(latents, timestep, _):
            seen.append((latents, timestep))
            return latents

        return velocity

    monkeypatch.setattr(module, "model_velocity", record)
    conditions = read_conditions([parse_placement(f"{media['image']}@1:0.3")], size)
    make(pipeline, PROMPT, changed(guidance_scale=1.0), conditions=conditions)
    given = encode_pixels(pipeline.vae, frames_to_pixels(conditions[0].pixels[None]))
    noise = noise_for(0, PROMPT, 0, SHAPE)
    latents, timestep = seen[0]
    torch.testing.assert_close(latents[0, :, 0], 0.7 * given[0, :, 0] + 0.3 * noise[:, 0])
    assert torch.equal(latents[0, :, 1:], noise[:, 1:])
    torch.testing.assert_close(timestep, torch.tensor([[300.0, 1000.0, 1000.0]]))


def test_batch_is_its_prompts_one_by_one(pipeline, settings, decoded):
    prompts = [PROMPT, "a wall with dots"]
    for prompt in (prompts, *prompts):
        make(pipeline, prompt, settings)
    torch.testing.assert_close(decoded[0], torch.cat(decoded[1:]), rtol=1e-4, atol=1e-4)


def test_seed_and_sample_change_the_video(pipeline, changed, decoded):
    for seed, sample in ((0, 0), (1, 0), (0, 1), (0, 0)):
        make(pipeline, PROMPT, changed(steps=1, guidance_scale=1.0, seed=seed), samples=[sample])
    assert torch.equal(decoded[0], decoded[3])
    assert not torch.allclose(decoded[0], decoded[1], atol=0.1)
    assert not torch.allclose(decoded[0], decoded[2], atol=0.1)


@pytest.mark.parametrize(("scale", "passes"), [(1.0, 3), (2.0, 6)])
def test_guidance_of_one_skips_the_unconditional_pass(pipeline, changed, scale, passes):
    calls = []
    hook = pipeline.transformer.register_forward_hook(lambda *_: calls.append(1))
    make(pipeline, PROMPT, changed(steps=3, guidance_scale=scale))
    hook.remove()
    assert len(calls) == passes


def test_prompts_are_encoded_once(pipeline, changed):
    calls = []
    hook = pipeline.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    embed = prompt_encoder(pipeline)
    for seed in range(2):
        settings = changed(steps=1, negative_prompt="blurry", seed=seed)
        sample_frames(pipeline, ["a wall"], settings, embed=embed)
    assert len(calls) == 2
    settings = changed(steps=1, guidance_scale=1.0, negative_prompt="dark")
    sample_frames(pipeline, ["a grey wall"], settings, embed=embed)
    hook.remove()
    assert len(calls) == 3  # without guidance, the negative prompt is not needed


# What diffusers offers


def test_from_pretrained_is_load_pipeline(model, pipeline, settings):
    other = PusaPipeline.from_pretrained(model)
    assert isinstance(other.transformer, VTAWanTransformer3DModel)
    other.set_progress_bar_config(disable=True)
    assert np.array_equal(make(other, PROMPT, settings), make(pipeline, PROMPT, settings))


def test_from_pretrained_takes_what_diffusers_takes(model):
    """A precision for each part, and where files come from."""
    other = PusaPipeline.from_pretrained(
        model,
        torch_dtype={"transformer": torch.bfloat16, "default": torch.float32},
        local_files_only=True,
    )
    assert isinstance(other.transformer, VTAWanTransformer3DModel)
    assert (other.transformer.dtype, other.vae.dtype) == (torch.bfloat16, torch.float32)


def test_saved_pipeline_is_a_model_folder(pipeline, tmp_path, settings):
    """Ours again, or diffusers' own pipeline."""
    pipeline.save_pretrained(tmp_path)
    expected = make(pipeline, PROMPT, settings)
    for again in (PusaPipeline.from_pretrained(tmp_path), load_pipeline(tmp_path)):
        again.set_progress_bar_config(disable=True)
        assert np.array_equal(make(again, PROMPT, settings), expected)
    assert type(WanPipeline.from_pretrained(tmp_path).transformer) is WanTransformer3DModel


def offload_groups(pipeline):
    pipeline.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")


def offload_layers(pipeline):
    """As `enable_sequential_cpu_offload`, but onto the CPU: weights wait on the meta device."""
    for part in ("text_encoder", "transformer", "vae"):
        accelerate.cpu_offload(getattr(pipeline, part), torch.device("cpu"))


def choose_backend(pipeline):
    pipeline.transformer.set_attention_backend("native")


@pytest.mark.parametrize("switch", [offload_groups, offload_layers, choose_backend])
def test_switches_change_nothing(model, pipeline, size, settings, media, switch):
    conditions = read_conditions([parse_placement(f"{media['image']}@1")], size)
    other = load_pipeline(model)
    other.set_progress_bar_config(disable=True)
    switch(other)
    made, expected = (make(p, PROMPT, settings, conditions=conditions) for p in (other, pipeline))
    assert np.array_equal(made, expected)


def test_tiles_are_decoded_one_by_one(model, changed):
    """Twice the size of a tile, so that there are several."""
    pipeline = load_pipeline(model)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.enable_tiling(32, 32, 16, 16)
    calls = []
    hook = pipeline.vae.decoder.register_forward_hook(lambda *_: calls.append(1))
    made = make(pipeline, PROMPT, changed(frames=5, steps=1))
    hook.remove()
    assert made.shape == (1, 5, 64, 64, 3)
    assert len(calls) > 2 * 4  # two latent frames, at least four tiles


# LoRAs


def test_adapter_is_the_merged_lora(model, lora, tmp_path):
    convert_lora(lora, tmp_path / "lora.safetensors", to="authors")
    loaded = load_pipeline(model, Weights(lora=[f"{tmp_path}/lora.safetensors:1.4"])).transformer
    merge_lora(model / "transformer", lora, tmp_path / "merged", lora_scale=1.4)
    merged = load_pipeline(model, Weights(transformer=str(tmp_path / "merged"))).transformer
    base = velocities(load_pipeline(model).transformer)
    torch.testing.assert_close(velocities(loaded), velocities(merged), rtol=1e-4, atol=1e-5)
    assert (velocities(loaded) - base).abs().max() > 0.1


def test_two_loras_add_up_at_their_own_scales(model, lora, write_lora, tmp_path):
    second = write_lora(tmp_path / "b.safetensors", seed=1, rank=2, alpha=1)
    files = [(lora, 0.5), (second, -1.5)]
    named = [f"{file}:{scale}" for file, scale in files]
    loaded = load_pipeline(model, Weights(lora=named)).transformer

    weights = load_file(model / "transformer" / WEIGHTS)
    for (file, scale), ratio in zip(files, (6 / 3, 1 / 2), strict=True):
        tensors = load_file(file)
        for name, down in tensors.items():
            if "lora_A" in name:
                layer = name.removeprefix("transformer.").removesuffix(".lora_A.weight")
                up = tensors[name.replace("lora_A", "lora_B")]
                weights[f"{layer}.weight"] += scale * ratio * (up @ down)
    expected = load_pipeline(model).transformer
    expected.load_state_dict(weights)
    torch.testing.assert_close(velocities(loaded), velocities(expected), rtol=1e-4, atol=1e-5)


def test_lora_on_a_merged_transformer(model, lora, write_lora, tmp_path):
    """Another LoRA than the merged one: both count."""
    second = write_lora(tmp_path / "b.safetensors", seed=1)
    merge_lora(model / "transformer", lora, tmp_path / "merged", lora_scale=0.7)
    stacked = load_pipeline(
        model, Weights(transformer=str(tmp_path / "merged"), lora=[f"{second}:1.2"])
    )
    loaded = load_pipeline(model, Weights(lora=[f"{lora}:0.7", f"{second}:1.2"]))
    torch.testing.assert_close(
        velocities(stacked.transformer), velocities(loaded.transformer), rtol=1e-4, atol=1e-5
    )


def test_adapters_have_the_transformers_precision(model, lora):
    transformer = load_pipeline(model, Weights(lora=[lora], dtype="bfloat16")).transformer
    found = {p.dtype for name, p in transformer.named_parameters() if "lora_" in name}
    assert found == {torch.bfloat16}


# Two experts


def test_experts_share_the_steps(pair, size, changed, media):
    """Sigmas 1, 15/16, 5/6 and 5/8 of four steps; the boundary is 0.9."""
    pipeline = load_pipeline(pair)
    pipeline.set_progress_bar_config(disable=True)
    step, calls = [0], []
    for name in ("transformer", "transformer_2"):
        getattr(pipeline, name).register_forward_hook(
            lambda *_, name=name: calls.append((step[0], name))
        )
    # A noisy given frame is below the boundary from the start, which does not count.
    conditions = read_conditions([parse_placement(f"{media['image']}@1:0.3")], size)
    make(
        pipeline,
        PROMPT,
        changed(steps=4, guidance_scale=2.0),
        conditions=conditions,
        guidance_scale_2=1.0,
        callback_on_step_end=lambda _, done, *__: step.__setitem__(0, done + 1) or {},
    )
    high, low = "transformer", "transformer_2"
    assert calls == [(0, high), (0, high), (1, high), (1, high), (2, low), (3, low)]


def test_second_guidance_is_the_first_by_default(pair, changed, decoded):
    pipeline = load_pipeline(pair)
    pipeline.set_progress_bar_config(disable=True)
    for second in (None, 2.0, 4.0):
        make(pipeline, PROMPT, changed(guidance_scale=2.0), guidance_scale_2=second)
    assert torch.equal(decoded[0], decoded[1])
    assert not torch.allclose(decoded[0], decoded[2], atol=0.1)


def test_lora_of_the_low_noise_expert(pair, lora):
    plain, loaded = load_pipeline(pair), load_pipeline(pair, Weights(lora_2=[lora]))
    assert torch.equal(velocities(plain.transformer), velocities(loaded.transformer))
    difference = velocities(plain.transformer_2) - velocities(loaded.transformer_2)
    assert difference.abs().max() > 0.1


# What it refuses


def test_bad_file_is_found_before_weights_are_loaded(model, monkeypatch):
    monkeypatch.setattr(module, "load_transformer", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(FileNotFoundError, match=r"LoRA none\.safetensors does not exist"):
        load_pipeline(model, Weights(lora=["none.safetensors"]))


def test_output_that_is_not_finite_is_refused(model, settings):
    pipeline = load_pipeline(model)
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        pipeline.transformer.proj_out.bias.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="output is not finite"):
        make(pipeline, PROMPT, settings)


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
def test_the_type_is_taken_by_its_old_and_its_new_name(model, name):
    pipeline = PusaPipeline.from_pretrained(model, **{name: torch.bfloat16})
    assert pipeline.transformer.dtype == pipeline.vae.dtype == torch.bfloat16


def test_a_pipeline_with_a_lora_is_not_saved_as_if_it_were_whole(model, lora, tmp_path):
    pipeline = load_pipeline(model, Weights(lora=[lora]))
    with pytest.raises(ValueError, match=r"LoRAs are loaded \(lora_0\).*; call fuse_lora\(\) and"):
        pipeline.save_pretrained(tmp_path)
    assert not [*tmp_path.iterdir()]
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path)
    assert PusaPipeline.from_pretrained(tmp_path).transformer.dtype == torch.float32


def test_a_lora_that_is_not_finite_is_named(model, lora, tmp_path):
    tensors = load_file(lora)
    next(iter(tensors.values()))[0, 0] = torch.nan
    file = tmp_path / "broken.safetensors"
    with safe_open(lora, "pt") as opened:
        save_file(tensors, file, opened.metadata())
    with pytest.raises(ValueError, match=r"broken\.safetensors: module .* values that are not fin"):
        load_pipeline(model, Weights(lora=[str(file)]))
