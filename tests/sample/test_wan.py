"""`PusaPipeline` used as diffusers' documentation uses `WanPipeline`."""

import inspect

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from PIL import Image

from pusa.config import Size, Weights
from pusa.models.load import encode_pixels, frames_to_pixels
from pusa.sample.conditioning import make_conditions, parse_placement, read_conditions
from pusa.sample.pipeline import PusaPipeline, load_pipeline
from pusa.sampler import noise_for
from pusa.tiny.text import TEXT_TOKENS
from pusa.transformer import VTAWanTransformer3DModel

PROMPT = "a red circle moves slowly left over stripes, camera static"
SHAPE = (1, 16, 3, 8, 8)
SMALL = {
    "height": 64,
    "width": 64,
    "num_frames": 9,
    "num_inference_steps": 2,
    "max_sequence_length": TEXT_TOKENS,
}
SIZE = Size(frames=9, height=64, width=64)
UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS = {
    "euler": FlowMatchEulerDiscreteScheduler(shift=5.0),
    "unipc": UniPCMultistepScheduler(**UNIPC),
}


@pytest.fixture(scope="module")
def pipe(model):
    pipe = PusaPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def new_pipe(folder, kind=PusaPipeline, **options):
    pipe = kind.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(pipe, prompt=PROMPT, **options):
    options = {"generator": seeded(), "output_type": "pt", **SMALL} | options
    return pipe(prompt, **options).frames


@pytest.fixture
def image(media):
    return Image.open(media["image"])


def encoded(pipe, condition):
    return encode_pixels(pipe.vae, frames_to_pixels(condition.pixels[None]))


# Text to video


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("folder", ["model", "pair"])
def test_text_to_video_is_wan_pipelines(request, scheduler, folder):
    folder, scheduler = request.getfixturevalue(folder), SCHEDULERS[scheduler]
    kinds = (WanPipeline, PusaPipeline)
    expected, made = (
        make(
            new_pipe(folder, kind, scheduler=scheduler),
            [PROMPT, "a wall"],
            negative_prompt=["dots", "blurry"],
            num_inference_steps=5,
            guidance_scale=4.0,
            output_type="latent",
        )
        for kind in kinds
    )
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


def test_defaults_are_the_papers():
    arguments = inspect.signature(PusaPipeline.__call__).parameters
    names = ("width", "height", "num_frames", "num_inference_steps", "guidance_scale")
    assert [arguments[name].default for name in names] == [832, 480, 81, 10, 5.0]
    assert [*arguments][:-2] == [*inspect.signature(WanPipeline.__call__).parameters]


def test_outputs(pipe):
    outputs = {kind: make(pipe, output_type=kind) for kind in ("np", "pt", "pil", "latent")}
    assert outputs["np"].shape == (1, 9, 64, 64, 3)
    assert outputs["pt"].shape == (1, 9, 3, 64, 64)
    assert outputs["latent"].shape == SHAPE
    [images] = outputs["pil"]
    assert (len(images), images[0].size, images[0].mode) == (9, (64, 64), "RGB")
    assert np.array_equal(outputs["np"], outputs["pt"].permute(0, 1, 3, 4, 2).numpy())
    assert 0 <= outputs["np"].min() < outputs["np"].max() <= 1
    assert np.array_equal(np.stack(images), (255 * outputs["np"][0]).round())
    (frames,) = pipe(PROMPT, generator=seeded(), **SMALL, return_dict=False)
    assert np.array_equal(frames, outputs["np"])


