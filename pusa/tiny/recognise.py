"""Which scene of the tiny world a clip shows, found by trying them: analysis by synthesis.

The world has few cameras, motions, shapes, colours and kinds of texture, so that each can be
tried on a clip, and what explains its pixels best is what it shows. Nothing is known of the
caption. Frames are floats in [0, 1], ``(frames, height, width, 3)``; a mask, ``(frames, height,
width)``, says how much of each pixel is the shape's.
"""

from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
from scipy.optimize import minimize

from pusa.tiny import world

NEAR = 0.22  # distance of RGB under which a pixel has a shape's colour
SMALLEST = 30  # pixels of a shape
STRIDE = 4  # frames between two that are compared
MARGIN = 3  # pixels around a shape that tell nothing of the texture
SAMPLES = 1000  # pixels that tell the texture
MOTIONS = (None, *product(world.SPEEDS, world.DIRECTIONS))
ANGLES = np.linspace(0, np.pi, 60, endpoint=False)
PERIODS = np.arange(17.0, 34.0)
RADII = np.arange(6.0, 16.0, 0.5)


@dataclass(frozen=True)
class Found:
    """What a clip shows, in a caption's words; without a shape there is no colour, no motion."""

    texture: str
    camera: str
    shape: str | None = None
    colour: str | None = None
    motion: tuple[str, str] | None = None


def recognise(clip: np.ndarray) -> Found:
    """The scene that explains a clip best.

    Args:
        clip: ``uint8`` ``(frames, 64, 64, 3)``.
    """
    frames = clip.astype(np.float32) / 255
    colour, mask = _find_colour(frames)
    camera, motion = _find_motion(frames, mask)
    texture = _find_texture(frames, mask, camera)
    if colour is None:
        return Found(texture=texture, camera=camera)
    shape = _find_shape(mask, camera, motion)
    return Found(texture=texture, camera=camera, shape=shape, colour=colour, motion=motion)


def _find_colour(frames: np.ndarray) -> tuple[str | None, np.ndarray]:
    """The shape's colour, None if there is no shape, and its mask."""
    distances = {
        c: np.linalg.norm(frames - np.float32(rgb), axis=-1) for c, rgb in world.COLOURS.items()
    }
    counts = {c: np.median((d < NEAR).sum((1, 2))) for c, d in distances.items()}
    colour = max(counts, key=counts.get)
    if counts[colour] < SMALLEST:
        return None, np.zeros(frames.shape[:3], np.float32)
    distance = distances[colour]
    ground = np.quantile(distance[distance > NEAR], 0.1)
    # A pixel at the edge is a mixture of shape and ground.
    return colour, np.clip(1 - distance / ground, 0, 1).astype(np.float32)


def _find_motion(frames: np.ndarray, mask: np.ndarray) -> tuple[str, tuple[str, str] | None]:
    """Camera and motion by which frames are best foretold from later ones.

    The ground rests in the world; the shape moves in it, and is not looked at if there is none.
    """
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 1.0) for frame in frames])
    hidden = np.stack([cv2.dilate(m, np.ones((2 * MARGIN + 1,) * 2)) for m in mask])
    pairs = [(first, first + STRIDE) for first in range(0, len(frames) - STRIDE, STRIDE)]
    errors = {}
    for camera in world.CAMERAS:
        squares = pixels = 0.0
        for first, later in pairs:
            place = _place_later(camera, None, first, later)
            free = (1 - hidden[first]) * _moved(1 - hidden[later], place) > 0.9
            squares += ((_moved(blurred[later], place) - blurred[first])[free] ** 2).sum()
            pixels += free.sum()
        ground = squares / max(pixels, 1) * mask[0].size
        for motion in MOTIONS if mask.any() else (None,):
            shape = [
                (
                    (_moved(mask[later], _place_later(camera, motion, first, later)) - mask[first])
                    ** 2
                ).sum()
                for first, later in pairs
            ]
            errors[camera, motion] = ground + np.mean(shape)
    return min(errors, key=errors.get)


def _place_later(camera: str, motion, first: int, later: int) -> np.ndarray:
    """The affine map from where something is on one frame's screen to where it is on another's."""
    x, y, zoom = world.camera_path(camera, later + 1)
    velocity = np.array(world.velocity(motion)) * (later - first)
    scale = zoom[later] / zoom[first]
    shift = (velocity - [x[later] - x[first], y[later] - y[first]]) * zoom[later]
    middle = (world.SIZE - 1) / 2
    return np.array(
        [
            [scale, 0, middle - scale * middle + shift[0]],
            [0, scale, middle - scale * middle + shift[1]],
        ]
    )


