"""What of a video is given: which pixels are encoded together, for which latent frames, how clean.

People count pixel frames from 1. The VAE makes one latent frame of the first pixel frame and one
of every four that follow: pixel frame 1 is latent frame 0, and 4k-2 to 4k+1 are latent frame k.
All tasks of the paper differ in this description only.

How it is encoded:

- One frame that is not the video's first is encoded alone, as an image (Figure 7).
- What is at frame 1, and every clip further on, is encoded in one run, in order, as the VAE takes
  frames by four only behind a first one (Figures 9 to 12): frame 1 and the last four are a run of
  five. Where nothing is at frame 1, the run is led by a repetition of its first frame, whose
  latent frame is dropped.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from pusa.clip import ClipSize, count_latent_frames
from pusa.data.image import fit_image, is_image, load_image, open_image, upright_rgb
from pusa.data.video import FPS, is_of_another_rate, scan_video
from pusa.sample.tasks import Given

if TYPE_CHECKING:  # seconds, which a job that encodes nothing can save
    from diffusers import AutoencoderKLWan


@dataclass(frozen=True)
class Condition:
    """Pixels that are encoded together, and where their latents go."""

    pixels: np.ndarray  # uint8 (n, height, width, 3), n = 4k+1
    latent_frames: tuple[int, ...]  # rising, from 0: where the last latents of the encoding go
    multipliers: tuple[float, ...]  # noise multiplier of each, in [0, 1]; 0 keeps it clean


@dataclass(frozen=True)
class Placement:
    """Frames of a file, and their place in the video, as a person says it."""

    file: Path  # an image or a video
    source: int  # the first frame taken of it, from 1; or from its end, where -1 is the last
    first: int  # first and last frame of the video that they are, from 1
    last: int
    multipliers: tuple[float, ...]  # one for all, or one per latent frame

    def __str__(self) -> str:
        source = f"#{self.source}" if self.source != 1 else ""
        multipliers = ",".join(f"{m:g}" for m in self.multipliers)
        kept = f":{multipliers}" if any(self.multipliers) else ""
        return f"{self.file}{source}@{_name_span(self.first, self.last)}{kept}"

    @property
    def latent_frames(self) -> range:
        """The latent frames that it goes to, from 0."""
        return range(latent_frame(self.first), latent_frame(self.last) + 1)


def latent_frame(frame: int) -> int:
    """The latent frame, from 0, that holds a pixel frame, from 1."""
    return (frame + 2) // 4


def pixel_frames(latent: int) -> tuple[int, int]:
    """First and last pixel frame, from 1, that a latent frame, from 0, holds."""
    return (4 * latent - 2, 4 * latent + 1) if latent else (1, 1)


def describe_frames(frames: int) -> str:
    """How pixel frames map to latent frames, in a line for people.

    Raises:
        ValueError: unless ``frames`` is of the form 4k+1.
    """
    latents = count_latent_frames(frames)
    spans = [_name_span(*pixel_frames(latent)) for latent in range(latents)]
    if latents > 5:
        spans[4:-1] = ["…"]
    return f"{frames} pixel frames = {latents} latent frames: {' | '.join(spans)}"


def parse_placement(text: str) -> Placement:
    """Read ``FILE[#FROM]@FIRST[-LAST][:MULTIPLIER[,MULTIPLIER…]]``.

    ``clip.mp4#-13@1-13:0.3`` is the last 13 frames of a clip, at frames 1 to 13 of the video, with
    noise multiplier 0.3. Without ``FROM`` the frames are the file's first, without a multiplier
    they are kept clean.

    Raises:
        ValueError: if it is not written so.
    """
    parts = re.fullmatch(r"(.+)@([0-9]+)(?:-([0-9]+))?(?::([^@:]+))?", text)
    if not parts:
        raise ValueError(
            f"condition {text!r}: expected FILE[#FROM]@FIRST[-LAST][:MULTIPLIER[,MULTIPLIER…]], "
            "such as clip.mp4#-13@1-13:0.3"
        )
    file, first, last, multipliers = parts.groups()
    file, source = re.fullmatch(r"(.+?)(?:#(-?[0-9]+))?", file).groups()
    try:
        values = tuple(float(m) for m in (multipliers or "0").split(","))
    except ValueError:
        raise ValueError(
            f"condition {text!r}: {multipliers!r} is not a noise multiplier, expected numbers from "
            "0 (clean) to 1 (noise)"
        ) from None
    return Placement(
        file=Path(file),
        source=int(source or 1),
        first=int(first),
        last=int(last or first),
        multipliers=values,
    )


def place(file: str | Path, given: Iterable[Given]) -> tuple[Placement, ...]:
    """Frames of a file at their own places in the video, such as a task gives."""
    return tuple(
        Placement(file=Path(file), source=first, first=first, last=last, multipliers=(multiplier,))
        for first, last, multiplier in given
    )


def check_placements(placements: Iterable[Placement], size: ClipSize) -> None:
    """Check everything that can be told without opening a file.

    Raises:
        ValueError: if a position is outside the video, does not fill latent frames, or comes
            before or overlaps with one that is given earlier; if a multiplier is outside [0, 1] or
            their number is not that of the latent frames.
    """
    placements = list(placements)
    for placement in placements:
        first, last = placement.first, placement.last
        if not 1 <= first <= last <= size.frames:
            raise ValueError(
                f"{placement}: expected frames that rise, from 1 to the {size.frames} of the "
                "video, or of a longer one's first window"
            )
        if placement.source == 0:
            raise ValueError(
                f"{placement}: taken from frame 0 of the file, but frames are counted from 1, or "
                "from -1 at the end"
            )
        if first < last:
            start, end = _nearest_span(first, last)
            if (first, last) != (start, end):
                raise ValueError(
                    f"{placement}: a clip must fill whole latent frames, as "
                    f"{_name_span(start, end)} does ({describe_frames(size.frames)})"
                )
        _check_multipliers(f"{placement}", placement.multipliers)
        latents = len(placement.latent_frames)
        if len(placement.multipliers) not in (1, latents):
            raise ValueError(
                f"{placement}: {len(placement.multipliers)} noise multipliers, expected 1 or one "
                f"for each of the {latents} latent frames"
            )
    for before, after in pairwise(placements):
        if after.last < before.first:
            raise ValueError(f"{after} comes after {before}, expected them in order")
        shared = latent_frame(max(before.first, after.first))
        if shared <= latent_frame(before.last):
            raise ValueError(
                f"{before} and {after} overlap in the latent frame that holds "
                f"{_name_span(*pixel_frames(shared))} ({describe_frames(size.frames)})"
            )


def read_conditions(placements: Iterable[Placement], size: ClipSize) -> list[Condition]:
    """Read the given frames; they are resized and cropped as `pusa.data.image.fit_image` does.

    A clip of another frame rate than the model's 16 is taken frame by frame, with a warning.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: as `check_placements`, before any file is opened; or if a file is neither an
            image nor a video, has fewer frames than are taken of it, or is one that
            `pusa.data.image.open_image`, `pusa.data.video.scan_video` or `pusa.data.video.Footage`
            refuses.
    """
    placements = list(placements)
    check_placements(placements, size)
    return _encoded_together([(p, _read_pixels(p, size)) for p in placements])


def make_conditions(
    given: Sequence[Any], size: ClipSize, *, image: Image.Image | None = None
) -> list[Condition]:
    """Conditions of what a person has in memory, or of files.

    Args:
        given: each a `Condition`, frames as `read_frames` takes them, which then are the video's
            first, or a tuple: frames, the place of the first of them in the video, from 1, and, if
            they are not clean, their noise multiplier or one per latent frame.
        image: the first frame, if it is to be there too, clean.

    Raises:
        FileNotFoundError, ValueError: as `read_frames`, `check_placements`, `check_conditions`; it
            names the entry, counted from 0.
    """
    if not isinstance(given, (list, tuple)):
        raise ValueError(
            f"conditions: found a {type(given).__name__}, expected a list of them; image takes a "
            "first frame alone"
        )
    entries = {f"conditions[{number}]": entry for number, entry in enumerate(given)}
    if image is not None:
        entries["image"] = image
    own, placed = [], []
    for name, entry in entries.items():
        if isinstance(entry, Condition):
            own.append(entry)
            continue
        frames, first, noise = _unpack(name, entry)
        images = read_frames(frames, name)
        placement = Placement(
            file=Path(name),
            source=1,
            first=first,
            last=first + len(images) - 1,
            multipliers=tuple(np.atleast_1d(noise).tolist()),
        )
        sides = {"height": size.height, "width": size.width}
        placed.append((placement, np.stack([fit_image(image, **sides) for image in images])))
    placed.sort(key=lambda pair: pair[0].first)
    check_placements([placement for placement, _ in placed], size)
    conditions = [*own, *_encoded_together(placed)]
    check_conditions(conditions, size)
    return conditions


def read_frames(frames: Any, name: str) -> list[Image.Image]:
    """Frames in any form that diffusers takes: upright, RGB, of any size.

    Args:
        frames: a PIL image or the path of one; an array ``([n,] height, width, 3)`` or a tensor
            ``([n,] 3, height, width)``, ``uint8`` or floats in [0, 1]; or a list of these.
        name: what they are called in an error.

    Raises:
        FileNotFoundError, ValueError: if it is none of these.
    """
    if isinstance(frames, list) and frames:
        return [image for frame in frames for image in read_frames(frame, name)]
    if isinstance(frames, (str, Path)):
        return [open_image(frames)]
    if isinstance(frames, Image.Image):
        return [upright_rgb(name, frames)]
    found = f"a {type(frames).__name__}"
    if isinstance(frames, torch.Tensor) and frames.ndim >= 3:
        frames = frames.detach().cpu().movedim(-3, -1)
        frames = (frames.float() if frames.is_floating_point() else frames).numpy()
    if isinstance(frames, np.ndarray):
        found = f"{frames.dtype} {frames.shape}"
        if frames.dtype.kind == "f":
            if not (frames.min() >= 0 and frames.max() <= 1):
                raise ValueError(
                    f"{name}: found values from {frames.min():g} to {frames.max():g}, expected "
                    "0 to 1"
                )
            frames = (255 * frames).round().astype(np.uint8)
        if frames.dtype == np.uint8 and frames.ndim in (3, 4) and frames.shape[-1] == 3:
            return [Image.fromarray(frame) for frame in frames.reshape(-1, *frames.shape[-3:])]
    raise ValueError(
        f"{name}: found {found}, expected PIL images, paths of images, arrays (height, width, 3) "
        "or tensors (3, height, width), uint8 or floats from 0 to 1, or a list of them"
    )


def _encoded_together(placed: Sequence[tuple[Placement, np.ndarray]]) -> list[Condition]:
    """Conditions of placements and their pixels, which are in order."""
    run, conditions = [], []
    for placement, pixels in placed:
        if placement.first == placement.last > 1:
            latent = latent_frame(placement.first)
            conditions.append(Condition(pixels, (latent,), placement.multipliers))
        else:
            run.append((placement, pixels))
    if run:
        pixels = [pixels for _, pixels in run]
        if run[0][0].first > 1:
            pixels.insert(0, pixels[0][:1])
        run_condition = Condition(
            np.concatenate(pixels),
            tuple(latent for p, _ in run for latent in p.latent_frames),
            tuple(m for p, _ in run for m in _multipliers_of(p)),
        )
        conditions.insert(0, run_condition)
    return conditions


def check_conditions(conditions: Iterable[Condition], size: ClipSize) -> None:
    """Check conditions against the video that they are for.

    Raises:
        ValueError: if pixels have another size or type, or not 4k+1 frames; if latent frames are
            outside the video, not rising, given twice, or more than the pixels have; or if a
            multiplier is outside [0, 1] or there is not one per latent frame.
    """
    latents = count_latent_frames(size.frames)
    taken: set[int] = set()
    for condition in conditions:
        places = condition.latent_frames
        name = f"condition at latent frames {', '.join(map(str, places)) or 'none'}"
        pixels = condition.pixels
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (size.height, size.width, 3):
            raise ValueError(
                f"{name}: pixels are {pixels.dtype} {pixels.shape}, expected uint8 (4k+1, "
                f"{size.height}, {size.width}, 3)"
            )
        try:
            encoded = count_latent_frames(len(pixels))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if not 1 <= len(places) <= encoded:
            raise ValueError(
                f"{name}: expected 1 to {encoded} of them, as {len(pixels)} pixel frames have"
            )
        if any(after <= before for before, after in pairwise(places)):
            raise ValueError(f"{name}: expected them to rise")
        if places[0] < 0 or places[-1] >= latents:
            raise ValueError(f"{name}: expected 0 to {latents - 1}, as in {size.frames} frames")
        if shared := taken.intersection(places):
            raise ValueError(f"{name}: latent frame {min(shared)} is given twice")
        taken.update(places)
        _check_multipliers(name, condition.multipliers)
        if len(condition.multipliers) != len(places):
            raise ValueError(
                f"{name}: {len(condition.multipliers)} noise multipliers, expected {len(places)}"
            )


def encode_conditions(
    vae: "AutoencoderKLWan",
    conditions: Sequence[Condition],
    shape: tuple[int, int, int, int],
    *,
    device: torch.device | str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode conditions, each by itself, and put their latents in place.

    Args:
        conditions: that passed `check_conditions`.
        shape: of the video's latents, ``(channels, frames, height, width)``.
        device: where the VAE computes, which an offloaded one does not lie on.

    Returns:
        Normalised latents ``(1, channels, frames, height, width)``, zero where nothing is given,
        and noise multipliers ``(frames,)``, one where nothing is given; float32, on the CPU.
    """
    from pusa.models.load import encode_pixels, frames_to_pixels

    latents = torch.zeros(1, *shape)
    multipliers = torch.ones(shape[1])
    for condition in conditions:
        places = list(condition.latent_frames)
        pixels = frames_to_pixels(condition.pixels[None]).to(device, vae.dtype)
        latents[:, :, places] = encode_pixels(vae, pixels)[:, :, -len(places) :].cpu()
        multipliers[places] = torch.tensor(condition.multipliers)
    return latents, multipliers


def given_frames(placements: Iterable[Placement]) -> list[list[int | float]]:
    """``[first, last, multiplier]`` of what is given, in pixel frames from 1, for metadata.

    A placement with one multiplier per latent frame has an entry for each of these.
    """
    given: list[list[int | float]] = []
    for placement in placements:
        if len(set(placement.multipliers)) == 1:
            given.append([placement.first, placement.last, placement.multipliers[0]])
        else:
            spans = map(pixel_frames, placement.latent_frames)
            given += [[*s, m] for s, m in zip(spans, placement.multipliers, strict=True)]
    return given


def _name_span(first: int, last: int) -> str:
    """``7`` or ``7-9``."""
    return f"{first}" if first == last else f"{first}-{last}"


def _nearest_span(first: int, last: int) -> tuple[int, int]:
    """The frames that fill whole latent frames, with ends nearest to these."""
    starts, ends = zip(*map(pixel_frames, range(latent_frame(last) + 2)), strict=True)
    end = min(ends[: latent_frame(last) + 1], key=lambda frame: (abs(frame - last), -frame))
    start = min(
        (frame for frame in starts if frame <= end),
        key=lambda frame: (abs(frame - first), frame),
    )
    return start, end


def _unpack(name: str, entry: Any) -> tuple[Any, int, Any]:
    """Frames, the place of the first, and their noise multiplier."""
    match entry:
        case (frames, int(first)) if isinstance(entry, tuple):
            return frames, first, 0.0
        case (frames, int(first), noise) if isinstance(entry, tuple):
            return frames, first, noise
        case tuple():
            raise ValueError(
                f"{name}: expected frames, the place of the first of them, from 1, and perhaps a "
                f"noise multiplier, found a tuple of {len(entry)}"
            )
    return entry, 1, 0.0


def _check_multipliers(name: str, multipliers: tuple[float, ...]) -> None:
    for multiplier in multipliers:
        if not 0 <= multiplier <= 1:
            raise ValueError(
                f"{name}: noise multiplier {multiplier:g}, expected 0 (clean) to 1 (noise)"
            )


def _multipliers_of(placement: Placement) -> tuple[float, ...]:
    """One per latent frame."""
    if len(placement.multipliers) > 1:
        return placement.multipliers
    return placement.multipliers * len(placement.latent_frames)


def _read_pixels(placement: Placement, size: ClipSize) -> np.ndarray:
    """``uint8`` ``(frames, height, width, 3)``."""
    file, shape = placement.file, {"height": size.height, "width": size.width}
    count = placement.last - placement.first + 1
    if not file.exists():
        hint = ", and a whole number behind #" if "#" in file.name else ""
        raise FileNotFoundError(f"{file} does not exist; expected an image or a video{hint}")
    if not file.is_file():
        raise ValueError(f"{file} is no file; expected an image or a video")
    if is_image(file):
        if count > 1 or placement.source not in (1, -1):
            raise ValueError(
                f"{placement}: an image is one frame, expected {file}@{placement.first} or a clip"
            )
        return load_image(file, **shape)[None]
    footage = scan_video(file)
    found = len(footage.times)
    start = placement.source if placement.source > 0 else found + 1 + placement.source
    if not 1 <= start <= found:
        raise ValueError(
            f"{placement}: taken from frame {placement.source} of the file, which has {found}"
        )
    if start + count - 1 > found:
        raise ValueError(
            f"{placement}: {count} frames from frame {start} of the file on, which has {found}"
        )
    if is_of_another_rate(footage.rate):
        warnings.warn(
            f"{file} has {float(footage.rate):.4g} frames per second, and the model {FPS}: its "
            "frames are taken one by one, so that it plays at another speed",
            stacklevel=3,
        )
    frames = footage.read_frames(start, count)
    return np.stack([fit_image(Image.fromarray(frame), **shape) for frame in frames])
