"""Videos as a page: side by side per prompt, filtered by setting, and played in step.

`write_gallery` makes a folder of any number of videos, to open in a browser or to publish as it is.
`write_video_page` makes one file that holds small copies, for the report: Snakemake shows pages and
pictures in it, but of a video it offers a download only.
"""

import json
import os
import shutil
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import numpy as np
from PIL import Image

from pusa.data.manifest import read_manifests
from pusa.data.suite import spread
from pusa.data.video import FPS, read_settings, read_video, write_video
from pusa.report.page import TEMPLATES

#: A page is in the report as a data URI, of which Chromium opens no more than 2 MiB; base64 takes
#: four bytes for three.
REPORT_BYTES = 3 * 2**21 // 4 - 1024
#: Prompts of which a page in the report takes as many as fit, spread evenly.
REPORT_PROMPTS = 24
SMALL_WIDTH = 320  # pixels, of a small copy
SMALL_CRF = 30


@dataclass(frozen=True)
class Sample:
    """A video with its prompt; ``setting`` is the name of its folder."""

    file: Path
    setting: str
    prompt: str
    sample: int | None = None  # number among those of its prompt and setting
    settings: dict = field(default_factory=dict)  # from `pusa.data.video.read_settings`

    @property
    def given(self) -> list[list[float]]:
        """``[first, last, noise multiplier]`` of the given pixel frames, counted from 1."""
        return self.settings.get("given", [])

    @property
    def task(self) -> str:
        """What was given: nothing, an image, or which frames."""
        if not self.given:
            return "text-to-video"
        if [(first, last) for first, last, _ in self.given] == [(1, 1)]:
            return "image-to-video"
        spans = [str(a) if a == b else f"{a}-{b}" for a, b, _ in self.given]
        return f"given frames {', '.join(spans)}"


def find_samples(folders: list[Path]) -> list[Sample]:
    """The videos of folders, each of which is one setting, or holds a folder per setting.

    A setting's folder has the lists of `pusa.sample.suite`, ``shard*.csv``, or just videos, as
    `pusa.sample.generate` writes them.

    Raises:
        FileNotFoundError: if a folder, or a video of a list, is missing, or a folder has no video.
        ValueError: as `pusa.data.manifest.read_manifests`, or if two settings have the same name.
    """
    found: dict[str, Path] = {}
    samples = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"folder of videos {folder} does not exist")
        inside = [folder, *sorted(f for f in folder.iterdir() if f.is_dir())]
        settings = [f for f in inside if any(f.glob("[!.]*.mp4"))]
        if not settings:
            raise FileNotFoundError(f"{folder} has no videos (*.mp4), nor has a folder in it")
        for setting in settings:
            name = setting.resolve().name
            if name in found:
                raise ValueError(f"{found[name]} and {setting} have the same name; rename one")
            found[name] = setting
            samples += _read_folder(setting, name)
    return samples


def _read_folder(folder: Path, setting: str) -> list[Sample]:
    if manifests := sorted(folder.glob("shard*.csv")):
        listed = read_manifests(manifests)[0].sort_values(["index", "sample"], kind="stable")
        rows = listed.to_dict("records")
    else:
        rows = [{"file": file.name} for file in sorted(folder.glob("[!.]*.mp4"))]
    samples = []
    for row in rows:
        file = folder / row["file"]
        if not file.is_file():
            raise FileNotFoundError(f"video {file} is missing")
        settings = read_settings(file)
        prompt = row.get("prompt") or settings.get("prompt") or file.stem
        samples.append(Sample(file, setting, prompt, row.get("sample"), settings))
    return samples


