"""The tiny model's world: captioned clips of coloured shapes over textured backgrounds.

A caption names the shape, its colour and motion, the kind of texture and the camera.
Colours, phase, period and angle of the texture, and the shape's place and size, are in the
image only. So following the image can be told from following the text; and as motion and
camera are in the caption, the true continuation of an image is nearly determined.

All rendering is analytic: signed distances in world coordinates, one pixel of smoothing at
every edge.
"""

import colorsys
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np

SIZE = 64  # pixels
FRAMES = 33  # 9 latent frames

COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.72, 0.20),
    "blue": (0.12, 0.28, 0.95),
    "yellow": (0.98, 0.85, 0.10),
    "purple": (0.62, 0.15, 0.80),
    "white": (0.97, 0.97, 0.97),
}
SHAPES = ("circle", "square", "triangle")
TEXTURES = ("stripes", "checks", "dots", "clouds")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = {"slowly": 0.6, "quickly": 1.3}  # pixels per frame
PAN_SPEED = 0.9  # pixels per frame
ZOOM_RATE = 0.015  # log scale per frame
#: VBench-I2V's seven camera motions: view displacement (x, y) and log zoom per frame.
CAMERAS = {
    "camera pans left": (-PAN_SPEED, 0, 0),
    "camera pans right": (PAN_SPEED, 0, 0),
    "camera tilts up": (0, -PAN_SPEED, 0),
    "camera tilts down": (0, PAN_SPEED, 0),
    "camera zooms in": (0, 0, ZOOM_RATE),
    "camera zooms out": (0, 0, -ZOOM_RATE),
    "camera static": (0, 0, 0),
}
VOCABULARY = sorted(
    {"a", "wall", "with", "moves", "stays", "still", "over", "camera", ","}
    | {"pans", "tilts", "zooms", "in", "out", "static"}
    | {*COLOURS, *SHAPES, *TEXTURES, *DIRECTIONS, *SPEEDS}
)


@dataclass(frozen=True)
class Scene:
    """Everything that decides a clip. A scene without a shape shows the texture alone."""

    texture: str
    tones: tuple[tuple[float, float, float], tuple[float, float, float]]  # RGB in [0, 1]
    period: float  # pixels
    angle: float  # radians
    phase: tuple[float, float]
    camera: str  # key of CAMERAS
    shape: str | None = None
    colour: str | None = None
    motion: tuple[str, str] | None = None  # (speed, direction); None stays still
    start: tuple[float, float] = (0.0, 0.0)  # pixels from the centre, first frame
    radius: float = 0.0  # pixels

    @property
    def caption(self) -> str:
        """For example ``a red circle moves slowly left over stripes, camera static``."""
        if self.shape is None:
            subject = f"a wall with {self.texture}"
        else:
            action = f"moves {' '.join(self.motion)}" if self.motion else "stays still"
            subject = f"a {self.colour} {self.shape} {action} over {self.texture}"
        return f"{subject}, {self.camera}"


def sample_scene(
    rng: np.random.Generator,
    *,
    camera: str | None = None,
    with_shape: bool | None = None,
    moving: bool | None = None,
) -> Scene:
    """Draw a scene. Half of those with a shape have a moving camera; a tenth have no shape.

    Each of ``camera``, ``with_shape`` and ``moving`` (the shape's own motion) may be fixed.
    """
    if with_shape is None:
        with_shape = rng.random() > 0.1
    if camera is None:
        static = with_shape and rng.random() < 0.5
        camera = "camera static" if static else str(rng.choice(list(CAMERAS)[:-1]))
    background = {
        "texture": str(rng.choice(TEXTURES)),
        "tones": _muted_tones(rng),
        "period": rng.uniform(18, 32),
        "angle": rng.uniform(0, np.pi),
        "phase": tuple(rng.uniform(0, 2 * np.pi, 2)),
        "camera": camera,
    }
    if not with_shape:
        return Scene(**background)
    while True:
        motion = None
        share = 0.9 if camera == "camera static" else 0.4
        if rng.random() < share if moving is None else moving:
            motion = (str(rng.choice(list(SPEEDS))), str(rng.choice(list(DIRECTIONS))))
        scene = Scene(
            **background,
            shape=str(rng.choice(SHAPES)),
            colour=str(rng.choice(list(COLOURS))),
            motion=motion,
            start=tuple(rng.uniform(-24, 24, 2)),
            radius=rng.uniform(9, 13),
        )
        # The whole shape stays in view, so that a caption is true for the whole clip.
        x, y, zoom = _shape_on_screen(scene, FRAMES)
        if max(np.abs(x).max(), np.abs(y).max()) + scene.radius * zoom.max() < SIZE / 2 + 1:
            return scene


def is_held_out(caption: str) -> bool:
    """Whether the base is not trained on a caption: an eighth of them all, by its digest."""
    return sha256(caption.encode()).digest()[0] % 8 == 0


