"""Trains the tiny model's image-to-video baseline in Wan-I2V's manner, from the same base.

Where VTA gives every frame a timestep of its own and adds no weight, Wan-I2V widens the input: the
noisy latents come with a mask and with the latents of the image, followed by grey frames. The
timestep stays one per clip, and all weights are trained. (Wan2.1-I2V has an image encoder as well;
Wan2.2-I2V and this one do without.)
"""

from pathlib import Path

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from tqdm import tqdm

from pusa.config import Size
from pusa.data.cache import LatentCache
from pusa.data.video import read_clip
from pusa.flow import TRAIN_TIMESTEPS, fafm_loss, interpolate, shift_sigma
from pusa.models.load import frames_to_pixels, load_vae
from pusa.models.text import encode_prompts, load_text_encoder
from pusa.tiny.base import CAPTION_DROP, TRAIN_SHIFT
from pusa.tiny.fit import compile_blocks, fit

BATCH = 8
MASK_CHANNELS = 4  # one for each pixel frame that a latent frame stands for


def widen_input(base: WanTransformer3DModel, grey: torch.Tensor) -> WanTransformer3DModel:
    """The base with input channels for a mask and for the image's latents, after the noisy ones.

    The image's channels start as copies of the noisy latents', less what grey frames would add,
    and the mask's at zero: so the image is seen from the first step on, and frames that are grey
    change nothing. From zeros, the image was still ignored after 300 steps.

    Args:
        grey: normalised latent of a grey frame, ``(channels,)``.
    """
    channels = base.config.in_channels
    wide = WanTransformer3DModel.from_config(base.config, in_channels=2 * channels + MASK_CHANNELS)
    weights = base.state_dict()
    kernel, bias = weights["patch_embedding.weight"], weights["patch_embedding.bias"]
    mask = kernel.new_zeros(len(kernel), MASK_CHANNELS, *kernel.shape[2:])
    weights["patch_embedding.weight"] = torch.cat([kernel, mask, kernel], dim=1)
    weights["patch_embedding.bias"] = bias - kernel.sum((2, 3, 4)) @ grey
    wide.load_state_dict(weights)
    return wide


@torch.no_grad()
def encode_conditions(
    pipeline: WanImageToVideoPipeline, files: list[Path], size: Size
) -> torch.Tensor:
    """What the pipeline adds to the noisy latents when it is given the first frame of each file.

    Returns:
        Mask and image latents, ``(files, 4 + channels, frames, height, width)`` in latent space.
    """
    conditions = []
    for file in tqdm(files, desc="Encoding images", unit="image", mininterval=2):
        image = read_clip(file, frames=1, height=size.height, width=size.width)
        _, condition = pipeline.prepare_latents(
            frames_to_pixels(image[None])[:, :, 0],
            batch_size=1,
            height=size.height,
            width=size.width,
            num_frames=size.frames,
            dtype=torch.float32,
            device="cpu",
        )
        conditions.append(condition)
    return torch.cat(conditions)


def train_baseline(
    dataset: str | Path,
    cache: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    size: Size,
    steps: int,
    validation_clips: int,
    seed: int,
    checkpoint: Path,
) -> None:
    """Train on a dataset and its latent cache, and write a folder for `WanImageToVideoPipeline`.

    An interrupted training goes on from the file ``checkpoint``, as `pusa.tiny.fit.fit` says, which
    is removed at the end.

    Args:
        dataset: holds the clips that the cache lists, whose first frames are the images.
        model: the base, whose VAE, text encoder and scheduler the baseline shares.
        size: of the cached clips.
        steps: of 8 clips each.
        validation_clips: the last clips of the cache, which LoRAs are not trained on either.

    Raises:
        ValueError: as `LatentCache.split`.
    """
    data = LatentCache(cache)
    clips, _ = data.split(validation_clips)
    torch.manual_seed(seed)
    latents = torch.stack([data.latents(i) for i in clips])
    prompts = torch.stack([data.prompt_embeds(i) for i in clips])
    tokenizer, text_encoder = load_text_encoder(model)
    no_prompt = encode_prompts(tokenizer, text_encoder, [""], prompts.shape[1])
    pipeline = WanImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=load_vae(model),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(model, subfolder="scheduler"),
    )
    files = [Path(dataset) / data.clips[i]["file"] for i in clips]
    conditions = encode_conditions(pipeline, files, size)
    transformer = widen_input(
        WanTransformer3DModel.from_pretrained(
            model, subfolder="transformer", torch_dtype=torch.float32, use_safetensors=True
        ),
        grey=conditions[:, MASK_CHANNELS:, -1].mean((0, 2, 3)),
    )

    def loss_of_step(_: int) -> torch.Tensor:
        chosen = torch.randint(len(latents), (BATCH,))
        x0 = latents[chosen]
        x1 = torch.randn_like(x0)
        sigma = shift_sigma(torch.rand(BATCH), TRAIN_SHIFT)
        dropped = torch.rand(BATCH, 1, 1) < CAPTION_DROP
        prompt = torch.where(dropped, no_prompt, prompts[chosen])
        noisy = interpolate(x0, x1, sigma[:, None].expand(-1, x0.shape[2]))
        inputs = torch.cat([noisy, conditions[chosen]], dim=1)
        prediction = transformer(inputs, TRAIN_TIMESTEPS * sigma, prompt, return_dict=False)[0]
        return fafm_loss(prediction, x0, x1)

    compile_blocks(transformer, steps)
    fit(
        transformer,
        loss_of_step,
        steps=steps,
        muon_lr=0.02,
        adamw_lr=2e-3,
        description="baseline",
        checkpoint=checkpoint,
    )
    pipeline.register_modules(transformer=transformer)
    pipeline.to(torch.float16).save_pretrained(out)
    checkpoint.unlink()
