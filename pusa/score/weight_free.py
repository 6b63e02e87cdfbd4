"""Weight-free stand-ins for VBench-I2V's nine dimensions, from classical vision.

Nothing here downloads a network, so that the whole workflow runs anywhere; and nothing here
is a VBench score. Each measure asks its dimension's question with optical flow (OpenCV's
DIS), colour and edge statistics, and structural similarity, and answers in [0, 1].

For suites that have ``reference/`` clips, three more measures compare with the true
continuation of an image: ``reference_psnr`` (dB), ``motion_match`` (0 or 1) and
``motion_explained`` (0 to 1), which a picture that stands still has none of.
"""

from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from skimage.feature import hog
from skimage.measure import blur_effect
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tqdm import tqdm

from pusa.config import Size
from pusa.data.image import load_image
from pusa.data.manifest import check_manifest
from pusa.data.suite import SuitePrompt, check_motions
from pusa.data.video import check_clip, check_samples, read_clip, read_video
from pusa.digests import digest_file
from pusa.records import describe_device
from pusa.score.files import COLUMNS, MAX_PSNR

cv2.setNumThreads(1)  # the one core that a scoring job asks for; more are slower on small images

MATCH_SIDE = 64  # pixels; images are reduced to it before patches are sought
PATCH_BLUR = 1.0  # pixels; a shift by part of a pixel then costs little
PATCH_TOLERANCE = 0.01  # mean squared difference of pixels in [0, 1]
FLOW_FRAMES = 4  # between two that motion is measured from: noise does not add up, motion does
#: Mean squared error (pixels in [0, 1]) under which a clip is its true continuation: 30 dB.
EXPLAINED = 0.001
#: Speed, as a share of the image's side per frame, under which nothing counts as moving.
STILL = 0.003
#: Way of the camera over a whole clip, as a share of the image's side, under which it is static.
CAMERA_STILL = 0.015
KEY_SHIFT = 0.03  # share of the image's side that the picture moves before a new key frame
NOISE_TOLERANCE = 10.0  # standard deviation in grey levels, 0 to 255
PACKAGES = ("numpy", "opencv-python-headless", "scikit-image")