def test_videos_per_prompt(pipe, image):
    generators = [seeded(n) for n in range(4)]
    prompts = [PROMPT, "a wall"]
    made = make(pipe, prompts, num_videos_per_prompt=2, generator=generators, image=image)
    for n in range(4):
        one = make(pipe, prompts[n // 2], generator=seeded(n), image=image)
        torch.testing.assert_close(made[n], one[0], rtol=1e-4, atol=1e-4)


def test_noise_and_text_that_are_given(pipe):
    expected = make(pipe)
    noise = torch.randn(SHAPE, generator=seeded())
    with torch.no_grad():
        positive, negative = pipe.encode_prompt(PROMPT, max_sequence_length=TEXT_TOKENS)
    embeds = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    assert torch.equal(make(pipe, latents=noise), expected)
    assert torch.equal(make(pipe, None, **embeds), expected)


# Callbacks


def test_callback_sees_and_changes_what_it_asks_for(pipe):
    seen = []

    def end(pipeline, step, timestep, tensors):
        seen.append((step, round(timestep.item()), sorted(tensors), pipeline.num_timesteps))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else {}

    names = ["latents", "prompt_embeds"]
    options = {"callback_on_step_end": end, "callback_on_step_end_tensor_inputs": names}
    latents = make(pipe, output_type="latent", **options)
    assert [(step, asked, total) for step, _, asked, total in seen] == [
        (0, names, 2),
        (1, names, 2),
    ]
    assert seen[0][1] == 1000 > seen[1][1]
    assert not latents.any()


def test_callback_changes_the_text(pipe):
    other, _ = pipe.encode_prompt("a wall", max_sequence_length=TEXT_TOKENS)

    def end(*_):
        return {"prompt_embeds": other}

    changed = make(pipe, callback_on_step_end=end)
    assert (changed - make(pipe)).abs().max() > 1e-3
    assert torch.equal(make(pipe, callback_on_step_end=lambda *_: {}), make(pipe))


@pytest.mark.parametrize(
    ("name", "value", "passes"), [("_interrupt", True, 2), ("_guidance_scale", 1.0, 4)]
)
def test_callback_ends_the_loop_or_guidance(pipe, name, value, passes):
    calls = []
    hook = pipe.transformer.register_forward_hook(lambda *_: calls.append(1))

    def end(pipeline, *_):
        setattr(pipeline, name, value)
        return {}

    made = make(pipe, num_inference_steps=3, callback_on_step_end=end)
    hook.remove()
    assert made.isfinite().all()
    assert len(calls) == passes


def test_attention_kwargs_scale_a_lora(model, lora):
    pipe = new_pipe(model)
    plain = make(pipe)
    pipe.load_lora_weights(lora)
    assert (make(pipe) - plain).abs().max() > 1e-3
    without = make(pipe, attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(without, plain, rtol=1e-4, atol=1e-4)


# What is given


def test_forms_of_an_image(pipe, image, media):
    array = np.asarray(image)
    tensor = torch.tensor(array).permute(2, 0, 1)
    forms = [image, media["image"], str(media["image"]), array, array / 255, tensor, tensor / 255]
    made = [make(pipe, image=form, output_type="latent") for form in [*forms, [image]]]
    [condition] = read_conditions([parse_placement(f"{media['image']}@1")], SIZE)
    assert torch.equal(made[0][:, :, :1], encoded(pipe, condition))
    for other in made[1:]:
        assert torch.equal(other, made[0])


def test_an_image_for_each_prompt(pipe, media):
    images = [Image.open(media[name]) for name in ("image", "other")]
    noise = torch.randn(2, *SHAPE[1:], generator=seeded())
    options = {"output_type": "latent", "num_inference_steps": 1}
    both = make(pipe, [PROMPT, "a wall"], image=images, latents=noise, **options)
    for n, prompt in enumerate([PROMPT, "a wall"]):
        one = make(pipe, prompt, image=images[n], latents=noise[n : n + 1], **options)
        torch.testing.assert_close(both[n], one[0], rtol=1e-4, atol=1e-4)


def same(made, expected):
    def plain(conditions):
        return [(c.pixels.tolist(), c.latent_frames, c.multipliers) for c in conditions]

    return plain(made) == plain(expected)


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        (lambda image, other: [image], ["{image}@1"]),
        (lambda image, other: [(image, 1)], ["{image}@1"]),
        (lambda image, other: [(image, 9, 0.5), (other, 1)], ["{other}@1", "{image}@9:0.5"]),
        (lambda image, other: [([image], 1, 0.3)], ["{image}@1:0.3"]),
    ],
)
def test_frames_in_memory_are_placed_as_files_are(media, given, texts):
    images = [Image.open(media[name]) for name in ("image", "other")]
    placements = [parse_placement(text.format(**media)) for text in texts]
    expected = read_conditions(placements, SIZE)
    assert same(make_conditions(given(*images), SIZE), expected)


def test_frames_of_a_video_are_encoded_in_one_run(pipe):
    """The frames that a pipeline gave are given to the next, with frames beside our own type."""
    video = pipe(PROMPT, generator=seeded(), **SMALL).frames[0]
    frames = [Image.fromarray(f) for f in (255 * video).round().astype(np.uint8)]
    [from_list] = make_conditions([(frames[:5], 1)], SIZE)
    [from_array] = make_conditions([video[:5]], SIZE)
    assert same([from_list], [from_array])
    assert (from_list.latent_frames, from_list.multipliers) == ((0, 1), (0.0, 0.0))
    latents = make(pipe, conditions=[(video[:5], 1), (frames[8], 9, 0.5)], output_type="latent")
    assert torch.equal(latents[:, :, :2], encoded(pipe, from_list))
    ours = make(pipe, conditions=[from_list], output_type="latent")
    assert torch.equal(ours[:, :, :2], latents[:, :, :2])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_given_frames_with_any_scheduler(model, image, scheduler):
    pipe = new_pipe(model, scheduler=SCHEDULERS[scheduler])
    starts = []
    hook = pipe.transformer.register_forward_pre_hook(lambda _, args: starts.append(args))
    noise = noise_for(0, PROMPT, 0, SHAPE[1:])[None]
    made = make(pipe, conditions=[(image, 1), (image, 9, 0.4)], latents=noise, output_type="latent")
    hook.remove()
    latents, timestep = starts[0][:2]
    assert torch.equal(made[:, :, 0], latents[:, :, 0])
    assert not torch.equal(made[:, :, 2], latents[:, :, 2])
    torch.testing.assert_close(latents[:, :, 1], noise[:, :, 1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(timestep[0] / timestep[0, 1], torch.tensor([0.0, 1.0, 0.4]))


# LoRAs, as the documentation loads them


def test_lora_is_loaded_scaled_fused_and_unloaded(model, lora, write_lora, tmp_path):
    pipe = new_pipe(model)
    plain = make(pipe)
    ours = load_pipeline(model, Weights(lora=[f"{lora}:0.7"]))
    ours.scheduler = pipe.scheduler
    expected = make(ours)
    pipe.load_lora_weights(lora, adapter_name="pusa")
    pipe.set_adapters("pusa", 0.7)
    assert pipe.get_active_adapters() == ["pusa"]
    torch.testing.assert_close(make(pipe), expected, rtol=1e-4, atol=1e-4)
    assert (expected - plain).abs().max() > 1e-3

    second = write_lora(tmp_path / "b.safetensors", seed=1)
    pipe.load_lora_weights(second, adapter_name="style")
    pipe.set_adapters(["pusa", "style"], adapter_weights=[0.7, 0.0])
    torch.testing.assert_close(make(pipe), expected, rtol=1e-4, atol=1e-4)
    pipe.delete_adapters("style")
    pipe.disable_lora()
    torch.testing.assert_close(make(pipe), plain, rtol=1e-4, atol=1e-4)
    pipe.enable_lora()
    pipe.fuse_lora(adapter_names=["pusa"], lora_scale=1.0)
    pipe.unload_lora_weights()
    torch.testing.assert_close(make(pipe), expected, rtol=1e-4, atol=1e-4)


# Memory


@pytest.mark.parametrize(
    "enable",
    [
        lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
        pytest.param(
            lambda pipe: pipe.enable_sequential_cpu_offload(),
            marks=pytest.mark.skipif(not torch.accelerator.is_available(), reason="no GPU"),
        ),
        lambda pipe: pipe.enable_group_offload(
            onload_device=torch.device("cpu"),
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
        ),
        lambda pipe: pipe.transformer.compile_repeated_blocks(backend="eager"),
        lambda pipe: setattr(pipe, "transformer", torch.compile(pipe.transformer, backend="eager")),
        lambda pipe: pipe.transformer.set_attention_backend("native"),
        lambda pipe: pipe.vae.enable_slicing(),
    ],
    ids=["model", "sequential", "group", "blocks", "compile", "attention", "slicing"],
)
def test_switches_change_nothing(model, image, enable):
    expected = make(new_pipe(model), image=image)
    pipe = new_pipe(model)
    enable(pipe)
    for _ in range(2):
        torch.testing.assert_close(make(pipe, image=image), expected, rtol=1e-5, atol=1e-5)


def test_cache_is_wan_pipelines(model):
    """It leaves out blocks, and tells the two passes of guidance apart."""
    made, plain = [], make(new_pipe(model), num_inference_steps=6)
    for kind in (PusaPipeline, WanPipeline):
        pipe = new_pipe(model, kind)
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
        made.append(make(pipe, num_inference_steps=6, guidance_scale=3.0))
    torch.testing.assert_close(*made, rtol=1e-4, atol=1e-4)
    assert (made[0] - plain).abs().max() > 1e-3


def test_tiling(model, image):
    pipe = new_pipe(model)
    pipe.vae.enable_tiling(32, 32, 16, 16)
    calls = []
    pipe.vae.decoder.register_forward_hook(lambda *_: calls.append(1))
    assert make(pipe, image=image).shape == (1, 9, 3, 64, 64)
    assert len(calls) > 3 * 4


# Parts and folders


def test_parts_are_loaded_one_by_one(model):
    vae = AutoencoderKLWan.from_pretrained(model, subfolder="vae", torch_dtype=torch.float32)
    pipe = new_pipe(model, vae=vae, torch_dtype=torch.bfloat16)
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, **UNIPC)
    assert (pipe.vae.dtype, pipe.transformer.dtype) == (torch.float32, torch.bfloat16)
    assert make(pipe).isfinite().all()


def test_any_transformer_of_wan_gets_vta(model, image):
    expected = make(new_pipe(model), image=image)
    plain = WanTransformer3DModel.from_pretrained(model, subfolder="transformer")
    wan = new_pipe(model, WanPipeline)
    ours = [new_pipe(model, transformer=plain), PusaPipeline(**wan.components)]
    ours.append(new_pipe(model))
    ours[-1].transformer = WanTransformer3DModel.from_pretrained(model, subfolder="transformer")
    for pipe in ours:
        pipe.set_progress_bar_config(disable=True)
        assert isinstance(pipe.transformer, VTAWanTransformer3DModel)
        assert torch.equal(make(pipe, image=image), expected)


@pytest.mark.parametrize("folder", ["model", "pair"])
def test_saved_pipeline_is_loaded_by_every_name(request, folder, image, tmp_path):
    folder = request.getfixturevalue(folder)
    pipe = new_pipe(folder, scheduler=UniPCMultistepScheduler(**UNIPC))
    pipe.save_pretrained(tmp_path)
    expected, text = make(pipe, image=image), make(pipe, guidance_scale=5.0)
    custom = new_pipe(
        tmp_path, DiffusionPipeline, custom_pipeline=str(tmp_path), trust_remote_code=True
    )
    for again in (custom, new_pipe(tmp_path)):
        assert type(again) is PusaPipeline
        assert torch.equal(make(again, image=image), expected)
    for plain in (new_pipe(tmp_path, WanPipeline), new_pipe(tmp_path, DiffusionPipeline)):
        assert type(plain) is WanPipeline
        assert type(plain.transformer) is WanTransformer3DModel
        assert plain.config.boundary_ratio == pipe.config.boundary_ratio
        made = make(plain, guidance_scale=5.0)
        torch.testing.assert_close(made, text, rtol=1e-4, atol=1e-4)


def test_guidance_of_the_low_noise_expert(pair):
    pipe = new_pipe(pair)
    made = [make(pipe, guidance_scale=2.0, guidance_scale_2=g) for g in (None, 2.0, 4.0)]
    assert torch.equal(made[0], made[1])
    assert (made[0] - made[2]).abs().max() > 1e-3


# What it refuses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": None}, "Provide either `prompt` or `prompt_embeds`"),
        ({"height": 60}, "divisible by 16"),
        ({"num_frames": 8}, "must be of the form 4k\\+1, found 8; 5 and 9 are the nearest"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, found 0"),
        ({"guidance_scale_2": 2.0}, "`boundary_ratio` is not None"),
        ({"callback_on_step_end_tensor_inputs": ["x"]}, "has to be in"),
        ({"latents": torch.zeros(1, 16, 3, 4, 4)}, r"shape \(1, 16, 3, 4, 4\), expected \(1, 16"),
        ({"image": "none.png"}, "none.png does not exist"),
        ({"image": 3}, "image: found a int, expected PIL images"),
        ({"image": np.zeros((64, 64))}, r"image: found float64 \(64, 64\), expected PIL"),
        ({"image": torch.full((3, 64, 64), -1.0)}, "image: found values from -1 to -1, expected 0"),
        ({"image": [np.zeros((64, 64, 3))] * 2}, "image: found 2, expected 1 or one for each of 1"),
        (
            {"image": np.zeros((64, 64, 3)), "conditions": [np.zeros((64, 64, 3))]},
            r"conditions\[0\]@1 and image@1 overlap in the latent frame that holds 1 ",
        ),
        (
            {"conditions": [(np.zeros((64, 64, 3)), 10)]},
            r"conditions\[0\]@10: expected frames that",
        ),
        ({"conditions": [(np.zeros((64, 64, 3)), 1, 2.0)]}, "noise multiplier 2, expected 0"),
        ({"conditions": [(np.zeros((64, 64, 3)),)]}, r"conditions\[0\]: .* found a tuple of 1"),
        (
            {"conditions": [np.zeros((3, 64, 64, 3))]},
            r"conditions\[0\]@1-3: a clip must fill whole latent frames, as 1-5 does",
        ),
        ({"conditions": Image.new("RGB", (64, 64))}, "conditions: found a Image, expected a list"),
        ({"conditions": None}, "conditions: found a NoneType, expected a list"),
        ({"output_type": "mp4"}, "output_type: found 'mp4', expected one of np, pt, pil, latent"),
        ({"prompt": []}, "found 0 prompts and num_videos_per_prompt 1, expected at least one"),
        ({"num_videos_per_prompt": 0}, "found 1 prompts and num_videos_per_prompt 0, expected at"),
    ],
)
def test_bad_arguments_are_one_sentence(pipe, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make(pipe, **{"prompt": PROMPT} | options)
