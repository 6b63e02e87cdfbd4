"""The size of a clip, in pixels and in latent frames."""

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
