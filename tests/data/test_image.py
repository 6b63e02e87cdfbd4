import os

import numpy as np
import pytest
from PIL import Image

from pusa.data.image import is_image, load_image, open_image


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)


def load(path, side=16):
    return load_image(path, height=side, width=side)


# The rule


def test_image_is_covered_and_cropped_centrally(tmp_path):
    stripes = np.zeros((20, 60, 3), np.uint8)
    stripes[:, 20:40] = (250, 10, 10)
    Image.fromarray(stripes).save(tmp_path / "a.png")
    image = load(tmp_path / "a.png", 40)
    assert image.shape == (40, 40, 3)
    assert image.dtype == np.uint8
    assert (image[:, 2:-2, 0] > 240).all()  # the middle third only


def test_image_of_the_right_size_is_unchanged(tmp_path, noise):
    Image.fromarray(noise).save(tmp_path / "a.png")
    assert np.array_equal(load_image(tmp_path / "a.png", height=16, width=24), noise)


def test_fine_stripes_do_not_flicker(tmp_path):
    """Black and white rows become the grey between, not one of the two."""
    rows = np.zeros((320, 320), np.uint8)
    rows[::2] = 255
    Image.fromarray(rows).save(tmp_path / "a.png")
    assert np.abs(load(tmp_path / "a.png", 32)[1:-1].astype(int) - 128).max() <= 2


@pytest.mark.parametrize("turn", range(1, 9))
def test_rotated_image_is_turned_upright(tmp_path, noise, turn):
    """Each of the eight ways to hold a camera, undone by hand."""
    stored = {
        1: noise,
        2: noise[:, ::-1],
        3: noise[::-1, ::-1],
        4: noise[::-1],
        5: noise.transpose(1, 0, 2),
        6: np.rot90(noise, 1),
        7: noise[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(noise, -1),
    }[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.png")), noise)


# Kinds of pixels


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "RGB"])
def test_pixels_become_rgb(tmp_path, mode):
    grey = np.full((16, 16, 3), 255, np.uint8)
    grey[4:9] = 0
    Image.fromarray(grey).convert(mode).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == mode
    assert np.array_equal(load(tmp_path / "a.png"), grey)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (30_000, 117), (65_535, 255)])
def test_sixteen_bits_keep_their_brightness(tmp_path, value, expected):
    Image.fromarray(np.full((16, 16), value, np.uint16)).save(tmp_path / "a.png")
    assert (load(tmp_path / "a.png") == expected).all()


def test_first_page_is_taken(tmp_path):
    pages = [Image.new("RGB", (16, 16), (n, n, n)) for n in (50, 90)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert is_image(tmp_path / "a.tif")
    assert (load(tmp_path / "a.tif") == 50).all()


# Errors


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", "jpg"), ("CMYK", "tif"), ("F", "tif")])
def test_colours_that_are_not_rgb(tmp_path, mode, suffix):
    Image.new(mode, (16, 16)).save(tmp_path / f"a.{suffix}")
    with pytest.raises(ValueError, match=rf"a\.\w+ has the colour mode {mode}, .*convert it to"):
        load(tmp_path / f"a.{suffix}")


def test_transparent_pixels(tmp_path, noise):
    one = Image.fromarray(noise).convert("RGBA")
    one.putpixel((3, 4), (1, 2, 3, 254))
    one.save(tmp_path / "rgba.png")
    Image.fromarray(noise[..., 0]).convert("LA").save(tmp_path / "opaque.png")
    palette = Image.fromarray(noise).convert("P")
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    for name in ("rgba.png", "palette.png"):
        with pytest.raises(ValueError, match=rf"{name} has transparent pixels, expected none"):
            load(tmp_path / name)
    load(tmp_path / "opaque.png")


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (400, 15), (20_000, 20), (20, 20_000)])
def test_side_of_an_image(tmp_path, size):
    Image.new("1", size).save(tmp_path / "a.png")
    message = rf"a\.png has {size[0]}x{size[1]} pixels, expected 16 to 16,384 on each side"
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "a.png")


def test_size_is_refused_by_the_header(tmp_path):
    """The pixels are not there to be decoded."""
    Image.new("1", (20_000, 20)).save(tmp_path / "a.png")
    os.truncate(tmp_path / "a.png", 44)  # the header, and no pixels
    with pytest.raises(ValueError, match=r"a\.png has 20000x20 pixels"):
        load(tmp_path / "a.png")


def test_too_many_pixels(tmp_path, monkeypatch):
    Image.new("1", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000)
    assert is_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png has too many pixels, expected at most 8,000"):
        load(tmp_path / "a.png")


@pytest.mark.parametrize("content", [b"<html>not found</html>", b""])
def test_not_an_image(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.jpg is not a readable image"):
        load(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_truncated_image(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(file)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ValueError, match=rf"a\.{suffix} is not a readable image"):
        load(file)


def test_missing_image(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image .*a\.jpg does not exist"):
        load(tmp_path / "a.jpg")


# Images and films


def animate(path, frames):
    pictures = [Image.new("RGB", (16, 16), (n, n, n)) for n in (50, 200)][:frames]
    options = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    pictures[0].save(path, **options)


@pytest.mark.parametrize("frames", [1, 2])
def test_gif_may_be_a_film(tmp_path, frames):
    animate(tmp_path / "a.gif", frames)
    assert is_image(tmp_path / "a.gif") == (frames == 1)


@pytest.mark.parametrize("suffix", ["png", "webp", "avif"])
def test_first_picture_of_another_animation_is_taken(tmp_path, suffix):
    animate(tmp_path / f"a.{suffix}", 2)
    assert is_image(tmp_path / f"a.{suffix}")
    assert np.abs(load(tmp_path / f"a.{suffix}").astype(int) - 50).max() <= 2


@pytest.mark.parametrize(("name", "expected"), [("a.HEIC", True), ("a.mp4", False), ("a", False)])
def test_unknown_content_is_known_by_name(tmp_path, name, expected):
    (tmp_path / name).write_bytes(b"unknown")
    assert is_image(tmp_path / name) == expected
