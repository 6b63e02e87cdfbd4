"""The tiny model's text side: a word-level tokenizer and a random, frozen UMT5 encoder.

Random weights suffice: distinct words in distinct places get distinct embeddings, and the
transformer learns what they mean.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from pusa.tiny.world import VOCABULARY

TEXT_DIM = 64
TEXT_TOKENS = 20


def write_text_encoder(model: str | Path) -> None:
    """Write ``tokenizer/`` and ``text_encoder/`` of a model folder."""
    words = ["<pad>", "</s>", "<unk>", *VOCABULARY]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_TOKENS,
    ).save_pretrained(Path(model) / "tokenizer")

    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=len(words),
        d_model=TEXT_DIM,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        pad_token_id=vocabulary["<pad>"],
        eos_token_id=vocabulary["</s>"],
    )
    encoder = UMT5EncoderModel(config).to(torch.float16)
    encoder.save_pretrained(Path(model) / "text_encoder")
