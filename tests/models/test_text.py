import json
import logging
import shutil

import pytest
import sentencepiece
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

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
    with pytest.raises(
        FileNotFoundError, match=r"lacks tokenizer/tokenizer_config\.json, text_enc"
    ):
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


def rewrite_encoder(model, out, change):
    """A copy of a model whose text encoder's tensors are changed."""
    shutil.copytree(model, out)
    file = out / "text_encoder/model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    return out


def test_an_embedding_that_is_stored_once_is_used(model, text, tmp_path):
    """Wan's folder has `shared.weight` alone, and a config that says it is not tied."""
    wan = rewrite_encoder(
        model, tmp_path / "wan", lambda tensors: tensors.pop("encoder.embed_tokens.weight", None)
    )
    config = wan / "text_encoder/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tie_word_embeddings": False}))
    ours = encode_prompts(*load_text_encoder(wan), [CAPTION], TEXT_TOKENS)
    assert torch.equal(ours, encode_prompts(*text, [CAPTION], TEXT_TOKENS))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda t: t.update({"encoder.embed_tokens.weight": t["shared.weight"] + 1}), "differs"),
        (lambda t: t["shared.weight"].zero_(), "is all zeros"),
    ],
)
def test_an_encoder_that_does_not_see_words_is_refused(model, tmp_path, change, found):
    broken = rewrite_encoder(model, tmp_path / "model", change)
    with pytest.raises(
        ValueError,
        match=rf"model/text_encoder: encoder\.embed_tokens\.weight {found}.*5\.3 or later",
    ):
        load_text_encoder(broken)


#: Prompts, and what they say once HTML entities and spaces are tidied, as Wan does.
PROMPTS = {
    "a red circle moves slowly left over stripes, camera static": None,
    "A man in a black suit and a sombrero, shouting loudly.": None,
    "一个戴着宽边帽的男人大声喊叫": None,
    "镜头缓缓推进,湖面上有一艘小船。": None,
    "a cat 🐱 chases a dog 🐶": None,
    "an emoji that is not in the vocabulary: 🦄": None,
    "salt &amp; pepper": "salt & pepper",
    "&lt;b&gt;bold&lt;/b&gt;": "<b>bold</b>",
    "twice &amp;quot;escaped&amp;quot;": 'twice "escaped"',
    "two  spaces   and\ttabs\nand lines": "two spaces and tabs and lines",
    "  spaces around  ": "spaces around",
    "naïve café, it's 100%": None,
    "": None,
}


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A `spiece.model` with T5's first three ids, of a few hundred pieces."""
    folder = tmp_path_factory.mktemp("pieces") / "tokenizer"
    folder.mkdir()
    known = [told or prompt for prompt, told in PROMPTS.items()]
    with open(folder / "spiece.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text.replace("🦄", "") for text in 3 * known),
            model_writer=file,
            vocab_size=200,
            hard_vocab_limit=False,
            character_coverage=1.0,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    # As in Wan's folders, but for the number of sentinels.
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 100}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("has_json", [False, True])
def test_ids_are_sentencepieces(pieces, tmp_path, has_json):
    """Of the tokenizer from `spiece.model` alone, and from the `tokenizer.json` made of it."""
    shutil.copytree(pieces, tmp_path / "tokenizer")
    if has_json:
        AutoTokenizer.from_pretrained(pieces).save_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path)
    plain = sentencepiece.SentencePieceProcessor(model_file=str(pieces / "spiece.model"))
    expected = [[*plain.encode(told or prompt), 1] for prompt, told in PROMPTS.items()]

    class Encoder(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, input_ids, attention_mask):
            self.ids = [
                row[: len(row) if mask.all() else mask.argmin()].tolist()
                for row, mask in zip(input_ids, attention_mask, strict=True)
            ]
            hidden = torch.zeros(*input_ids.shape, 8)
            return type("Output", (), {"last_hidden_state": hidden})

    encoder = Encoder()
    encode_prompts(tokenizer, encoder, list(PROMPTS), 512)
    assert encoder.ids == expected
    assert plain.unk_id() in expected[5]
    assert plain.unk_id() not in {i for ids in expected[:5] + expected[6:] for i in ids}
