"""The image-to-video prompt suite, in VBench-I2V's layout.

``vbench2_i2v_full_info.json`` lists prompts with their dimensions and image; the images lie
in ``crop/<ratio>/`` for the aspect ratios 1-1, 8-5, 7-4 and 16-9.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pusa.data.image import open_image
from pusa.digests import digest_file

INFO_FILE = "vbench2_i2v_full_info.json"
KINDS = ("subject", "background", "camera")
#: Prompts of each kind in VBench-I2V's published list.
VBENCH_COUNTS = {"subject": 246, "background": 109, "camera": 763}
#: Pixels; under it RAFT and AMT give NaN, which VBench counts as no motion and as smoothness 0.48.
VBENCH_MIN_SIDE = 128
#: Figure 3's in the paper, a subject prompt of VBench-I2V.
PAPER_PROMPT = "a man in a black suit and a sombrero, shouting loudly"
FIGURE3_PROMPTS = 2
#: The camera motions of its prompts, in the order in which VBench looks for them.
CAMERA_MOTIONS = (
    "pans left",
    "pans right",
    "tilts up",
    "tilts down",
    "zooms in",
    "zooms out",
    "static",
)


@dataclass(frozen=True)
class SuitePrompt:
    """One prompt of the suite; ``index`` is its place in the file and names its videos."""

    index: int
    prompt: str
    dimensions: tuple[str, ...]
    image: Path

    @property
    def kind(self) -> str:
        """What the prompt is for: ``subject``, ``background`` or ``camera``."""
        if "camera_motion" in self.dimensions:
            return "camera"
        return "subject" if "i2v_subject" in self.dimensions else "background"

    @property
    def camera_motion(self) -> str | None:
        """The first of `CAMERA_MOTIONS` that the prompt names after the word camera, if any.

        So VBench-I2V reads the motion from the name of a video, which holds its prompt.
        """
        return next((m for m in CAMERA_MOTIONS if f"camera {m}" in self.prompt), None)

    @property
    def is_papers(self) -> bool:
        """Whether it is the one that the paper's Figure 3 shows."""
        return self.prompt.strip().rstrip(".").lower() == PAPER_PROMPT

    @property
    def reference_name(self) -> str:
        """File name of the true continuation, in suites that have one."""
        return f"{self.index:04d}.mp4"

    def video_name(self, sample: int) -> str:
        """File name of one sample; free of the prompt, which may hold any character."""
        return f"{self.index:04d}-{sample}.mp4"


def read_suite(
    folder: str | Path,
    *,
    height: int,
    width: int,
    counts: dict[str, int] | None = None,
) -> list[SuitePrompt]:
    """Read the suite with the images whose aspect ratio is nearest to ``width / height``.

    Args:
        counts: how many prompts of each kind to take, by the rule of `choose_subset`; all if
            None.

    Raises:
        FileNotFoundError: if the list, the image folder or an image is missing.
        ValueError: as `read_prompts`, or for an image that `pusa.data.image.open_image` refuses.
    """
    folder = Path(folder)
    prompts = read_prompts(folder, counts)
    images = folder / "crop" / _nearest_ratio(folder / "crop", width / height)
    prompts = [replace(p, image=images / p.image) for p in prompts]
    for image in {p.image for p in prompts}:
        open_image(image)
    return prompts


def read_prompts(folder: str | Path, counts: dict[str, int] | None = None) -> list[SuitePrompt]:
    """Read the suite's list without looking at its images: ``image`` is a file's name alone.

    Args:
        counts: as in `read_suite`.

    Raises:
        FileNotFoundError: if there is no list.
        ValueError: if it is not the list that was downloaded, or none at all; if an entry lacks its
            prompt, dimensions or image; or if there are fewer of a kind than asked for.
    """
    info_file = Path(folder) / INFO_FILE
    if not info_file.is_file():
        raise FileNotFoundError(f"{info_file} does not exist; expected VBench-I2V's prompt list")
    _check_download(info_file)
    try:
        entries = json.loads(info_file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{info_file}: cannot be read as JSON ({error})") from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{info_file}: expected a list of prompts")
    prompts = []
    for index, entry in enumerate(entries):
        kinds = {"prompt_en": str, "dimension": list, "image_name": str}
        for key, kind in kinds.items():
            found = entry.get(key) if isinstance(entry, dict) else None
            if not found:
                raise ValueError(f"{info_file}: entry {index} has no {key!r}")
            if not isinstance(found, kind):
                wanted = "text" if kind is str else "a list"
                raise ValueError(f"{info_file}: {key} of entry {index} is {found!r}, not {wanted}")
        if not entry["prompt_en"].strip():
            raise ValueError(f"{info_file}: the prompt of entry {index} is blank")
        if Path(entry["image_name"]).name != entry["image_name"] or entry["image_name"] == "..":
            raise ValueError(
                f"{info_file}: image_name of entry {index} is {entry['image_name']!r}, expected a "
                "file's name without a folder"
            )
        prompts.append(
            SuitePrompt(
                index=index,
                prompt=entry["prompt_en"],
                dimensions=tuple(entry["dimension"]),
                image=Path(entry["image_name"]),
            )
        )
    if counts is None:
        return prompts
    try:
        return [prompts[i] for i in choose_subset([p.kind for p in prompts], counts)]
    except ValueError as error:
        raise ValueError(f"{info_file}: {error}") from None