def write_gallery(
    title: str, samples: list[Sample], out: str | Path, *, shown: Sequence[str] = ()
) -> None:
    """Write the folder ``out``: ``index.html`` and the videos, as hard links if possible.

    Args:
        samples: from `find_samples`.
        shown: settings whose videos are seen when the page is opened, in this order and before
            others; without any, all are.

    Raises:
        ValueError: if ``out`` exists and is not an empty folder, or there is no such setting.
    """
    out = Path(out)
    settings = {sample.setting for sample in samples}
    if lacking := [name for name in shown if name not in settings]:
        raise ValueError(
            f"no videos of {', '.join(lacking)}, expected of {', '.join(sorted(settings))}"
        )
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(
            f"{out} exists; expected a new folder, or a page's name that ends in .html"
        )
    sources = []
    for sample in samples:
        place = Path("videos", sample.setting, sample.file.name)
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(sample.file, out / place)
        except OSError:  # on another file system
            shutil.copyfile(sample.file, out / place)
        sources.append(quote(place.as_posix()))
    (out / "index.html").write_text(_render(title, samples, sources, "", shown), encoding="utf-8")


def write_video_page(title: str, samples: list[Sample], out: str | Path) -> None:
    """Write one page that holds small copies of its videos: of as many prompts as it may have.

    Only prompts that the most settings have are shown, so that videos can be compared, and of each
    the first sample. Where not even one prompt's videos fit, as many of them as do are shown.

    Args:
        samples: from `find_samples`.
    """
    samples = [s for s in samples if s.sample in (None, 0)]
    settings: dict[str, set[str]] = {}
    for sample in samples:
        settings.setdefault(sample.prompt, set()).add(sample.setting)
    most = max(map(len, settings.values()))
    prompts = [prompt for prompt, names in settings.items() if len(names) == most]
    chosen = spread(prompts, REPORT_PROMPTS)
    copies = {s.file: _small_copy(s.file) for s in samples if s.prompt in chosen}

    def choices() -> Iterator[tuple[list[Sample], str]]:
        of_settings = f" that {most} settings share" if most > 1 else ""
        for count in range(len(chosen), 0, -1):
            shown = [s for s in samples if s.prompt in spread(chosen, count)]
            yield shown, f"the videos of {count} of {len(prompts)} prompts{of_settings}"
        for count in reversed(range(len(shown))):
            some = f"{count} of the {len(shown)} videos of one prompt: no more fit"
            yield shown[:count], some

    for shown, note in choices():
        sources = [copies[s.file] for s in shown]
        page = _render(title, shown, sources, f"Small copies of {note}.").encode()
        if len(page) <= REPORT_BYTES:
            break
    Path(out).write_bytes(page)


def _small_copy(file: Path) -> str:
    """A video as a data URI, at most `SMALL_WIDTH` pixels wide."""
    frames = read_video(file)
    height, width = frames.shape[1:3]
    if width > SMALL_WIDTH:
        size = (SMALL_WIDTH, 2 * round(height * SMALL_WIDTH / width / 2))  # even, for the codec
        frames = np.stack([Image.fromarray(f).resize(size, Image.Resampling.BOX) for f in frames])
    with TemporaryDirectory() as folder:
        copy = Path(folder, "small.mp4")
        write_video(copy, frames, crf=SMALL_CRF)
        return "data:video/mp4;base64," + b64encode(copy.read_bytes()).decode()


def _render(
    title: str,
    samples: list[Sample],
    sources: list[str],
    note: str,
    shown: Sequence[str] = (),
) -> str:
    """The page; settings that many videos share are in it once."""
    about: dict[str, int] = {}
    videos = []
    for sample, source in zip(samples, sources, strict=True):
        elsewhere = ("prompt", "given", "sample")
        told = json.dumps({k: v for k, v in sample.settings.items() if k not in elsewhere})
        number = "" if sample.sample is None else f", sample {sample.sample}"
        videos.append(
            {
                "src": source,
                "name": f"{sample.setting}{number}",
                "setting": sample.setting,
                "prompt": sample.prompt,
                "task": sample.task,
                "given": sample.given,
                "settings": about.setdefault(told, len(about)),
            }
        )
    settings = [json.loads(text) for text in about]
    data = {"fps": FPS, "settings": settings, "videos": videos, "shown": list(shown)}
    return TEMPLATES.get_template("gallery.html").render(title=title, data=data, note=note)
