"""Trains the tiny model's transformer as a plain text-to-video model: one timestep per clip."""

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

from pusa.data.cache import LatentCache
from pusa.flow import SHIFT, TRAIN_TIMESTEPS, fafm_loss, interpolate, shift_sigma
from pusa.models.load import load_vae
from pusa.models.text import encode_prompts, load_text_encoder
from pusa.tiny.fit import compile_blocks, fit
from pusa.tiny.text import TEXT_DIM

BATCH = 16
TRAIN_SHIFT = 3.0  # of the training noise levels
CAPTION_DROP = 0.1  # share of clips trained on the empty prompt, for guidance


def build_transformer() -> WanTransformer3DModel:
    """A `WanTransformer3DModel` of 3.5 M parameters."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=16,
        out_channels=16,
        text_dim=TEXT_DIM,
        freq_dim=128,
        ffn_dim=576,
        num_layers=6,
        rope_max_seq_len=64,
    )


def train_base(
    cache: str | Path, model: str | Path, *, steps: int, checkpoint: Path, device: str
) -> None:
    """Train on cached latents and write ``transformer/``, ``scheduler/`` and the model index.

    ``model`` already has its VAE and text encoder. An interrupted training goes on from the file
    ``checkpoint``, as `pusa.tiny.fit.fit` says, which is removed at the end.
    """
    torch.manual_seed(0)
    data = LatentCache(cache)
    latents = torch.stack([data.latents(i) for i in range(len(data))]).to(device)
    prompts = torch.stack([data.prompt_embeds(i) for i in range(len(data))]).to(device)
    no_prompt = encode_prompts(*load_text_encoder(model), [""], prompts.shape[1]).to(device)
    transformer = build_transformer().to(device)
    compile_blocks(transformer, steps)

    def loss_of_step(_: int) -> torch.Tensor:
        chosen = torch.randint(len(latents), (BATCH,)).to(device)
        x0 = latents[chosen]
        x1 = torch.randn(x0.shape).to(device)
        sigma = shift_sigma(torch.rand(BATCH), TRAIN_SHIFT).to(device)
        dropped = (torch.rand(BATCH, 1, 1) < CAPTION_DROP).to(device)
        prompt = torch.where(dropped, no_prompt, prompts[chosen])
        noisy = interpolate(x0, x1, sigma[:, None].expand(-1, x0.shape[2]))
        prediction = transformer(noisy, TRAIN_TIMESTEPS * sigma, prompt, return_dict=False)[0]
        return fafm_loss(prediction, x0, x1)

    fit(
        transformer,
        loss_of_step,
        steps=steps,
        muon_lr=0.015,
        adamw_lr=2e-3,
        description="base",
        checkpoint=checkpoint,
    )

    tokenizer, text_encoder = load_text_encoder(model, torch.float16)
    WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=load_vae(model, torch.float16),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        transformer=transformer.to("cpu", torch.float16),
    ).save_pretrained(model)
    checkpoint.unlink()
