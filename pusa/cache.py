"""Caching what training and sampling read: latents of clips and embeddings of prompts.

A latent cache is a folder of a few large safetensors shards, ``latents-00000.safetensors``
and so on, one file of caption embeddings, and ``index.json``, written last, which says where
each clip's latents are. Parallel file systems like few large files; and as finished shards
are kept, an interrupted run goes on where it stopped.
"""

import json
import os
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from pusa.clip import ClipSize, count_latent_frames
from pusa.dataset import Clip, read_clip, read_metadata
from pusa.model_folder import digest_files
from pusa.models import encode_pixels, frames_to_pixels, load_vae
from pusa.video import check_video

SHARD_CLIPS = 256
TEXT_BATCH = 64


class LatentCache:
    """Read access to a cache folder: ``latents(i)`` and ``prompt_embeds(i)`` of clip ``i``."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        index_file = self.folder / "index.json"
        if not index_file.is_file():
            raise FileNotFoundError(f"{index_file} does not exist; run `pusa cache-latents` first")
        index = json.loads(index_file.read_text())
        self.clips: list[dict] = index["clips"]
        # Opened, not loaded: at the paper's size the latents are tens of gigabytes.
        shards = {clip["shard"] for clip in self.clips}
        self._shards = {name: safe_open(self.folder / name, framework="pt") for name in shards}
        self._captions = PromptCache(self.folder / "captions.safetensors")

    def __len__(self) -> int:
        return len(self.clips)

    def latents(self, i: int) -> torch.Tensor:
        """Normalised latents of clip ``i``, ``(channels, frames, height, width)``."""
        clip = self.clips[i]
        return self._shards[clip["shard"]].get_tensor(clip["name"]).float()

    def prompt_embeds(self, i: int) -> torch.Tensor:
        """Caption embedding of clip ``i``, ``(text_tokens, dim)``."""
        return self._captions[self.clips[i]["caption"]]


def cache_latents(
    dataset: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    size: ClipSize,
    text_tokens: int,
    skip_unusable: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> None:
    """Encode every clip and every distinct caption of a dataset once.

    A clip that cannot be used is listed with its reason in ``unusable.csv``.

    Raises:
        ValueError: if any clip is unusable, unless ``skip_unusable``; or none is left.
    """
    out = Path(out)
    count_latent_frames(size.frames)
    clips = read_metadata(dataset)
    out.mkdir(parents=True, exist_ok=True)
    # Written anew at the end: a run that fails must not leave an older run's index.
    (out / "index.json").unlink(missing_ok=True)

    # Headers first, which takes seconds: hours of encoding must not end in a bad last clip.
    if not skip_unusable:
        _refuse([u for clip in clips if (u := _unusable(clip, size))], len(clips), out)

    model_vae = load_vae(model, dtype).to(device)
    # What a shard was made from; one that says otherwise is encoded anew.
    source = {"vae": digest_files(Path(model) / "vae"), "dtype": str(dtype), **asdict(size)}
    index, unusable = [], []
    progress = tqdm(total=len(clips), desc="Encoding clips", unit="clip", mininterval=2)
    for start in range(0, len(clips), SHARD_CLIPS):
        chunk = clips[start : start + SHARD_CLIPS]
        name = f"latents-{start // SHARD_CLIPS:05d}.safetensors"
        record = json.dumps({**source, "files": _file_states(chunk)}, sort_keys=True)
        bad = _finished_shard(out / name, record)
        if bad is None:
            tensors, bad = {}, {}
            for i, clip in enumerate(chunk, start):
                try:
                    frames = read_clip(clip.path, **asdict(size))
                except ValueError as error:
                    bad[str(i)] = str(error)
                else:
                    pixels = frames_to_pixels(frames[None]).to(device, dtype)
                    tensors[str(i)] = encode_pixels(model_vae, pixels)[0].cpu().contiguous()
                progress.update()
            _save(tensors, out / name, {"source": record, "unusable": json.dumps(bad)})
        else:
            progress.update(len(chunk))
        for i, clip in enumerate(chunk, start):
            if str(i) in bad:
                unusable.append({"file": str(clip.path), "reason": bad[str(i)]})
            else:
                index.append({"shard": name, "name": str(i), "caption": clip.caption})
    progress.close()

    if skip_unusable:
        _write_unusable(unusable, out)
    else:
        _refuse(unusable, len(clips), out)
    if not index:
        raise ValueError(f"{dataset}: no clip can be used, see {out / 'unusable.csv'}")
    captions = {clip["caption"] for clip in index}
    cache_prompts(
        captions, model, out / "captions.safetensors", text_tokens=text_tokens, device=device
    )
    _write_text(out / "index.json", json.dumps({"clips": index}, indent=1))


def cache_prompts(
    prompts: set[str],
    model: str | Path,
    out: str | Path,
    *,
    text_tokens: int,
    negative_prompt: str = "",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> None:
    """Write the embedding of each prompt to one safetensors file.

    The negative prompt of guidance, by default the empty one, is embedded with them.
    """
    # Sampling and training read the cache without the text encoder, whose import takes seconds.
    from pusa.text import encode_prompts, load_text_encoder

    tokenizer, encoder = load_text_encoder(model, dtype)
    encoder.to(device)
    ordered = sorted(prompts | {negative_prompt})
    embeds = {}
    for start in tqdm(range(0, len(ordered), TEXT_BATCH), desc="Embedding prompts", mininterval=2):
        chunk = ordered[start : start + TEXT_BATCH]
        for prompt, embed in zip(
            chunk, encode_prompts(tokenizer, encoder, chunk, text_tokens), strict=True
        ):
            # Without its padding, which is zero: most prompts fill a fifth of Wan's 512 tokens.
            used = int(embed.any(dim=1).nonzero().max()) + 1
            embeds[text_key(prompt)] = embed[:used].cpu().clone()
    metadata = {"negative_prompt": negative_prompt, "text_tokens": str(text_tokens)}
    _save(embeds, Path(out), metadata)


def _unusable(clip: Clip, size: ClipSize) -> dict[str, str] | None:
    """Why a clip's headers rule it out, if they do."""
    try:
        check_video(clip.path, **asdict(size))
    except ValueError as error:
        return {"file": str(clip.path), "reason": str(error)}
    return None