def _check_download(info_file: Path) -> None:
    """Refuse a list that differs from the one that its folder's download.json tells of."""
    record = info_file.with_name("download.json")
    if not record.is_file():
        return
    try:
        expected = json.loads(record.read_text())["files"].get(INFO_FILE, {}).get("sha256")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{record} is damaged; delete it and download the suite again") from None
    found = digest_file(info_file)
    if expected not in (None, found):
        raise ValueError(
            f"{info_file}: expected SHA-256 {expected}, as {record.name} says, found {found}; "
            "delete it and download it again, or set suite.source: folder and delete the record"
        )


def choose_subset(kinds: list[str], counts: dict[str, int]) -> list[int]:
    """Places of the prompts of a subset, spread evenly over each kind in the suite's order.

    VBench-I2V lists the prompts about one image, or one camera motion, in a row: its first
    fifty would show a few images only. A smaller subset is part of a larger one, so that the videos
    and scores of a subset that grows are kept: of each kind come the first in the order of
    `_spread_order`.

    Args:
        kinds: the kind of every prompt, in the suite's order.
        counts: how many of each kind to take.

    Raises:
        ValueError: if there are fewer of a kind than asked for.
    """
    chosen = []
    for kind in KINDS:
        places = [i for i, k in enumerate(kinds) if k == kind]
        wanted = counts[kind]
        if wanted > len(places):
            raise ValueError(f"{len(places)} {kind} prompts, but {wanted} were asked for")
        chosen += [places[n] for n in sorted(_spread_order(len(places))[:wanted])]
    return chosen


def _spread_order(count: int) -> list[int]:
    """The numbers under ``count``, each far from those before: 0, a half, a quarter, and so on.

    Their order by their bits read backwards (van der Corput's); of the first so many, the gaps
    between neighbours differ by a factor of two at most, but for the last.
    """
    bits = (count - 1).bit_length()
    return sorted(range(count), key=lambda n: f"{n:0{bits}b}"[::-1])


def spread(items: Sequence, count: int) -> list:
    """At most ``count`` of a list, spread evenly from the first to the last.

    A suite lists its kinds one after the other: its first few would be of one.
    """
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round()
    return [items[int(place)] for place in places]


def first_subjects(prompts: Sequence[SuitePrompt]) -> list[SuitePrompt]:
    """Those that Figure 3 shows: the first subject prompts, and before them the paper's own."""
    subjects = [prompt for prompt in prompts if prompt.kind == "subject"]
    return sorted(subjects, key=lambda prompt: not prompt.is_papers)[:FIGURE3_PROMPTS]


def count_prompts(folder: str | Path) -> dict[str, int]:
    """Prompts of each kind in a suite's list, without looking at its images.

    Raises:
        FileNotFoundError: if there is no list.
    """
    kinds = [prompt.kind for prompt in read_prompts(folder)]
    return {kind: kinds.count(kind) for kind in KINDS}


def check_motions(prompts: list[SuitePrompt]) -> None:
    """Refuse camera prompts whose motion nobody can tell, before anything is scored.

    Raises:
        ValueError: if one names none of `CAMERA_MOTIONS`.
    """
    for prompt in prompts:
        if prompt.kind == "camera" and prompt.camera_motion is None:
            raise ValueError(
                f"prompt {prompt.index} {prompt.prompt!r} names no camera motion; expected one "
                f"of: {', '.join(f'camera {motion}' for motion in CAMERA_MOTIONS)}"
            )


def _nearest_ratio(crops: Path, ratio: float) -> str:
    found = sorted(p.name for p in crops.glob("*-*") if re.fullmatch(r"[1-9]\d*-[1-9]\d*", p.name))
    if not found:
        raise FileNotFoundError(f"{crops} has no image folder such as 16-9 or 1-1")

    def distance(name: str) -> float:
        width, height = name.split("-")
        return abs(int(width) / int(height) - ratio)

    return min(found, key=distance)
