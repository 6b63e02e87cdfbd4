import shutil

import torch
from diffusers import WanPipeline, WanTransformer3DModel

from pusa.models.load import load_transformer
from pusa.tiny import base as module
from pusa.tiny.base import build_transformer, train_base


def test_transformer_fits_text_encoder_and_vae(model):
    config = build_transformer().config
    pipeline = WanPipeline.from_pretrained(model)
    assert config.text_dim == pipeline.text_encoder.config.d_model
    assert config.in_channels == config.out_channels == pipeline.vae.config.z_dim
    assert config.patch_size[0] == 1


def test_training_writes_a_whole_pipeline(tmp_path, model, latent_cache, monkeypatch):
    """Four steps of a small transformer."""
    small = WanTransformer3DModel.from_pretrained(model / "transformer")
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    monkeypatch.setattr(module, "build_transformer", lambda: small)
    for part in ("tokenizer", "text_encoder", "vae"):
        shutil.copytree(model / part, tmp_path / part)
    checkpoint = tmp_path / "base.safetensors"
    train_base(latent_cache, tmp_path, steps=4, checkpoint=checkpoint, device="cpu")
    assert not checkpoint.exists()
    assert (tmp_path / "model_index.json").is_file()
    trained = load_transformer(tmp_path / "transformer").state_dict()
    assert trained.keys() == before.keys()
    # Saved as float16; the learning rate is still small in a warm-up of fifty steps.
    changed = [n for n in before if not torch.equal(trained[n], before[n].half().float())]
    assert len(changed) > 0.8 * len(before)
    video = WanPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)(
        prompt="a red circle",
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=1,
        max_sequence_length=20,
        output_type="np",
    ).frames
    assert video.shape == (1, 9, 64, 64, 3)