def _refuse(unusable: list[dict[str, str]], clips: int, out: Path) -> None:
    _write_unusable(unusable, out)
    if unusable:
        raise ValueError(
            f"{len(unusable)} of {clips} clips cannot be used, listed in "
            f"{out / 'unusable.csv'}; the first: {unusable[0]['reason']}. Mend them, or set "
            "cache.skip_unusable to go on without them"
        )


def _write_unusable(unusable: list[dict[str, str]], out: Path) -> None:
    pd.DataFrame(unusable, columns=["file", "reason"]).to_csv(out / "unusable.csv", index=False)


class PromptCache:
    """Read access to the embeddings written by `cache_prompts`."""

    def __init__(self, file: str | Path):
        self.file = Path(file)
        if not self.file.is_file():
            raise FileNotFoundError(f"{self.file} does not exist; run `pusa cache-prompts` first")
        self._embeds = safe_open(self.file, framework="pt")
        self._names = set(self._embeds.keys())
        self.negative_prompt: str = self._embeds.metadata()["negative_prompt"]
        self._text_tokens = int(self._embeds.metadata()["text_tokens"])

    def __getitem__(self, prompt: str) -> torch.Tensor:
        """The embedding of a prompt, ``(text_tokens, dim)``, padded with zeros.

        Raises:
            ValueError: if it was not cached.
        """
        if text_key(prompt) not in self._names:
            raise ValueError(f"{self.file} holds no embedding of prompt {prompt!r}")
        embed = self._embeds.get_tensor(text_key(prompt)).float()
        return torch.nn.functional.pad(embed, (0, 0, 0, self._text_tokens - len(embed)))


def text_key(text: str) -> str:
    """A prompt as a tensor name: any character is allowed in the one, not in the other."""
    return sha256(text.encode()).hexdigest()[:24]


def _file_states(clips: list[Clip]) -> str:
    digest = sha256()
    for clip in clips:
        state = clip.path.stat()
        digest.update(f"{clip.path.name}{state.st_size}{state.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _finished_shard(file: Path, record: str) -> dict | None:
    """The unusable clips of a shard that an earlier run finished, or None if there is none."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as shard:
            metadata = shard.metadata()
    except SafetensorError:
        return None
    return json.loads(metadata["unusable"]) if metadata["source"] == record else None


def _save(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
    partial = file.with_name(f".partial-{file.name}")
    save_file(tensors, partial, metadata)
    os.replace(partial, file)


def _write_text(file: Path, text: str) -> None:
    partial = file.with_name(f".partial-{file.name}")
    partial.write_text(text)
    os.replace(partial, file)
