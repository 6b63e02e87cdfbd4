"""Reading image files (Pillow), and the one rule by which pictures are resized and cropped."""

from mimetypes import guess_type
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

#: Pixels of a side. Less holds no content, more is likely a mistake, or an attack.
SMALLEST_SIDE, LARGEST_SIDE = 16, 16_384


def load_image(path: str | Path, *, height: int, width: int) -> np.ndarray:
    """Read an image as `fit_image` makes it.

    Raises:
        FileNotFoundError, ValueError: as `open_image`.
    """
    return fit_image(open_image(path), height=height, width=width)


def fit_image(image: Image.Image, *, height: int, width: int) -> np.ndarray:
    """Scale so that the target is just covered (bicubic, antialiased), and crop the middle.

    Returns:
        ``uint8`` ``(height, width, 3)``.
    """
    return np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))


def open_image(path: str | Path) -> Image.Image:
    """Read an image completely, so that a truncated one is found out: upright, RGB, 8 bits.

    Grey and palette images and 16 bits per channel are converted. Of a file with several pages
    the first is taken.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is no image or a truncated one; if a side has fewer than 16 or more than
            16,384 pixels, which is found before it is decoded; if it has transparent pixels; or
            if its colours are not RGB, grey or a palette.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"image {path} does not exist")
    try:
        with Image.open(path) as image:
            check_sides(path, *image.size)
            return upright_rgb(path, image)
    except Image.DecompressionBombError:
        raise ValueError(
            f"{path} has too many pixels, expected at most {2 * Image.MAX_IMAGE_PIXELS:,}"
        ) from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} is not a readable image ({error})") from None


def is_image(path: str | Path) -> bool:
    """Whether a file is a still image; a damaged one is known by its name.

    A GIF may be a film. Of other files with several pages the first is a still image.
    """
    try:
        with Image.open(path) as image:
            film = image.format == "MPEG" or (image.format == "GIF" and image.is_animated)
            return not film
    except Image.DecompressionBombError:
        return True
    except (UnidentifiedImageError, OSError, SyntaxError):
        kind, _ = guess_type(Path(path).name)
        return bool(kind) and kind.startswith("image/")


def check_sides(path: str | Path, width: int, height: int) -> None:
    """Check the size of an image's or a video's pictures.

    Raises:
        ValueError: if a side has fewer than 16 or more than 16,384 pixels.
    """
    if min(width, height) < SMALLEST_SIDE or max(width, height) > LARGEST_SIDE:
        raise ValueError(
            f"{path} has {width}x{height} pixels, expected {SMALLEST_SIDE} to {LARGEST_SIDE:,} "
            "on each side"
        )


def upright_rgb(name: str | Path, image: Image.Image) -> Image.Image:
    """Turn an image upright and convert it to RGB, 8 bits.

    Raises:
        ValueError: if it has transparent pixels, or its colours are not RGB, grey or a palette.
    """
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        if image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
            raise ValueError(
                f"{name} has transparent pixels, expected none; flatten it onto a background"
            )
    elif image.mode.startswith("I;16"):
        # Pillow itself would cut off what lies above 255.
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode not in ("1", "L", "P", "RGB", "LA", "PA", "RGBA", "YCbCr"):
        raise ValueError(
            f"{name} has the colour mode {image.mode}, expected RGB, grey or a palette; convert "
            "it to RGB"
        )
    return image.convert("RGB")
