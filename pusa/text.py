"""Prompts to embeddings, as Wan's pipeline makes them."""

from pathlib import Path

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from transformers import AutoTokenizer, UMT5EncoderModel

from pusa.model_folder import require_files


def load_text_encoder(model: str | Path, dtype: torch.dtype = torch.float32):
    """Load ``tokenizer/`` and ``text_encoder/`` of a model folder."""
    require_files(model, ["tokenizer", "text_encoder/config.json"])
    tokenizer = AutoTokenizer.from_pretrained(Path(model) / "tokenizer")
    encoder = UMT5EncoderModel.from_pretrained(model, subfolder="text_encoder", dtype=dtype)
    return tokenizer, encoder.eval()


@torch.no_grad()
def encode_prompts(tokenizer, encoder, prompts: list[str], length: int) -> torch.Tensor:
    """Embed prompts to ``(len(prompts), length, dim)``; padding is zero, as Wan was trained.

    Raises:
        ValueError: if a prompt has more than ``length`` tokens.
    """
    cleaned = [prompt_clean(prompt) for prompt in prompts]
    tokens = tokenizer(cleaned, padding=True, add_special_tokens=True, return_tensors="pt")
    counts = tokens.attention_mask.sum(1)
    for prompt, count in zip(prompts, counts.tolist(), strict=True):
        if count > length:
            raise ValueError(f"prompt has {count} tokens, at most {length} fit: {prompt[:80]!r}")
    tokens = tokens.to(encoder.device)
    hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    hidden = hidden * tokens.attention_mask[..., None]
    padded = hidden.new_zeros(len(prompts), length, hidden.shape[-1])
    padded[:, : hidden.shape[1]] = hidden
    return padded
