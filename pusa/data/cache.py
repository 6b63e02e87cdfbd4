"""Caching what training and sampling read: latents of clips and embeddings of prompts.

A latent cache is a folder of a few large safetensors shards, ``latents-00000.safetensors``
and so on, one file of caption embeddings, and ``index.json``, written last, which says how the
cache was made and where each clip's latents are. Parallel file systems like few large files;
and as finished shards are kept, an interrupted run goes on where it stopped.

Sampling and training read a cache without the VAE and the text encoder, whose imports take
seconds; so these are imported where something is encoded.
"""

import csv
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from pusa.clip import count_latent_frames, split_clips
from pusa.config import Size
from pusa.data.dataset import TENSORS, Clip, latents_shape, open_tensors, read_metadata
from pusa.data.video import FPS, check_clip, is_of_another_rate, read_clip
from pusa.digests import digest_file, digest_folder
from pusa.models.folder import digest_text_encoder, read_part
from pusa.models.stream import TensorLayout, write_tensors
from pusa.records import atomic

SHARD_CLIPS = 256
#: Clips are encoded together up to so many pixels: for small ones a call takes as long as a clip.
ENCODED_PIXELS = 2**20
#: The configurations of the sizes that the authors' encodings may have, by height and width.
RELEASED_CONFIGS = {(720, 1280): "config/config.yaml", (480, 832): "config/480p.yaml"}


