"""Prompts to embeddings, as Wan's pipeline makes them."""

from pathlib import Path

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from diffusers.utils.torch_utils import get_module_execution_device
from transformers import AutoTokenizer, UMT5EncoderModel

from pusa.models.folder import loading, read_part, require_complete, require_files

TEXT_TOKENS = 512  # of Wan


def load_text_encoder(model: str | Path, dtype: torch.dtype = torch.float32):
    """Load ``tokenizer/`` and ``text_encoder/`` of a model folder.

    Raises:
        FileNotFoundError: if one is missing.
        ValueError: if the encoder's weights lack a tensor, or have one of another shape, or its
            input embedding is not the shared one, or all zeros.
    """
    require_files(model, ["tokenizer/tokenizer_config.json", "text_encoder/config.json"])
    read_part(Path(model) / "text_encoder", "text_encoder")
    with loading(Path(model) / "text_encoder"):
        encoder, found = UMT5EncoderModel.from_pretrained(
            model,
            subfolder="text_encoder",
            dtype=dtype,
            output_loading_info=True,
            use_safetensors=True,
        )
    _check_embedding(Path(model) / "text_encoder", encoder)
    require_complete(Path(model) / "text_encoder", found)
    return load_tokenizer(model), encoder.eval()


def _check_embedding(folder: Path, encoder: UMT5EncoderModel) -> None:
    """Refuse an encoder that does not see the words, as transformers 5.0 to 5.2 made of Wan's.

    The weights have the embedding once, as ``shared.weight``. Those releases did not tie it where
    the config has ``tie_word_embeddings: false`` (pull request 43880, in 5.3.0).
    """
    shared, used = encoder.shared.weight, encoder.encoder.embed_tokens.weight
    found = None
    if not torch.equal(shared, used):
        found = "differs from shared.weight"
    elif not used.any():
        found = "is all zeros"
    if found:
        raise ValueError(
            f"{folder}: encoder.embed_tokens.weight {found}, so that prompts are not read as the "
            "model learned; expected transformers 5.3 or later, and weights as published, which "
            "may have to be downloaded again"
        )


def load_tokenizer(model: str | Path):
    """Load ``tokenizer/`` of a model folder.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it cannot be read.
    """
    require_files(model, ["tokenizer/tokenizer_config.json"])
    with loading(Path(model) / "tokenizer"):
        return AutoTokenizer.from_pretrained(Path(model) / "tokenizer")


def count_text_tokens(tokenizer) -> int:
    """Length of a prompt's embedding: 512 in Wan, or what the tokenizer takes if that is less."""
    return min(tokenizer.model_max_length, TEXT_TOKENS)


def check_prompts(tokenizer, prompts: list[str], length: int, *, negative_prompt: str = "") -> None:
    """Check prompts by the tokenizer alone, which takes no time.

    Raises:
        ValueError: if a prompt is empty, or one has more than ``length`` tokens.
    """
    if not prompts:
        raise ValueError("no prompt is given, expected at least one")
    for number, prompt in enumerate(prompts, start=1):
        if not prompt_clean(prompt):
            raise ValueError(f"prompt {number} of {len(prompts)} is empty, expected some words")
    _tokenize(tokenizer, prompts, length)
    _tokenize(tokenizer, [negative_prompt], length, "negative prompt")


@torch.no_grad()
def encode_prompts(tokenizer, encoder, prompts: list[str], length: int) -> torch.Tensor:
    """Embed prompts to ``(len(prompts), length, dim)``; padding is zero, as Wan was trained.

    Raises:
        ValueError: if a prompt has more than ``length`` tokens.
    """
    # An offloaded encoder is not where it computes.
    tokens = _tokenize(tokenizer, prompts, length).to(get_module_execution_device(encoder))
    hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    hidden = hidden * tokens.attention_mask[..., None]
    padded = hidden.new_zeros(len(prompts), length, hidden.shape[-1])
    padded[:, : hidden.shape[1]] = hidden
    return padded


def _tokenize(tokenizer, prompts: list[str], length: int, name: str = "prompt"):
    cleaned = [prompt_clean(prompt) for prompt in prompts]
    tokens = tokenizer(
        cleaned,
        padding=True,
        add_special_tokens=True,
        return_tensors="pt",
        verbose=False,  # it would warn of what is an error here
    )
    counts = tokens.attention_mask.sum(1)
    for prompt, count in zip(prompts, counts.tolist(), strict=True):
        if count > length:
            raise ValueError(f"{name} has {count} tokens, at most {length} fit: {prompt[:80]!r}")
    return tokens
