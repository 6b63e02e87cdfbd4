import torch

from pusa.models.text import encode_prompts, load_text_encoder
from pusa.tiny import world
from pusa.tiny.text import TEXT_TOKENS, write_text_encoder


def test_every_word_of_the_world_is_a_token(model):
    tokenizer, _ = load_text_encoder(model)
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in world.VOCABULARY]
    assert all(len(i) == 1 for i in ids)
    assert len({i[0] for i in ids} | {tokenizer.unk_token_id}) == len(world.VOCABULARY) + 1


def test_the_longest_caption_fits(model):
    tokenizer, _ = load_text_encoder(model)
    caption = "a white triangle moves quickly right over stripes, camera pans left"
    ids = tokenizer(caption).input_ids
    assert len(ids) <= TEXT_TOKENS
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in ids


def test_captions_that_differ_in_a_word_have_other_embeddings(model):
    captions = [
        "a red circle stays still over dots, camera static",
        "a blue circle stays still over dots, camera static",
        "a red circle stays still over checks, camera static",
    ]
    embeds = encode_prompts(*load_text_encoder(model), captions, TEXT_TOKENS)
    assert min((embeds[i] - embeds[j]).abs().max() for i, j in ((0, 1), (0, 2), (1, 2))) > 0.1


def test_encoder_is_always_the_same(tmp_path):
    embeds = []
    for name in ("a", "b"):
        torch.rand(3)
        write_text_encoder(tmp_path / name)
        embeds.append(encode_prompts(*load_text_encoder(tmp_path / name), ["red"], 5))
    assert torch.equal(*embeds)