def cache_latents(
    dataset: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    size: Size,
    text_tokens: int,
    source: Literal["encode", "released"] = "encode",
    skip_unusable: bool = False,
    device: str = "cpu",
) -> None:
    """Encode every clip and every distinct caption of a dataset once.

    With the source ``released``, take instead what the dataset holds beside each clip, in the
    precision that it has (see `pusa.data.dataset.open_tensors`). The videos, the VAE and the text
    encoder are not needed then; of the model, only the configs are read.

    Clips are scaled and cut to ``size`` (see `pusa.data.video.read_clip`). One that cannot be used
    is listed with its reason in ``unusable.csv``. Of clips of another frame rate than the model's,
    all frames are taken, with a warning.

    Raises:
        ValueError: if any clip is unusable, unless ``skip_unusable``; or none is left; if a caption
            is too long, or the first of the released encodings is of another size.
    """
    out = Path(out)
    clips = read_metadata(dataset, suffix=TENSORS if source == "released" else "")
    out.mkdir(parents=True, exist_ok=True)
    # Written anew at the end: a run that fails must not leave an older run's index.
    (out / "index.json").unlink(missing_ok=True)

    texts = {"text_tokens": text_tokens}
    made = {"source": source, "frames": size.frames, "height": size.height, "width": size.width}
    if source == "released":
        shapes = _released_shapes(model, size, text_tokens)
        _check_released_size(clips[0].path, size, shapes["latents"])
        check, batch = partial(open_tensors, **shapes), 1
        read, encode = partial(_take_clip, shapes), list
        made |= shapes
    else:
        check, read = (partial(f, **size.model_dump()) for f in (check_clip, read_clip))
        batch = max(1, ENCODED_PIXELS // (size.frames * size.height * size.width))
        encode = _encoder(model, device)
        _check_captions(dataset, clips, model, text_tokens)
        made |= {"vae": digest_folder(Path(model) / "vae"), "dtype": "torch.float32"}
        texts["text_encoder"] = digest_text_encoder(model)

    # Headers first, which takes seconds: hours of encoding must not end in a bad last clip.
    unusable, other_rates = {}, []
    for clip in clips:
        try:
            rate = check(clip.path)
        except ValueError as error:
            unusable[clip.path] = str(error)
        else:
            if source == "encode" and is_of_another_rate(rate):
                other_rates.append((clip.path, float(rate)))
    _list_unusable(unusable, len(clips), out, skip_unusable)
    if other_rates:
        file, rate = other_rates[0]
        warnings.warn(
            f"{len(other_rates)} of {len(clips)} clips have another frame rate than the model's "
            f"{FPS}, such as {file} with {rate:.4g}: their frames are taken as they are, so that "
            "things move faster or slower than they did",
            stacklevel=2,
        )

    index, caption_files = [], {}
    progress = tqdm(total=len(clips), desc="Caching clips", unit="clip", mininterval=2)
    for start in range(0, len(clips), SHARD_CLIPS):
        chunk = {str(i): clip for i, clip in enumerate(clips[start : start + SHARD_CLIPS], start)}
        shard = f"latents-{start // SHARD_CLIPS:05d}.safetensors"
        refused = _cache_shard(chunk, out / shard, read, encode, batch, made, progress)
        for name, clip in chunk.items():
            if name in refused:
                unusable[clip.path] = refused[name]
            else:
                file = clip.path.relative_to(dataset).as_posix()
                index.append({"shard": shard, "name": name, "caption": clip.caption, "file": file})
                caption_files.setdefault(clip.caption, clip.path)
    progress.close()

    _list_unusable(unusable, len(clips), out, skip_unusable)
    if not index:
        raise ValueError(f"{dataset}: no clip can be used, see {out / 'unusable.csv'}")
    captions = out / "captions.safetensors"
    if source == "released":
        files = tqdm(caption_files.items(), desc="Reading prompts", mininterval=2)
        embeds = ((caption, open_tensors(file, **shapes)[1][0]) for caption, file in files)
        _save_prompts(embeds, captions, text_tokens)  # training reads no negative prompt
    else:
        cache_prompts(set(caption_files), model, captions, text_tokens=text_tokens, device=device)
    index = {"made": {**made, **texts}, "clips": index}
    with atomic(out / "index.json") as unfinished:
        unfinished.write_text(json.dumps(index, indent=1))


def _cache_shard(
    clips: dict[str, Clip],
    file: Path,
    read: Callable[[Path], Any],
    encode: Callable[[list], list[torch.Tensor]],
    batch: int,
    made: dict,
    progress: tqdm,
) -> dict[str, str]:
    """Write clips by their names, unless a shard of the same is there; returns why some are not.

    Args:
        read: what is encoded of a clip's file.
        encode: makes the latents of up to ``batch`` clips.
    """
    digest = sha256()
    for clip in clips.values():
        digest.update(f"{clip.path.name} {digest_file(clip.path)}\n".encode())
    record = json.dumps({**made, "files": digest.hexdigest()[:16]}, sort_keys=True)
    with suppress(FileNotFoundError, SafetensorError), safe_open(file, framework="pt") as shard:
        metadata = shard.metadata()
        if metadata["source"] == record:
            progress.update(len(clips))
            return json.loads(metadata["unusable"])
    tensors, refused = {}, {}
    remaining = iter(clips.items())
    while some := list(islice(remaining, batch)):
        known = {}
        for name, clip in some:
            try:
                known[name] = read(clip.path)
            except ValueError as error:
                refused[name] = str(error)
        tensors |= zip(known, encode([*known.values()]), strict=True)
        progress.update(len(some))
    _save(tensors, file, {"source": record, "unusable": json.dumps(refused)})
    return refused


def _encoder(model: str | Path, device: str) -> Callable[[list[np.ndarray]], list[torch.Tensor]]:
    """A function that encodes clips with the model's VAE."""
    from pusa.models.load import encode_pixels, frames_to_pixels, load_vae

    vae = load_vae(model).to(device)  # float32, as is the text encoder

    def encode(clips: list[np.ndarray]) -> list[torch.Tensor]:
        if not clips:
            return []
        latents = encode_pixels(vae, frames_to_pixels(np.stack(clips)).to(device))
        return [clip.clone() for clip in latents.cpu()]

    return encode


def _released_shapes(model: str | Path, size: Size, text_tokens: int) -> dict[str, tuple]:
    """The shapes that pre-encoded clips must have to be of this model."""
    vae, text = (read_part(Path(model) / part, part) for part in ("vae", "text_encoder"))
    scale = vae.get("scale_factor_spatial", 8)  # Wan2.1's config is older than the key
    frames = count_latent_frames(size.frames)
    return {
        "latents": (vae["z_dim"], frames, size.height // scale, size.width // scale),
        "context": (1, text_tokens, text["d_model"]),
    }


def _check_released_size(path: Path, size: Size, expected: tuple[int, ...]) -> None:
    """Tell the size of released encodings from the first one, before thousands are opened."""
    try:
        found = latents_shape(path)
    except ValueError:
        return  # listed with all that cannot be used
    if found is None or len(found) != 4 or found[0] != expected[0] or found == expected:
        return
    scale = size.height // expected[2]
    frames, height, width = 4 * found[1] - 3, scale * found[2], scale * found[3]
    config = RELEASED_CONFIGS.get((height, width))
    named = f", as {config} has" if config else ""
    raise ValueError(
        f"{path}: latents of {'x'.join(map(str, found))}, which are {frames} frames of "
        f"{width}x{height} pixels; found {size.frames} frames of {size.width}x{size.height} under "
        f"clip, expected frames: {frames}, height: {height}, width: {width}{named}"
    )


def _check_captions(
    dataset: str | Path, clips: list[Clip], model: str | Path, text_tokens: int
) -> None:
    """Refuse captions that are too long for the text encoder: hours later, it would."""
    from pusa.models.text import check_prompts, load_tokenizer

    captions = list(dict.fromkeys(clip.caption for clip in clips))
    try:
        check_prompts(load_tokenizer(model), captions, text_tokens)
    except ValueError as error:
        raise ValueError(f"{Path(dataset) / 'metadata.csv'}: {error}") from None


def _take_clip(shapes: dict[str, tuple], path: Path) -> torch.Tensor:
    """The latents of a pre-encoded clip; its embedding is checked with them."""
    latents, context = open_tensors(path, **shapes)
    for name, tensor in (("latents", latents), ("prompt_emb.context", context)):
        if not torch.stack(tensor.aminmax()).isfinite().all():  # faster, and keeps every NaN
            raise ValueError(f"{path}: {name} holds numbers that are not finite")
    if not context.any():
        raise ValueError(f"{path}: prompt_emb.context is zero; expected a prompt's embedding")
    return latents.clone(memory_format=torch.contiguous_format)


def _list_unusable(unusable: dict[Path, str], clips: int, out: Path, skip_unusable: bool) -> None:
    """Write ``unusable.csv``, and refuse to go on unless these clips are to be skipped."""
    with (out / "unusable.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("file", "reason"), *unusable.items()])
    if unusable and not skip_unusable:
        raise ValueError(
            f"{len(unusable)} of {clips} clips cannot be used, listed in "
            f"{out / 'unusable.csv'}; the first: {next(iter(unusable.values()))}. Mend them, or "
            "set cache.skip_unusable to go on without them"
        )


def cache_prompts(
    prompts: set[str],
    model: str | Path,
    out: str | Path,
    *,
    text_tokens: int,
    negative_prompt: str = "",
    device: str = "cpu",
) -> None:
    """Write the embedding of each prompt to one safetensors file.

    The negative prompt of guidance, by default the empty one, is embedded with them.
    """
    from pusa.models.text import encode_prompts, load_text_encoder

    tokenizer, encoder = load_text_encoder(model)
    encoder.to(device)
    ordered = sorted(prompts | {negative_prompt})

    def encode() -> Iterator[tuple[str, torch.Tensor]]:
        # One by one: beside others a prompt's embedding is rounded otherwise, and videos whose
        # prompt did not change would be made again.
        for prompt in tqdm(ordered, "Embedding prompts", mininterval=2):
            yield prompt, encode_prompts(tokenizer, encoder, [prompt], text_tokens)[0]

    _save_prompts(encode(), out, text_tokens, negative_prompt, digest_text_encoder(model))


def _save_prompts(
    embeds: Iterable[tuple[str, torch.Tensor]],
    out: str | Path,
    text_tokens: int,
    negative_prompt: str = "",
    text_encoder: str | None = None,
) -> None:
    """Write embeddings without padding, which is zero: most prompts fill a fifth of 512 tokens."""
    tensors = {}
    for prompt, embed in embeds:
        length = int(embed.any(dim=1).nonzero().max()) + 1
        tensors[text_key(prompt)] = embed[:length].clone().cpu()
    metadata = {"negative_prompt": negative_prompt, "text_tokens": str(text_tokens)}
    if text_encoder:
        metadata["text_encoder"] = text_encoder
    _save(tensors, out, metadata)


def _save(tensors: dict[str, torch.Tensor], file: str | Path, metadata: dict[str, str]) -> None:
    layout = {n: TensorLayout(t.dtype, tuple(t.shape)) for n, t in tensors.items()}
    write_tensors(file, layout, tensors.__getitem__, metadata)


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
            index = json.loads(index_file.read_text())
            self.clips: list[dict] = index["clips"]
            self.made: dict = index["made"]  # what was encoded, and by what
        except (ValueError, KeyError, TypeError) as error:
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

    def split(self, held_out: int) -> tuple[list[int], list[int]]:
        """The clips to train on and those held out, as `pusa.clip.split_clips` has them.

        Raises:
            ValueError: if none is left to train on.
        """
        trained, last = split_clips([clip["caption"] for clip in self.clips], held_out)
        if not trained:
            raise ValueError(
                f"{self.folder} holds {len(self)} clips, expected more than the {held_out} of "
                "train.validation_clips, with other captions"
            )
        return trained, last

    def latents(self, i: int) -> torch.Tensor:
        """Normalised latents of clip ``i``, ``(channels, frames, height, width)``."""
        clip = self.clips[i]
        return self._shards[clip["shard"]].get_tensor(clip["name"]).float()

    def prompt_embeds(self, i: int) -> torch.Tensor:
        """Caption embedding of clip ``i``, ``(text_tokens, dim)``."""
        return self._captions[self.clips[i]["caption"]]


class PromptCache:
    """Read access to the embeddings written by `cache_prompts`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read.
    """

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
        embed = self._stored(prompt).float()
        return torch.nn.functional.pad(embed, (0, 0, 0, self._text_tokens - len(embed)))

    def digest(self, prompt: str) -> str:
        """SHA-256 of a prompt's embedding: values, type and shape.

        Raises:
            ValueError: if it was not cached.
        """
        embed = self._stored(prompt)
        digest = sha256(f"{embed.dtype} {tuple(embed.shape)} {self._text_tokens}".encode())
        digest.update(embed.contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    def _stored(self, prompt: str) -> torch.Tensor:
        if text_key(prompt) not in self._names:
            raise ValueError(f"{self.file} holds no embedding of prompt {prompt!r}")
        return self._embeds.get_tensor(text_key(prompt))


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
