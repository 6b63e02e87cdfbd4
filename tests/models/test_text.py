import logging
import shutil

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file

from pusa.models.text import (
    check_prompts,
    count_text_tokens,
    encode_prompts,
    load_text_encoder,
    load_tokenizer,
)
from pusa.tiny.text import TEXT_TOKENS

CAPTION = "a red circle moves slowly left over stripes, camera static"


@pytest.fixture(scope="module")
def text(model):
    return load_text_encoder(model)


def test_missing_files_are_listed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks tokenizer, text_encoder/config\.json;"):
        load_text_encoder(tmp_path)


def test_prompts_are_embedded_as_by_the_pipeline(model, text):
    pipeline = WanPipeline.from_pretrained(model)
    prompts = [CAPTION, "a wall with dots, camera pans left", ""]
    expected, _ = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=False, max_sequence_length=TEXT_TOKENS
    )
    ours = encode_prompts(*text, prompts, TEXT_TOKENS)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours[0], ours[1], atol=0.1)


@pytest.mark.parametrize("prompt", ["a red &amp; blue wall", "<red> &lt;blue&gt;"])
def test_untidy_prompts_are_embedded_as_by_the_pipeline(model, text, prompt):
    """WanPipeline tidies broken Unicode and HTML entities before it tokenises."""
    pipeline = WanPipeline.from_pretrained(model)
    expected, _ = pipeline.encode_prompt(
        [prompt], do_classifier_free_guidance=False, max_sequence_length=TEXT_TOKENS
    )
    ours = encode_prompts(*text, [prompt], TEXT_TOKENS)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_padding_is_zero(text):
    embeds = encode_prompts(*text, ["red circle"], TEXT_TOKENS)
    assert embeds.shape == (1, TEXT_TOKENS, 64)
    assert (embeds[0, :3].abs().amax(1) > 0).all()  # two words and the end
    assert (embeds[0, 3:] == 0).all()


def test_embedding_does_not_depend_on_the_batch(text):
    together = encode_prompts(*text, ["red", CAPTION], TEXT_TOKENS)
    alone = encode_prompts(*text, ["red"], TEXT_TOKENS)
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


def test_too_long_prompt_is_named(text):
    prompt = "red " * 8 + "circle"
    assert encode_prompts(*text, [prompt], 10).shape == (1, 10, 64)
    with pytest.raises(ValueError, match="prompt has 10 tokens, at most 9 fit: 'red red"):
        encode_prompts(*text, ["blue", prompt], 9)


def test_tokens_go_to_the_encoders_device(text):
    """The encoder may be on a GPU; torch's meta device stands for it here."""
    tokenizer, _ = text

    class Encoder(torch.nn.Module):
        device = torch.device("meta")

        def forward(self, input_ids, attention_mask):
            assert input_ids.device == attention_mask.device == self.device
            hidden = torch.zeros(*input_ids.shape, 8, device=self.device)
            return type("Output", (), {"last_hidden_state": hidden})

    assert encode_prompts(tokenizer, Encoder(), ["red"], 5).device.type == "meta"


@pytest.mark.parametrize(("limit", "tokens"), [(20, 20), (512, 512), (1024, 512), (10**30, 512)])
def test_embeddings_are_as_long_as_wan_takes(limit, tokens):
    tokenizer = type("Tokenizer", (), {"model_max_length": limit})
    assert count_text_tokens(tokenizer) == tokens


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompt is given"),
        (["red", " \n"], "prompt 2 of 2 is empty, expected some words"),
        (["red", "red " * 9], "prompt has 10 tokens, at most 9 fit: 'red red"),
    ],
)
def test_prompts_are_checked_by_the_tokenizer(text, prompts, message):
    tokenizer, _ = text
    check_prompts(tokenizer, ["red", "red " * 8], 9)
    with pytest.raises(ValueError, match=message):
        check_prompts(tokenizer, prompts, 9)


def test_negative_prompt_is_checked_too(text):
    tokenizer, _ = text
    check_prompts(tokenizer, ["red"], 9, negative_prompt="")
    with pytest.raises(
        ValueError, match=r"^negative prompt has 10 tokens, at most 9 fit: 'red red"
    ):
        check_prompts(tokenizer, ["red"], 9, negative_prompt="red " * 9)


def test_too_long_prompt_is_told_by_us_only(model, monkeypatch, caplog):
    """Transformers would warn, and let it pass."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer = load_tokenizer(model)
    too_long = "red " * (tokenizer.model_max_length + 1)
    with pytest.raises(ValueError, match="prompt has"):
        check_prompts(tokenizer, [too_long], count_text_tokens(tokenizer))
    assert not caplog.messages
    tokenizer(too_long)
    assert "Token indices sequence length is longer" in caplog.text


def test_an_encoder_without_a_tensor_is_refused(model, tmp_path):
    """And not used with random numbers in its place."""
    broken = shutil.copytree(model, tmp_path / "model")
    file = broken / "text_encoder/model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("wi_0.weight"))
    del tensors[name]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"text_encoder: its weights lack 1 tensors .*{name}"):
        load_text_encoder(broken)