def held_out_scene(rng: np.random.Generator, held_out: bool) -> Scene:
    """Draw a scene whose caption is held out from the base's training, or is not."""
    while True:
        scene = sample_scene(rng)
        if is_held_out(scene.caption) == held_out:
            return scene


def sample_still_scene(rng: np.random.Generator) -> Scene:
    """A resting shape in the middle, which stays in view under each of the seven cameras."""
    scene = sample_scene(rng, camera="camera static", with_shape=True)
    return replace(scene, motion=None, start=(0.0, 0.0), radius=9.0)


def render(scene: Scene, frames: int = FRAMES, size: int = SIZE) -> np.ndarray:
    """Render ``(frames, size, size, 3)`` in ``uint8``."""
    centre_x, centre_y, zoom = camera_path(scene.camera, frames)
    axis = (np.arange(size) + 0.5 - size / 2) * (SIZE / size)
    pixel = (SIZE / size) / zoom[:, None, None]  # world size of a pixel, for smoothing
    x = centre_x[:, None, None] + axis[None, None, :] / zoom[:, None, None]
    y = centre_y[:, None, None] + axis[None, :, None] / zoom[:, None, None]

    dark, light = (np.array(tone) for tone in scene.tones)
    mask = texture_mask(scene.texture, scene.period, scene.angle, scene.phase, x, y, pixel)[
        ..., None
    ]
    image = dark + (light - dark) * mask
    if scene.shape is not None:
        dx, dy = velocity(scene.motion)
        time = np.arange(frames)[:, None, None]
        distance = signed_distance(
            scene.shape,
            x - scene.start[0] - dx * time,
            y - scene.start[1] - dy * time,
            scene.radius,
        )
        inside = np.clip(0.5 - distance / pixel, 0, 1)[..., None]
        image = image + (np.array(COLOURS[scene.colour]) - image) * inside
    return np.round(image * 255).astype(np.uint8)


def _muted_tones(rng: np.random.Generator):
    """Two tones of low saturation, so that shapes stand out and the image alone fixes them."""
    hue = rng.random()
    value = rng.uniform(0.30, 0.55)
    step = rng.uniform(0.12, 0.25)
    other = (hue + rng.uniform(-0.25, 0.25)) % 1.0
    return (
        colorsys.hsv_to_rgb(hue, rng.uniform(0.15, 0.5), value - step / 2),
        colorsys.hsv_to_rgb(other, rng.uniform(0.15, 0.5), value + step),
    )


def velocity(motion: tuple[str, str] | None) -> tuple[float, float]:
    """Pixels of the world per frame."""
    if motion is None:
        return (0.0, 0.0)
    speed, direction = motion
    dx, dy = DIRECTIONS[direction]
    return (dx * SPEEDS[speed], dy * SPEEDS[speed])


def camera_path(camera: str, frames: int):
    """World position of the view's centre and its zoom factor, each of shape ``(frames,)``."""
    pan_x, pan_y, log_zoom = CAMERAS[camera]
    time = np.arange(frames)
    return pan_x * time, pan_y * time, np.exp(log_zoom * time)


def _shape_on_screen(scene: Scene, frames: int):
    centre_x, centre_y, zoom = camera_path(scene.camera, frames)
    dx, dy = velocity(scene.motion)
    time = np.arange(frames)
    x = (scene.start[0] + dx * time - centre_x) * zoom
    y = (scene.start[1] + dy * time - centre_y) * zoom
    return x, y, zoom


def texture_mask(texture: str, period, angle, phase, x, y, pixel):
    """Share of the light tone at each point, in [0, 1]; arguments as of `Scene`."""
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = cos * x + sin * y, cos * y - sin * x
    rate = 2 * np.pi / period
    wave_u, wave_v = np.sin(rate * u + phase[0]), np.sin(rate * v + phase[1])
    if texture == "clouds":
        # A few incommensurate waves: smooth, and never quite repeating.
        waves = wave_u + wave_v + np.sin(0.62 * rate * (u + v) + phase[0] * 3)
        return 0.5 + waves / 6
    if texture == "stripes":
        edge = wave_u
    elif texture == "checks":
        edge = wave_u * wave_v
    else:  # dots
        edge = (wave_u + wave_v - 1.0) / 1.4
    # Near its zeros `edge` changes by about `rate` per pixel, which makes this a distance.
    return np.clip(0.5 + edge / (rate * pixel), 0, 1)


def signed_distance(shape: str, x, y, radius):
    """Distance to the outline in world pixels, negative inside. Areas are alike in size."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.88 * radius
    # An upright equilateral triangle about its centroid.
    slant = np.abs(x) * np.sqrt(3) / 2 - y / 2
    return np.maximum(slant, y) - 0.62 * radius
