import json
import shutil

import av
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pusa.config import Size
from pusa.data import cache as caching
from pusa.data.cache import LatentCache, PromptCache, cache_latents, cache_prompts
from pusa.data.dataset import read_metadata
from pusa.data.video import read_clip, read_video, write_video
from pusa.digests import digest_folder
from pusa.models.folder import digest_text_encoder
from pusa.models.load import encode_pixels, frames_to_pixels, load_vae, normalise_latents
from pusa.models.text import encode_prompts, load_text_encoder
from pusa.tiny.text import TEXT_DIM, TEXT_TOKENS


@pytest.fixture
def own(tmp_path, dataset):
    """A copy of the rendered clips that a test may spoil."""
    shutil.copytree(dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


@pytest.fixture
def encoded(monkeypatch):
    """The clips that the VAE is given, as a list that grows."""
    calls = []

    def counting(vae, pixels):
        calls.extend(pixels)
        return encode_pixels(vae, pixels)

    monkeypatch.setattr("pusa.models.load.encode_pixels", counting)
    return calls


def build(dataset, model, out, size, **options):
    cache_latents(dataset, model, out, size=size, text_tokens=TEXT_TOKENS, **options)
    return LatentCache(out)


def test_holds_what_the_model_encodes(latent_cache, dataset, model, size):
    data, clips = LatentCache(latent_cache), read_metadata(dataset)
    vae, text = load_vae(model), load_text_encoder(model)
    assert len(data) == len(clips) == 6
    for i, clip in enumerate(clips):
        frames = read_clip(clip.path, frames=9, height=64, width=64)
        with torch.no_grad():
            mean = vae.encode(frames_to_pixels(frames[None])).latent_dist.mean
        torch.testing.assert_close(data.latents(i), normalise_latents(vae, mean)[0])
        expected = encode_prompts(*text, [clip.caption], TEXT_TOKENS)[0]
        torch.testing.assert_close(data.prompt_embeds(i), expected, rtol=1e-4, atol=1e-5)
    assert data.latents(0).shape == (16, 3, 8, 8)
    assert data.latents(0).dtype == data.prompt_embeds(0).dtype == torch.float32
    assert pd.read_csv(latent_cache / "unusable.csv").empty


def test_index_says_how_it_was_made(latent_cache, model):
    index = json.loads((latent_cache / "index.json").read_text())
    assert index["made"] == {
        "source": "encode",
        "frames": 9,
        "height": 64,
        "width": 64,
        "vae": digest_folder(model / "vae"),
        "dtype": "torch.float32",
        "text_tokens": TEXT_TOKENS,
        "text_encoder": digest_text_encoder(model),
    }
    assert index["clips"][0]["file"] == "train/video_000001.mp4"


def test_missing_cache_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"index\.json does not exist; run `pusa cache-l"):
        LatentCache(tmp_path)


def test_every_caption_is_embedded_once(own, model, size, tmp_path, monkeypatch):
    table = pd.read_csv(own / "metadata.csv")
    table["text"] = ["a red circle", "a blue square"] * 3
    table.to_csv(own / "metadata.csv", index=False)
    seen = []

    def counting(tokenizer, encoder, prompts, length):
        seen.extend(prompts)
        return encode_prompts(tokenizer, encoder, prompts, length)

    monkeypatch.setattr("pusa.models.text.encode_prompts", counting)
    data = build(own, model, tmp_path / "cache", size)
    assert sorted(seen) == ["", "a blue square", "a red circle"]
    assert torch.equal(data.prompt_embeds(0), data.prompt_embeds(2))
    assert not torch.equal(data.prompt_embeds(0), data.prompt_embeds(1))


def test_clips_are_split_by_caption(own, model, size, tmp_path):
    table = pd.read_csv(own / "metadata.csv")
    table["text"] = ["red", "blue", "dots", "red", "white", "red"]
    table.to_csv(own / "metadata.csv", index=False)
    data = build(own, model, tmp_path / "cache", size)
    assert data.split(1) == ([1, 2, 4], [5])
    with pytest.raises(ValueError, match=r"6 clips, expected more than the 5 of .*other captions"):
        data.split(5)