def _moved(image: np.ndarray, place: np.ndarray) -> np.ndarray:
    """An image as it is at the places of another frame; zero out of view."""
    return cv2.warpAffine(
        image, place, image.shape[1::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )


def _find_shape(mask: np.ndarray, camera: str, motion) -> str:
    """The outline that the mask has on average, seen from the shape."""
    first = [_moved(m, _place_later(camera, motion, 0, t)) for t, m in enumerate(mask)]
    seen = [_moved(np.ones_like(m), _place_later(camera, motion, 0, t)) for t, m in enumerate(mask)]
    average = np.sum(first, axis=0) / np.maximum(np.sum(seen, axis=0), 1)
    axis = np.arange(world.SIZE) + 0.5 - world.SIZE / 2
    total = average.sum()
    centre = (average.sum(0) @ axis / total, average.sum(1) @ axis / total)

    def error(place, shape: str) -> float:
        x, y, radius = place
        distance = world.signed_distance(shape, axis[None, :] - x, axis[:, None] - y, radius)
        return ((np.clip(0.5 - distance, 0, 1) - average) ** 2).sum()

    errors = {}
    for shape in world.SHAPES:
        start = min(((*centre, r) for r in RADII), key=lambda place: error(place, shape))
        errors[shape] = minimize(error, start, args=(shape,), method="Nelder-Mead").fun
    return min(errors, key=errors.get)


def _find_texture(frames: np.ndarray, mask: np.ndarray, camera: str) -> str:
    """The kind of texture that explains the ground with two tones."""
    x, y, values = _ground_points(frames, mask, camera)
    errors = {}
    for kind in world.TEXTURES:
        guesses = _guesses(kind, x, y, values)
        guesses.sort(key=lambda place: _texture_error(place, kind, x, y, values))
        fits = [_refine(guess, kind, x, y, values) for guess in guesses[:3]]
        errors[kind] = min(fits)
    return min(errors, key=errors.get)


def _refine(place, kind: str, x, y, values) -> float:
    simplex = np.array(place) + np.vstack([np.zeros(4), np.diag([0.7, 0.04, 0.4, 0.4])])
    options = {"initial_simplex": simplex, "maxfev": 250}
    return minimize(
        _texture_error, place, args=(kind, x, y, values), method="Nelder-Mead", options=options
    ).fun


def _ground_points(frames: np.ndarray, mask: np.ndarray, camera: str):
    """Points of the ground in the world, and their brightness along the line of the two tones."""
    centre_x, centre_y, zoom = world.camera_path(camera, len(frames))
    axis = np.arange(world.SIZE) + 0.5 - world.SIZE / 2
    free = np.stack([cv2.dilate(m, np.ones((2 * MARGIN + 1,) * 2)) for m in mask]) < 0.1
    t, row, column = np.nonzero(free)
    chosen = np.random.default_rng(0).choice(len(t), min(SAMPLES, len(t)), replace=False)
    t, row, column = t[chosen], row[chosen], column[chosen]
    rgb = frames[t, row, column]
    rgb = rgb - rgb.mean(0)
    values = rgb @ np.linalg.svd(rgb, full_matrices=False)[2][0]
    x = centre_x[t] + axis[column] / zoom[t]
    y = centre_y[t] + axis[row] / zoom[t]
    return x, y, values


def _guesses(kind: str, x, y, values) -> list[tuple[float, float, float, float]]:
    """Period, angle and phases of the waves that are strongest in what is seen."""
    period, angle = (grid.ravel() for grid in np.meshgrid(PERIODS, ANGLES))
    rate = 2 * np.pi / period[:, None]
    u = np.cos(angle)[:, None] * x + np.sin(angle)[:, None] * y
    v = np.cos(angle)[:, None] * y - np.sin(angle)[:, None] * x

    def wave(phase) -> np.ndarray:
        return np.exp(-1j * rate * phase) @ values

    if kind == "checks":  # sin(u) sin(v) = (cos(u - v) - cos(u + v)) / 2
        difference, total = wave(u - v), -wave(u + v)
        strength = abs(difference) + abs(total)
        minus, plus = np.angle(difference), np.angle(total)
        phases = (plus + minus) / 2, (plus - minus) / 2
    else:
        first, second = wave(u), wave(v)
        strength = abs(first) + (0 if kind == "stripes" else abs(second))
        phases = np.angle(first) + np.pi / 2, np.angle(second) + np.pi / 2
    best = np.argsort(-strength)[:20]
    found = []
    for i in best:
        # The sign of what is seen is not known: light may be dark.
        for turn in (0, np.pi):
            shift = (turn, turn) if kind != "checks" else (turn, 0)
            found.append((period[i], angle[i], phases[0][i] + shift[0], phases[1][i] + shift[1]))
    return found


def _texture_error(place, kind: str, x, y, values) -> float:
    """What is left of the brightness when the texture's two tones are fitted to it."""
    period, angle, *phase = place
    if not 16 < period < 35:
        return np.inf
    mask = world.texture_mask(kind, period, angle, phase, x, y, 1.0)
    mask = mask - mask.mean()
    power = mask @ mask
    return values @ values - ((mask @ values) ** 2 / power if power else 0)
