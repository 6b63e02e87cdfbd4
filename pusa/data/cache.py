"""Caching what training and sampling read: latents of clips and embeddings of prompts.

A latent cache is a folder of a few large safetensors shards, ``latents-00000.safetensors``
and so on, one file of caption embeddings, and ``index.json``, written last, which says how the
cache was made and where each clip's latents are. Parallel file systems like few large files;
and as finished shards are kept, an interrupted run goes on where it stopped.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from diffusers import AutoencoderKLWan
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from pusa.clip import ClipSize, count_latent_frames
from pusa.data.dataset import TENSORS, Clip, open_tensors, read_clip, read_metadata
from pusa.data.video import check_clip
from pusa.models.folder import digest_files, require_files
from pusa.models.load import encode_pixels, frames_to_pixels, load_vae

SHARD_CLIPS = 256
TEXT_BATCH = 64


class LatentCache:
    """Read access to a cache folder: ``latents(i)`` and ``prompt_embeds(i)`` of clip ``i``.

    Raises:
        FileNotFoundError: if one of its files is missing.
        ValueError: if one cannot be read, or lacks a clip that the index lists.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        index_file = self.folder / "index.json"
        if not index_file.is_file():
            raise FileNotFoundError(f"{index_file} does not exist; run `pusa cache-latents` first")
        try:
            self.clips: list[dict] = json.loads(index_file.read_text())["clips"]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{index_file} is not the index of a cache ({error!r})") from None
        # Opened, not loaded: at the paper's size the latents are tens of gigabytes.
        shards = sorted({clip["shard"] for clip in self.clips})
        self._shards = {name: _open_cached(self.folder / name) for name in shards}
        held = {(name, key) for name, shard in self._shards.items() for key in shard.keys()}  # noqa: SIM118
        for clip in self.clips:
            if (clip["shard"], clip["name"]) not in held:
                raise ValueError(
                    f"{self.folder / clip['shard']} lacks clip {clip['name']}, which {index_file} "
                    "lists; cache the clips again"
                )
        self._captions = PromptCache(self.folder / "captions.safetensors")

    def digest(self) -> str:
        """Identify the contents: index, the files' names and metadata, a tensor of each file.

        Not every value is read, but the metadata says from what a shard was encoded.
        """
        digest = sha256(json.dumps(self.clips).encode())
        for file in (*self._shards.values(), self._captions._embeds):
            names = sorted(file.keys())
            metadata = sorted((file.metadata() or {}).items())
            digest.update(json.dumps([names, metadata]).encode())
            first = file.get_tensor(names[0]).contiguous()
            digest.update(first.flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

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
    source: Literal["encode", "released"] = "encode",
    skip_unusable: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> None:
    """Encode every clip and every distinct caption of a dataset once.

    With the source ``released``, take instead what the dataset holds beside each clip, in the
    precision that it has (see `pusa.data.dataset.open_tensors`). The videos, the VAE and the text
    encoder are not needed then; of the model, only the configs are read.

    A clip that cannot be used is listed with its reason in ``unusable.csv``.

    Raises:
        ValueError: if any clip is unusable, unless ``skip_unusable``; or none is left.
    """
    out = Path(out)
    count_latent_frames(size.frames)
    clips = read_metadata(dataset, suffix=TENSORS if source == "released" else "")
    out.mkdir(parents=True, exist_ok=True)
    # Written anew at the end: a run that fails must not leave an older run's index.
    (out / "index.json").unlink(missing_ok=True)

    made = {"source": source, **asdict(size)}
    if source == "released":
        shapes = _released_shapes(model, size, text_tokens)
        check, load = partial(open_tensors, **shapes), partial(_take_clip, shapes)
        made |= shapes
    else:
        vae = load_vae(model, dtype).to(device)
        check, load = partial(check_clip, **asdict(size)), partial(_encode_clip, vae, size)
        made |= {"vae": digest_files(Path(model) / "vae"), "dtype": str(dtype)}

    # Headers first, which takes seconds: hours of encoding must not end in a bad last clip.
    if not skip_unusable:
        _refuse([u for clip in clips if (u := _unusable(clip, check))], len(clips), out)

    index, unusable, files = [], [], {}
    progress = tqdm(total=len(clips), desc="Caching clips", unit="clip", mininterval=2)
    for start in range(0, len(clips), SHARD_CLIPS):
        chunk = clips[start : start + SHARD_CLIPS]
        name = f"latents-{start // SHARD_CLIPS:05d}.safetensors"
        # What a shard was made from; one that says otherwise is made anew.
        record = json.dumps({**made, "files": _file_states(chunk)}, sort_keys=True)
        bad = _finished_shard(out / name, record)
        if bad is None:
            tensors, bad = {}, {}
            for i, clip in enumerate(chunk, start):
                try:
                    tensors[str(i)] = load(clip.path)
                except ValueError as error:
                    bad[str(i)] = str(error)
                progress.update()
            _save(tensors, out / name, {"source": record, "unusable": json.dumps(bad)})
        else:
            progress.update(len(chunk))
        for i, clip in enumerate(chunk, start):
            if str(i) in bad:
                unusable.append({"file": str(clip.path), "reason": bad[str(i)]})
            else:
                file = clip.path.relative_to(dataset).as_posix()
                index.append({"shard": name, "name": str(i), "caption": clip.caption, "file": file})
                files.setdefault(clip.caption, clip.path)
    progress.close()

    if skip_unusable:
        _write_unusable(unusable, out)
    else:
        _refuse(unusable, len(clips), out)
    if not index:
        raise ValueError(f"{dataset}: no clip can be used, see {out / 'unusable.csv'}")
    captions = out / "captions.safetensors"
    if source == "released":
        _take_prompts(files, shapes, captions, text_tokens=text_tokens)
    else:
        cache_prompts(set(files), model, captions, text_tokens=text_tokens, device=device)
    made["text_tokens"] = text_tokens
    _write_text(out / "index.json", json.dumps({"made": made, "clips": index}, indent=1))


def _encode_clip(vae: AutoencoderKLWan, size: ClipSize, path: Path) -> torch.Tensor:
    pixels = frames_to_pixels(read_clip(path, **asdict(size))[None])
    return encode_pixels(vae, pixels.to(vae.device, vae.dtype))[0].cpu().contiguous()


def _released_shapes(model: str | Path, size: ClipSize, text_tokens: int) -> dict[str, tuple]:
    """The shapes that pre-encoded clips must have to be of this model."""
    require_files(model, ["vae/config.json", "text_encoder/config.json"])
    vae = json.loads((Path(model) / "vae" / "config.json").read_text())
    text = json.loads((Path(model) / "text_encoder" / "config.json").read_text())
    scale = vae.get("scale_factor_spatial", 8)  # Wan2.1's config is older than the key
    frames = count_latent_frames(size.frames)
    return {
        "latents": (vae["z_dim"], frames, size.height // scale, size.width // scale),
        "context": (1, text_tokens, text["d_model"]),
    }


def _take_clip(shapes: dict[str, tuple], path: Path) -> torch.Tensor:
    """The latents of a pre-encoded clip; its embedding is checked with them."""
    latents, context = open_tensors(path, **shapes)
    for name, tensor in (("latents", latents), ("prompt_emb.context", context)):
        if not torch.stack(tensor.aminmax()).isfinite().all():  # faster, and keeps every NaN
            raise ValueError(f"{path}: {name} holds numbers that are not finite")
    if not context.any():
        raise ValueError(f"{path}: prompt_emb.context is zero; expected a prompt's embedding")
    return latents.clone(memory_format=torch.contiguous_format)


def _take_prompts(
    files: dict[str, Path], shapes: dict[str, tuple], out: Path, *, text_tokens: int
) -> None:
    """Write the embedding of each caption, from the first clip that has it.

    There is none of the negative prompt, which training does not read.
    """
    embeds = {}
    for caption, path in tqdm(files.items(), desc="Reading prompts", mininterval=2):
        _, context = open_tensors(path, **shapes)
        embeds[text_key(caption)] = _strip_padding(context[0])
    _save(embeds, out, {"negative_prompt": "", "text_tokens": str(text_tokens)})


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
    from pusa.models.text import encode_prompts, load_text_encoder

    tokenizer, encoder = load_text_encoder(model, dtype)
    encoder.to(device)
    ordered = sorted(prompts | {negative_prompt})
    embeds = {}
    for start in tqdm(range(0, len(ordered), TEXT_BATCH), desc="Embedding prompts", mininterval=2):
        chunk = ordered[start : start + TEXT_BATCH]
        for prompt, embed in zip(
            chunk, encode_prompts(tokenizer, encoder, chunk, text_tokens), strict=True
        ):
            embeds[text_key(prompt)] = _strip_padding(embed).cpu()
    metadata = {"negative_prompt": negative_prompt, "text_tokens": str(text_tokens)}
    _save(embeds, Path(out), metadata)


def _strip_padding(embed: torch.Tensor) -> torch.Tensor:
    """Without the padding, which is zero: most prompts fill a fifth of Wan's 512 tokens."""
    return embed[: int(embed.any(dim=1).nonzero().max()) + 1].clone()


def _unusable(clip: Clip, check: Callable[[Path], object]) -> dict[str, str] | None:
    """Why a clip's headers rule it out, if they do."""
    try:
        check(clip.path)
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
        self._embeds = _open_cached(self.file)
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


def _open_cached(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is missing; cache the clips again") from None
    except SafetensorError as error:
        raise ValueError(
            f"{file} is damaged ({error}); delete it and cache the clips again"
        ) from None


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