def measure_videos(
    prompts: list[SuitePrompt],
    videos: pd.DataFrame,
    folder: str | Path,
    *,
    size: Size,
    references: str | Path | None = None,
) -> tuple[pd.DataFrame, dict]:
    """Measure every video of a manifest on its prompt's dimensions.

    Args:
        prompts: the suite.
        videos: the manifest, ``file, index, prompt, sample``.
        references: folder of ``<index>.mp4``, the true continuations, if there are any.

    Returns:
        One row per video and measure, with the columns of `pusa.score.files.COLUMNS`, and the
        record for `pusa.score.files.write_scores`.

    Raises:
        FileNotFoundError: if a video is missing.
        ValueError: if a video is unreadable or of another length, size or frame rate, a reference
            is unreadable, shorter or smaller, or a prompt is not of the suite or names no camera
            motion.
    """
    by_index = {p.index: p for p in prompts}
    _check_inputs(by_index, videos, folder, size, references)
    rows = []
    for row in tqdm(videos.to_dict("records"), desc="Scoring", unit="video", mininterval=2):
        prompt = by_index[row["index"]]
        file = Path(folder) / row["file"]
        clip = read_video(file)
        features = ClipFeatures(
            clip, load_image(prompt.image, height=size.height, width=size.width)
        )
        values = {name: MEASURES[name](features) for name in prompt.dimensions if name in MEASURES}
        if "camera_motion" in prompt.dimensions:
            values["camera_motion"] = classify_camera(clip) == prompt.camera_motion
        if references is not None:
            truth = read_clip(Path(references) / prompt.reference_name, **size.model_dump())
            values["reference_psnr"] = reference_psnr(clip, truth)
            values["motion_match"] = motion_match(features.flow, optical_flow(truth))
            values["motion_explained"] = motion_explained(clip, truth, features.image)
        video = (row["file"], digest_file(file), prompt.index, row["sample"], prompt.kind)
        rows += [
            (*video, name, float(value), len(clip), "weight_free") for name, value in values.items()
        ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    record = {
        "scorer": "weight_free",
        "dimensions": sorted(table["dimension"].unique()),
        "device": describe_device("cpu"),
        "packages": {name: version(name) for name in PACKAGES},
    }
    return table, record


def _check_inputs(by_index, videos, folder, size: Size, references) -> None:
    check_manifest(list(by_index.values()), videos)
    wanted = [by_index[index] for index in videos["index"].unique()]
    check_motions(wanted)
    check_samples((Path(folder) / file for file in videos["file"]), **size.model_dump())
    if references is not None:
        for prompt in wanted:
            check_clip(Path(references) / prompt.reference_name, **size.model_dump())


class ClipFeatures:
    """What several measures share, computed once per clip."""

    def __init__(self, clip: np.ndarray, image: np.ndarray):
        self.clip = clip  # uint8 (frames, height, width, 3)
        self.image = image  # uint8 (height, width, 3)

    @cached_property
    def flow(self) -> np.ndarray:
        """Flow per frame."""
        return optical_flow(self.clip)

    @cached_property
    def looks(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The appearance of every frame."""
        return [appearance(frame) for frame in self.clip]


def optical_flow(clip: np.ndarray) -> np.ndarray:
    """Dense flow in pixels per frame, from every `FLOW_FRAMES`-th frame to the next such.

    Returns:
        ``((frames - 1) // FLOW_FRAMES, height, width, 2)``; one flow at least.
    """
    apart = min(FLOW_FRAMES, len(clip) - 1)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip[::apart]]
    # To the last pixel: half the resolution, as is the default, loses what is small and slow.
    return np.stack([_flow(a, b, finest_scale=0) for a, b in pairwise(grey)]) / apart


def _flow(a: np.ndarray, b: np.ndarray, finest_scale: int = 1) -> np.ndarray:
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    estimator.setFinestScale(finest_scale)
    return estimator.calc(a, b, None)


def appearance(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour histogram and edge-orientation histogram: what is shown, wherever it is."""
    lab = cv2.cvtColor(frame, cv2.COLOR_RGB2LAB)
    # Coarse in lightness and fine in hue; smoothed, so that a shade more is not another colour.
    colours = cv2.calcHist([lab], [0, 1, 2], None, [8, 12, 12], [0, 256] * 3)
    colours = cv2.GaussianBlur(colours.reshape(8, 144), (3, 3), 0)
    colours = colours / colours.sum()
    side = min(frame.shape[:2])
    edges = hog(frame, orientations=9, pixels_per_cell=(side // 4,) * 2, cells_per_block=(1, 1),
                channel_axis=-1)  # fmt: skip
    return colours, edges


def similarity(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """Mean of histogram intersection (colour) and cosine (edges), each in [0, 1]."""
    colour = np.minimum(a[0], b[0]).sum()
    norm = np.linalg.norm(a[1]) * np.linalg.norm(b[1])
    edge = a[1] @ b[1] / norm if norm > 0 else float(a[1].any() == b[1].any())
    return float(colour + edge) / 2


def aligned_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of ``a`` and ``b`` after ``b`` has been moved onto ``a`` by flow.

    What motion explains is forgiven; what appeared, vanished or changed is not.
    """
    flow = _flow(cv2.cvtColor(a, cv2.COLOR_RGB2GRAY), cv2.cvtColor(b, cv2.COLOR_RGB2GRAY))
    moved = _warp(b, flow)
    return max(0.0, float(structural_similarity(a, moved, channel_axis=-1, data_range=255)))


def _warp(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    height, width = flow.shape[:2]
    columns, rows = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    )
    return cv2.remap(image, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR,
                     borderMode=cv2.BORDER_REPLICATE)  # fmt: skip


def found_again(image: np.ndarray, frame: np.ndarray) -> float:
    """How much of an image is found in a frame, wherever it has moved to, in [0, 1].

    The image is cut into 4x4 patches; each is sought over the whole frame, and counts by the
    mean squared difference (pixels in [0, 1]) of the place where it fits best: 1 for none,
    1/e for `PATCH_TOLERANCE`.
    """
    scale = min(1.0, MATCH_SIDE / min(image.shape[:2]))
    image, frame = (_coarse(i, scale) for i in (image, frame))
    height, width = image.shape[0] // 4, image.shape[1] // 4
    found = []
    for row in range(4):
        for column in range(4):
            patch = image[row * height : (row + 1) * height, column * width : (column + 1) * width]
            best = cv2.matchTemplate(frame, patch, cv2.TM_SQDIFF).min()
            found.append(np.exp(-max(0.0, best) / patch.size / 255**2 / PATCH_TOLERANCE))
    return float(np.mean(found))


def _coarse(image: np.ndarray, scale: float) -> np.ndarray:
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small, (0, 0), PATCH_BLUR).astype(np.float32)


def image_shown(f: ClipFeatures) -> float:
    """How much of the image each later frame shows."""
    return float(np.mean([found_again(f.image, frame) for frame in f.clip[1:]]))


def subject_consistency(f: ClipFeatures) -> float:
    """Each frame's likeness to the first and to the one before."""
    first = f.looks[0]
    return float(
        np.mean([(similarity(first, b) + similarity(a, b)) / 2 for a, b in pairwise(f.looks)])
    )


def background_consistency(f: ClipFeatures) -> float:
    """How well each frame can be laid over the first and over the one before."""
    return float(
        np.mean(
            [
                (aligned_similarity(f.clip[0], b) + aligned_similarity(a, b)) / 2
                for a, b in pairwise(f.clip)
            ]
        )
    )


def motion_smoothness(f: ClipFeatures) -> float:
    """How well each frame is predicted by the mean of its neighbours, moved half-way."""
    errors = []
    for before, middle, after in zip(f.clip, f.clip[1:], f.clip[2:], strict=False):
        flow = _flow(
            cv2.cvtColor(before, cv2.COLOR_RGB2GRAY), cv2.cvtColor(after, cv2.COLOR_RGB2GRAY)
        )
        # A point half-way came from p - flow/2 and goes to p + flow/2.
        guess = (_warp(before, -flow / 2).astype(float) + _warp(after, flow / 2)) / 2
        errors.append(np.abs(guess - middle).mean() / 255)
    return 1 - float(np.mean(errors))


def dynamic_degree(f: ClipFeatures) -> float:
    """1 if the fastest twentieth of the pixels moves in at least a quarter of the frames."""
    speed = np.linalg.norm(f.flow, axis=-1).reshape(len(f.flow), -1)
    count = max(1, speed.shape[1] // 20)
    fastest = np.sort(speed, axis=1)[:, -count:].mean(axis=1)
    threshold = 0.006 * min(f.clip.shape[1:3])
    return float((fastest > threshold).mean() >= 0.25)


def aesthetic_quality(f: ClipFeatures) -> float:
    """Colourfulness (Hasler and Suesstrunk, 2003) and contrast, which people like, squashed."""
    scores = []
    for frame in f.clip.astype(float):
        red, green, blue = frame[..., 0], frame[..., 1], frame[..., 2]
        rg, yb = red - green, (red + green) / 2 - blue
        colour = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
        contrast = frame.mean(-1).std()
        scores.append((np.tanh(colour / 60) + np.tanh(contrast / 50)) / 2)
    return float(np.mean(scores))


def imaging_quality(f: ClipFeatures) -> float:
    """Sharpness, less noise: neither a blurred nor a noisy frame is a good one.

    Sharpness is one minus the no-reference blur measure of Crete and others, 2007, of the
    median-filtered frame, since noise would pass for detail. Noise of standard deviation
    `NOISE_TOLERANCE` divides it by e.
    """
    return float(np.mean([_sharpness(x) * np.exp(-_noise(x) / NOISE_TOLERANCE) for x in f.clip]))


def _sharpness(frame: np.ndarray) -> float:
    blur = blur_effect(cv2.medianBlur(frame, 3), channel_axis=-1)
    return 1 - float(np.nan_to_num(blur, nan=1.0))  # one colour has no edge to be sharp


def _noise(frame: np.ndarray) -> float:
    """Standard deviation of the noise, grey levels (Immerkaer, 1996, eq. 3 to 5).

    His estimate takes fine texture for noise, so it is made in 9x9 neighbourhoods, of which
    the quietest fiftieth counts.
    """
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    sigma = np.sqrt(np.pi / 2) / 6 * np.abs(cv2.filter2D(grey, -1, mask))
    return max(0.0, float(np.quantile(cv2.blur(sigma, (9, 9)), 0.02)))


MEASURES: dict[str, Callable[[ClipFeatures], float]] = {
    "i2v_subject": image_shown,
    "i2v_background": image_shown,
    "subject_consistency": subject_consistency,
    "background_consistency": background_consistency,
    "motion_smoothness": motion_smoothness,
    "dynamic_degree": dynamic_degree,
    "aesthetic_quality": aesthetic_quality,
    "imaging_quality": imaging_quality,
}


def classify_camera(clip: np.ndarray) -> str:
    """Name the camera motion of a clip from a zoom-and-shift fit to the tracks of a grid.

    As in VBench-I2V, what counts is how far the points have gone over the whole clip, so that
    a slow motion is seen and a trembling is not. A camera that pans left makes the picture
    move right. The fit is robust (RANSAC), so that a moving subject does not count.

    Args:
        clip: ``uint8`` ``(frames, height, width, 3)``.

    Returns:
        One of `pusa.data.suite.CAMERA_MOTIONS`; of several the one that shifts the picture most.
    """
    height, width = clip.shape[1:3]
    side = min(height, width)
    points, moved = _track_grid(clip)
    matrix, _ = cv2.estimateAffinePartial2D(points, moved, method=cv2.RANSAC,
                                            ransacReprojThreshold=0.01 * side)  # fmt: skip
    if matrix is None:
        return "static"
    centre = np.array([(width - 1) / 2, (height - 1) / 2, 1.0])
    shift_x, shift_y = matrix @ centre - centre[:2]
    zoom = (np.hypot(matrix[0, 0], matrix[1, 0]) - 1) * side / 2  # pixels at the border
    strongest = max((shift_x, shift_y, zoom), key=abs)
    if abs(strongest) < CAMERA_STILL * side:
        return "static"
    if strongest == zoom:
        return "zooms in" if zoom > 0 else "zooms out"
    if strongest == shift_x:
        return "pans left" if shift_x > 0 else "pans right"
    return "tilts up" if shift_y > 0 else "tilts down"


def _track_grid(clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Follow a grid's points until the clip ends or half of them have left the picture.

    Flow is measured from a key frame, which is replaced only when the picture has moved on: so
    errors add up with the motion, and not with the number of frames.

    Returns:
        Places in the first and in the last frame, pixels (x, y), each ``(points, 2)``.
    """
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
    height, width = grey[0].shape
    side = min(height, width)
    step = max(1, side // 32)
    grid = np.mgrid[step // 2 : width : step, step // 2 : height : step]
    points = grid.reshape(2, -1).T.astype(np.float32)
    key, start, seen = grey[0], points, np.ones(len(points), bool)
    last = points, seen
    for frame in grey[1:]:
        flow = _flow(key, frame)
        moved = start + cv2.remap(flow, start[None], None, cv2.INTER_LINEAR)[0]
        seen = seen & ((moved >= 0) & (moved <= (width - 1, height - 1))).all(axis=1)
        if seen.mean() < 0.5:
            break
        last = moved, seen
        if np.median(np.linalg.norm(moved - start, axis=1)[seen]) > KEY_SHIFT * side:
            key, start = frame, moved
    moved, seen = last
    return points[seen], moved[seen]


def reference_psnr(clip: np.ndarray, truth: np.ndarray) -> float:
    """PSNR to the true continuation in dB, without the given first frame, up to `MAX_PSNR`."""
    with np.errstate(divide="ignore"):  # no error at all
        return min(MAX_PSNR, float(peak_signal_noise_ratio(truth[1:], clip[1:])))


def motion_match(flow: np.ndarray, truth: np.ndarray) -> float:
    """1 if a clip moves as its true continuation does: same direction, speed within 2.5 times.

    Compared are the mean flow and the mean outward flow (zoom) of what moves in each clip.
    """
    made, wanted = _motion(flow), _motion(truth)
    speed, wanted_speed = np.linalg.norm(made), np.linalg.norm(wanted)
    threshold = STILL * min(flow.shape[1:3])
    if wanted_speed < threshold:
        return float(speed < threshold)
    cosine = made @ wanted / (speed * wanted_speed + 1e-9)
    return float(cosine > 0.8 and 1 / 2.5 < speed / wanted_speed < 2.5)


def motion_explained(clip: np.ndarray, truth: np.ndarray, image: np.ndarray) -> float:
    """Share of the change from the image to its true continuation that a clip foretells.

    One less its squared error over that of the image standing still, and no less than 0: so what
    keeps to the image by not moving explains nothing. Where the truth hardly moves, it is what is
    within `EXPLAINED` of it.
    """
    clip, truth, still = (x.astype(float) / 255 for x in (clip[1:], truth[1:], image[None]))
    error, change = ((x - truth) ** 2 for x in (clip, still))
    return max(0.0, 1 - float(error.mean() / max(change.mean(), EXPLAINED)))


def _motion(flow: np.ndarray) -> np.ndarray:
    """Mean right, down and outward flow, in pixels per frame, of what moves.

    Weighted by speed: a small subject on a still ground counts as much as a moving camera.
    """
    _, height, width, _ = flow.shape
    columns, rows = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    outward = flow[..., 0] * columns + flow[..., 1] * rows
    weight = np.linalg.norm(flow, axis=-1)
    total = weight.sum() + 1e-9
    return np.array(
        [(weight * part).sum() / total for part in (*np.moveaxis(flow, -1, 0), outward)]
    )