def test_prompts_are_embedded(model, tmp_path):
    prompts = {"red", "blue circle", "green square moves", "white", "dots"}
    cache_prompts(prompts, model, tmp_path / "p.safetensors", text_tokens=6)
    cached, text = PromptCache(tmp_path / "p.safetensors"), load_text_encoder(model)
    for prompt in (*prompts, ""):
        expected = encode_prompts(*text, [prompt], 6)[0]
        torch.testing.assert_close(cached[prompt], expected, rtol=1e-4, atol=1e-5)


def test_clips_of_another_rate_are_taken_with_a_warning(own, model, size, tmp_path):
    file = own / "train/video_000002.mp4"
    frames = read_video(file)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with pytest.warns(UserWarning, match=r"^1 of 6 clips .* 16, such as .*_000002.mp4 with 30: "):
        build(own, model, tmp_path / "cache", size)


def test_clips_of_other_sizes_are_cut(own, model, size, tmp_path, latent_cache):
    """As the same frames are that come in the size; unlike these they have other latents."""
    paths = [clip.path for clip in read_metadata(own)]
    for path, (height, width) in zip(paths[1:3], ((64, 96), (128, 128)), strict=True):
        frames = np.random.default_rng(0).integers(0, 256, (11, height, width, 3), np.uint8)
        write_video(path, frames)
    data = build(own, model, tmp_path / "cache", size)
    vae, others = load_vae(model), LatentCache(latent_cache)
    for i, path in enumerate(paths):
        frames = read_clip(path, frames=9, height=64, width=64)
        assert frames.shape == (9, 64, 64, 3)
        expected = encode_pixels(vae, frames_to_pixels(frames[None]))[0]
        torch.testing.assert_close(data.latents(i), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(data.latents(i), others.latents(i)) == (i not in (1, 2))


def test_a_caption_that_is_too_long_is_found_first(own, model, size, tmp_path, encoded):
    table = pd.read_csv(own / "metadata.csv")
    table.loc[4, "text"] = " ".join(["red"] * 30)
    table.to_csv(own / "metadata.csv", index=False)
    with pytest.raises(ValueError, match=r"metadata\.csv: prompt has 31 tokens, at most \d+ fit"):
        build(own, model, tmp_path / "cache", size)
    assert encoded == []


# Going on after an interruption


def test_finished_shards_are_kept(dataset, model, size, tmp_path, monkeypatch, encoded):
    monkeypatch.setattr(caching, "SHARD_CLIPS", 2)
    whole = build(dataset, model, tmp_path / "whole", size)
    assert len(encoded) == 6
    encoded.clear()

    def interrupted(vae, pixels):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.extend(pixels)
        return encode_pixels(vae, pixels)

    with monkeypatch.context() as patch:
        patch.setattr("pusa.models.load.encode_pixels", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(dataset, model, tmp_path / "cache", size)
    with pytest.raises(FileNotFoundError):
        LatentCache(tmp_path / "cache")
    encoded.clear()
    resumed = build(dataset, model, tmp_path / "cache", size)
    assert len(encoded) == 4  # the first shard of two was finished
    assert resumed.clips == whole.clips
    assert {clip["shard"] for clip in resumed.clips} == {
        f"latents-0000{i}.safetensors" for i in range(3)
    }
    for i in range(6):
        assert torch.equal(resumed.latents(i), whole.latents(i))


def test_a_changed_clip_is_encoded_anew(own, model, size, tmp_path, monkeypatch, encoded):
    monkeypatch.setattr(caching, "SHARD_CLIPS", 2)
    before = build(own, model, tmp_path / "cache", size)
    encoded.clear()
    fourth = read_metadata(own)[3].path
    for clip in read_metadata(own):
        clip.path.touch()  # as if all were rendered again
    write_video(fourth, np.full((9, 64, 64, 3), 90, np.uint8))
    after = build(own, model, tmp_path / "cache", size)
    assert len(encoded) == 2  # the shard that holds it
    changed = [not torch.equal(before.latents(i), after.latents(i)) for i in range(6)]
    assert changed == [False, False, False, True, False, False]


def test_another_vae_or_size_is_encoded_anew(dataset, model, size, tmp_path, encoded):
    build(dataset, model, tmp_path / "cache", size)
    shutil.copytree(model, tmp_path / "model")
    weights = tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    tensors["quant_conv.weight"] *= 2
    save_file(tensors, weights, {"format": "pt"})
    build(dataset, tmp_path / "model", tmp_path / "cache", size)
    assert len(encoded) == 12
    shorter = Size(frames=5, height=64, width=64)
    data = build(dataset, tmp_path / "model", tmp_path / "cache", shorter)
    assert data.latents(0).shape == (16, 2, 8, 8)
    assert len(encoded) == 18


def test_a_damaged_shard_is_encoded_anew(dataset, model, size, tmp_path, encoded):
    before = build(dataset, model, tmp_path / "cache", size)
    shard = tmp_path / "cache" / "latents-00000.safetensors"
    shard.unlink()  # not truncated in place: `before` has it mapped into memory
    shard.write_bytes(b"cut off")
    encoded.clear()
    after = build(dataset, model, tmp_path / "cache", size)
    assert len(encoded) == 6
    assert torch.equal(before.latents(5), after.latents(5))


# Unusable clips


@pytest.fixture
def spoiled(own):
    """Clips 1, 2 and 4 are unreadable, too short, and of another size."""
    paths = [clip.path for clip in read_metadata(own)]
    paths[1].write_bytes(b"no video")
    write_video(paths[2], np.zeros((8, 64, 64, 3), np.uint8))
    write_video(paths[4], np.zeros((9, 48, 64, 3), np.uint8))
    return own


def test_unusable_clips_fail_with_counts(spoiled, dataset, model, size, tmp_path, encoded):
    out = tmp_path / "cache"
    with pytest.raises(ValueError, match=r"3 of 6 clips cannot be used.*unusable\.csv.*000002"):
        build(spoiled, model, out, size)
    assert encoded == []
    assert not (out / "index.json").exists()
    listed = pd.read_csv(out / "unusable.csv")
    assert [file.rsplit("_", 1)[1] for file in listed["file"]] == [
        "000002.mp4",
        "000003.mp4",
        "000005.mp4",
    ]
    for reason, words in zip(
        listed["reason"],
        ("cannot be read as a video", "8 frames, expected at least 9", "64x48 pixels"),
        strict=True,
    ):
        assert words in reason
    shutil.copytree(dataset, spoiled, dirs_exist_ok=True)  # mended
    assert len(build(spoiled, model, out, size)) == 6
    assert pd.read_csv(out / "unusable.csv").empty


def test_unusable_clips_are_skipped_on_request(spoiled, model, size, tmp_path, latent_cache):
    """Nor are they forgotten when a second run finds their shard finished."""
    usable = LatentCache(latent_cache)
    for _ in range(2):
        data = build(spoiled, model, tmp_path / "cache", size, skip_unusable=True)
        assert len(data) == 3
        for ours, original in enumerate((0, 3, 5)):
            assert torch.equal(data.latents(ours), usable.latents(original))
            assert torch.equal(data.prompt_embeds(ours), usable.prompt_embeds(original))
        assert len(pd.read_csv(tmp_path / "cache" / "unusable.csv")) == 3


def test_no_usable_clip(own, model, size, tmp_path):
    for clip in read_metadata(own):
        clip.path.write_bytes(b"no video")
    with pytest.raises(ValueError, match="no clip can be used"):
        build(own, model, tmp_path / "cache", size, skip_unusable=True)


def test_a_failed_run_leaves_no_index(own, model, size, tmp_path):
    build(own, model, tmp_path / "cache", size)
    read_metadata(own)[1].path.write_bytes(b"no video")
    with pytest.raises(ValueError):
        build(own, model, tmp_path / "cache", size)
    with pytest.raises(FileNotFoundError):
        LatentCache(tmp_path / "cache")


# Pre-encoded clips


@pytest.fixture
def released(tmp_path, own, latent_cache):
    """The clips as DiffSynth-Studio stores what it encodes; there are no videos."""
    cached = LatentCache(latent_cache)
    for i, clip in enumerate(read_metadata(own)):
        data = {
            "latents": cached.latents(i).bfloat16(),
            "prompt_emb": {"context": cached.prompt_embeds(i).bfloat16()[None]},
            "image_emb": {},
        }
        torch.save(data, clip.path.with_name(f"{clip.path.name}.tensors.pth"))
        clip.path.unlink()
    return own


@pytest.fixture
def configs(tmp_path, model):
    """A model folder without weights."""
    for part in ("vae", "text_encoder"):
        (tmp_path / "configs" / part).mkdir(parents=True)
        shutil.copy(model / part / "config.json", tmp_path / "configs" / part)
    return tmp_path / "configs"


def change(dataset, i, **other):
    """Replace entries of one pre-encoded clip; returns its file."""
    file = sorted((dataset / "train").glob("*.pth"))[i]
    torch.save({**torch.load(file, weights_only=True), **other}, file)
    return file


def test_released_clips_are_what_encoding_gives(released, configs, size, tmp_path, latent_cache):
    data = build(released, configs, tmp_path / "cache", size, source="released")
    encoded = LatentCache(latent_cache)
    assert len(data) == 6
    for i in range(6):
        assert torch.equal(data.latents(i), encoded.latents(i).bfloat16().float())
        assert torch.equal(data.prompt_embeds(i), encoded.prompt_embeds(i).bfloat16().float())
    with safe_open(tmp_path / "cache" / "latents-00000.safetensors", "pt") as shard:
        assert shard.get_tensor("0").dtype == torch.bfloat16
    captions = load_file(tmp_path / "cache" / "captions.safetensors")
    assert all(len(embed) < TEXT_TOKENS for embed in captions.values())  # padding is not kept
    index = json.loads((tmp_path / "cache" / "index.json").read_text())
    assert index["made"] == {
        "source": "released",
        "frames": 9,
        "height": 64,
        "width": 64,
        "latents": [16, 3, 8, 8],
        "context": [1, TEXT_TOKENS, TEXT_DIM],
        "text_tokens": TEXT_TOKENS,
    }


def test_released_clips_of_one_caption(released, configs, size, tmp_path):
    table = pd.read_csv(released / "metadata.csv")
    table["text"] = "a red circle"
    table.to_csv(released / "metadata.csv", index=False)
    for i in range(6):
        context = torch.full((1, TEXT_TOKENS, TEXT_DIM), i + 1.0)
        change(released, i, prompt_emb={"context": context})
    data = build(released, configs, tmp_path / "cache", size, source="released")
    assert data.prompt_embeds(5).unique().tolist() == [1.0]


def test_unusable_released_clips(released, configs, size, tmp_path):
    """What a header shows is found before anything is written; the rest while reading."""
    first = change(released, 1, latents=torch.rand(16, 2, 8, 8))
    out = tmp_path / "cache"
    with pytest.raises(ValueError, match=r"1 of 6 clips.*000002\.mp4\.tensors\.pth: latents of sh"):
        build(released, configs, out, size, source="released")
    assert not list(out.glob("latents-*"))

    infinite = torch.zeros(16, 3, 8, 8).index_fill(0, torch.tensor(3), torch.inf)
    second = change(released, 2, latents=infinite)
    nothing, nan = torch.zeros(2, 1, TEXT_TOKENS, TEXT_DIM)
    nan[0, 3, 5] = torch.nan
    third = change(released, 3, prompt_emb={"context": nan})
    fourth = change(released, 4, prompt_emb={"context": nothing})
    data = build(released, configs, out, size, source="released", skip_unusable=True)
    assert len(data) == 2
    listed = pd.read_csv(out / "unusable.csv")
    assert listed["file"].tolist() == [str(file) for file in (first, second, third, fourth)]
    for reason, words in zip(
        listed["reason"],
        ("expected (16, 3, 8, 8)", "latents holds numbers", "context holds numbers", "is zero"),
        strict=True,
    ):
        assert words in reason


@pytest.mark.parametrize(
    ("clip", "shape", "named"),
    [
        ((81, 720, 1280), (16, 21, 60, 104), "480, width: 832, as config/480p.yaml has$"),
        ((81, 480, 832), (16, 21, 90, 160), "720, width: 1280, as config/config.yaml has$"),
        ((9, 64, 64), (16, 5, 8, 8), "frames: 17, height: 64, width: 64$"),
    ],
)
def test_released_clips_of_another_size(released, configs, tmp_path, clip, shape, named):
    """The first one tells, before the second is opened."""
    change(released, 0, latents=torch.zeros(shape))
    change(released, 1, latents=None)
    frames, height, width = clip
    size = Size(frames=frames, height=height, width=width)
    told = rf"000001.*latents of {'x'.join(map(str, shape))}, which are .*found {frames} frames of "
    with pytest.raises(
        ValueError, match=told + rf"{width}x{height} under clip, expected .*{named}"
    ):
        build(released, configs, tmp_path / "cache", size, source="released")
    assert not (tmp_path / "cache/unusable.csv").exists()


def test_released_clips_of_another_model_are_refused(released, configs, size, tmp_path):
    config = json.loads((configs / "vae" / "config.json").read_text())
    (configs / "vae" / "config.json").write_text(json.dumps({**config, "z_dim": 48}))
    with pytest.raises(
        ValueError, match=r"6 of 6 clips.*\(16, 3, 8, 8\), expected \(48, 3, 8, 8\)"
    ):
        build(released, configs, tmp_path / "cache", size, source="released")


# Prompts


def test_negative_prompt_is_embedded(model, tmp_path):
    file = tmp_path / "p.safetensors"
    cache_prompts({"red"}, model, file, text_tokens=5, negative_prompt="blue dots")
    cached = PromptCache(file)
    assert cached.negative_prompt == "blue dots"
    expected = encode_prompts(*load_text_encoder(model), ["blue dots"], 5)[0]
    torch.testing.assert_close(cached[cached.negative_prompt], expected, rtol=1e-4, atol=1e-5)


def test_an_embedding_is_told_by_its_content(model, tmp_path):
    """By another text encoder a prompt has another, and beside other prompts the same."""
    digests = []
    for name, prompts in (("one", {"red"}), ("two", {"red", "blue"})):
        cache_prompts(prompts, model, tmp_path / name, text_tokens=5)
        digests.append(PromptCache(tmp_path / name).digest("red"))
    assert digests[0] == digests[1] != PromptCache(tmp_path / "two").digest("blue")
    other = shutil.copytree(model, tmp_path / "model")
    file = other / "text_encoder/model.safetensors"
    save_file({n: 1.01 * t for n, t in load_file(file).items()}, file, {"format": "pt"})
    cache_prompts({"red"}, other, tmp_path / "three", text_tokens=5)
    assert PromptCache(tmp_path / "three").digest("red") != digests[0]


def test_uncached_prompt_is_named(prompt_cache):
    with pytest.raises(ValueError, match="holds no embedding of prompt 'a purple moon'"):
        PromptCache(prompt_cache)["a purple moon"]


def test_missing_prompt_cache_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; run `pusa cache-prompts`"):
        PromptCache(tmp_path / "p.safetensors")
