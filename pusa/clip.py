"""The size of a clip, in pixels and in latent frames, and which clips are held out."""

from collections.abc import Sequence
from typing import Protocol


class ClipSize(Protocol):
    """Settings that tell a clip's pixel frames, of the form 4k+1, and its sides in pixels."""

    frames: int
    height: int
    width: int


def count_latent_frames(frames: int) -> int:
    """Latent frames of a clip of ``frames`` pixel frames: the first alone, then four by four.

    Raises:
        ValueError: unless ``frames`` is of the form 4k+1.
    """
    if frames < 1 or frames % 4 != 1:
        below = max(1, (frames - 1) // 4 * 4 + 1)
        raise ValueError(
            f"the number of frames must be of the form 4k+1, found {frames}; "
            f"{below} and {below + 4} are the nearest"
        )
    return (frames - 1) // 4 + 1


def split_clips(captions: Sequence[str], held_out: int) -> tuple[list[int], list[int]]:
    """The clips to train on, and the last ``held_out``, which training never sees.

    Nor does it see others with a caption of theirs, which show much the same: they are in neither.
    """
    first = max(len(captions) - held_out, 0)
    kept = set(captions[first:])
    trained = [i for i in range(first) if captions[i] not in kept]
    return trained, [*range(first, len(captions))]
