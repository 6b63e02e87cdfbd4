"""Strips of frames: Figures 3 and 6 to 13, and the contact sheet.

Frames are named as people count them, from 1, and those that were given are marked in colour and
in words, after what `pusa.data.video.read_settings` finds in a video.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from pusa.data.image import fit_image, load_image
from pusa.data.suite import PAPER_PROMPT, SuitePrompt, first_subjects, spread
from pusa.data.video import read_settings, read_video, scan_video, write_video
from pusa.digests import digest_file
from pusa.figures.style import (
    GREY,
    MODEL_NAMES,
    SMALL_SIZE,
    TEXT_SIZE,
    TITLE_SIZE,
    VERMILLION,
    WIDTH,
    in_style,
    save,
    wrap,
)

COLUMNS = 7
SAMPLE_PROMPTS = 4
SHEET_COLUMNS = 6
SHEET_PROMPTS = 24
SHEET_PIXELS = 256  # width of a clip in the contact sheet's video

# Inches.
_MARGIN = 0.08
_GAP = 0.05  # between frames
_BLOCK_GAP = 0.14
_NAME_WIDTH = 0.75
_LINE = 1.25 / 72  # height of a line of text, per point of its size


@dataclass(frozen=True)
class _Row:
    """Frames side by side; ``labels`` stand under them, ``name`` at their left."""

    frames: Sequence[np.ndarray]
    given: Sequence[bool]
    labels: Sequence[str] = ()
    name: str = ""


@dataclass(frozen=True)
class _Block:
    """The rows of one prompt, under it."""

    heading: str
    rows: Sequence[_Row]


@in_style
def plot_strips(
    videos: Sequence[Path],
    out: Path,
    *,
    title: str,
    dataset: Path | None = None,
    note: str = "",
) -> None:
    """A row of frames for each video, under its prompt; given frames are marked.

    Args:
        videos: made by this library, whose settings tell the prompt and the given frames.
        out: the PNG; a PDF is written beside it.
        dataset: folder of the clips that the videos were made from. Each is a row above its video:
            given frames as they were given, the others as they truly go on.
        note: stands below, for example the setting.

    Raises:
        FileNotFoundError: if a video is missing.
        ValueError: if there is no video, or one is unreadable or lacks its settings, or the dataset
            does not have its clip.
    """
    if not videos:
        raise ValueError(f"figure {out}: no videos to show")
    blocks = []
    for video in videos:
        settings = _read_origin(video)
        given, frames = settings["given"], read_video(video)
        chosen = choose_frames(len(frames), given, COLUMNS)
        marks = [_given_mark(n, given) for n in chosen]
        labels = [f"frame {n}\n{mark}".strip() for n, mark in zip(chosen, marks, strict=True)]
        marked = [bool(mark) for mark in marks]
        if dataset is None:
            rows = [_Row(_take(frames, chosen), marked, labels)]
        else:
            clip = _read_clip(settings, video, dataset)
            rows = [
                _Row(_take(clip, chosen), marked, name="true clip"),
                _Row(_take(frames, chosen), marked, labels, name="made"),
            ]
        blocks.append(_Block(settings["prompt"] or "(no prompt)", rows))
    save(_draw(blocks, title, note), out)


def choose_frames(count: int, given: Sequence[Sequence[float]], columns: int) -> list[int]:
    """Frames to show, rising: the ends of the video and of what was given, and others between.

    The others lie evenly in what was generated, and in what was given only when that is full.
    Where even the ends are too many for the columns, some are left out evenly.

    Args:
        count: frames of the video.
        given: ``[first, last, multiplier]`` of given frames, counted from 1.
        columns: frames to choose, at least 2; all of a shorter video.
    """
    ends = sorted({1, count, *(end for first, last, _ in given for end in (first, last))})
    if len(ends) > columns:
        return [ends[i] for i in np.linspace(0, len(ends) - 1, columns).round().astype(int)]
    gaps = list(pairwise(ends))
    parts = [1] * len(gaps)  # into which each gap is divided

    def need(place: int) -> tuple[bool, bool, float]:
        start, stop = gaps[place]
        free = not any(first <= start and stop <= last for first, last, _ in given)
        return parts[place] < stop - start, free, (stop - start) / parts[place]

    for _ in range(min(columns, count) - len(ends)):
        parts[max(range(len(gaps)), key=need)] += 1
    return sorted(
        {round(n) for gap, k in zip(gaps, parts, strict=True) for n in np.linspace(*gap, k + 1)}
        or ends
    )


def other_prompts(prompts: Sequence[SuitePrompt]) -> list[SuitePrompt]:
    """Prompts for Figures 6 and 13, spread evenly over those that Figure 3 leaves."""
    shown = first_subjects(prompts)
    return spread([p for p in prompts if p not in shown] or prompts, SAMPLE_PROMPTS)


@in_style
def plot_figure3(
    prompts: Sequence[SuitePrompt],
    samples: dict[str, Path],
    out: Path,
    *,
    height: int,
    width: int,
    references: Path | None = None,
    note: str = "",
) -> None:
    """Figure 3: the same image and prompt through every model, a row for each.

    Args:
        samples: folder of videos by model of the experiments sheet.
        out: the PNG; a PDF is written beside it.
        height: pixels, of the given image.
        width: pixels, of the given image.
        references: folder of true continuations, which make a last row.
        note: stands below.
    """
    blocks = []
    for prompt in prompts:
        image = load_image(prompt.image, height=height, width=width)
        files = {
            MODEL_NAMES.get(model, model): folder / prompt.video_name(0)
            for model, folder in samples.items()
        }
        if references is not None:
            files["true continuation"] = references / prompt.reference_name
        rows = []
        for name, file in files.items():
            frames = read_video(file)
            chosen = choose_frames(len(frames), [], COLUMNS)[1:]  # frame 1 is the given image
            last = name == list(files)[-1]
            rows.append(
                _Row(
                    frames=[image, *_take(frames, chosen)],
                    given=[True] + [False] * len(chosen),
                    labels=["given image", *(f"frame {n}" for n in chosen)] if last else (),
                    name=name,
                )
            )
        blocks.append(_Block(prompt.prompt, rows))
    if not any(prompt.is_papers for prompt in prompts):
        chosen = (
            f"These are the first subject prompts of this run; the paper's is '{PAPER_PROMPT}'."
        )
        note = f"{chosen} {note}".strip()
    save(_draw(blocks, "Figure 3: Image-to-video results", note), out)


@in_style
def make_contact_sheet(
    prompts: Sequence[SuitePrompt], title: str, samples: Path, out: Path
) -> None:
    """Videos of one setting: ``out`` with ``.png`` and ``.pdf`` (strips) and ``.mp4`` (a grid).

    At most 24, spread evenly over ``prompts``.
    """
    blocks, cells = [], []
    for prompt in spread(prompts, SHEET_PROMPTS):
        file = samples / prompt.video_name(0)
        given, clip = _read_origin(file)["given"], read_video(file)
        shown = choose_frames(len(clip), [], SHEET_COLUMNS)
        row = _Row(
            frames=_take(clip, shown),
            given=[bool(_given_mark(n, given)) for n in shown],
            labels=[f"frame {n}" for n in shown],
        )
        blocks.append(_Block(prompt.prompt, [row]))
        cells.append(_sheet_cell(clip))
    note = "Frames with a coloured border were given."
    save(_draw(blocks, title, note, across=2), out)
    write_video(out.with_suffix(".mp4"), _grid(cells))


def _read_origin(video: Path) -> dict[str, Any]:
    """What a video tells of itself: prompt, given frames, and more."""
    if not video.is_file():
        raise FileNotFoundError(f"video {video} is missing")
    settings = read_settings(video)
    for key in ("prompt", "given"):
        if key not in settings:
            raise ValueError(
                f"{video}: no {key!r} in its settings; expected a video that pusa has made"
            )
    return settings


def _read_clip(settings: dict[str, Any], video: Path, dataset: Path) -> np.ndarray:
    """The clip that a video's given frames are from, as long and as large as the video."""
    from pusa.data.dataset import read_metadata  # and with it torch

    source = settings["conditions"][0]
    named = (clip.path for clip in read_metadata(dataset) if clip.path.name == source["file"])
    found = next((file for file in named if digest_file(file) == source["sha256"]), None)
    if found is None:
        raise ValueError(
            f"{video} was made from a clip {source['file']} that {dataset} does not have"
        )
    shape = {key: settings[key] for key in ("height", "width")}
    frames = scan_video(found).read_frames(1, settings["frames"])
    return np.stack([fit_image(Image.fromarray(frame), **shape) for frame in frames])


def _given_mark(frame: int, given: Sequence[Sequence[float]]) -> str:
    """Whether a frame was given, in words; empty if it was not."""
    for first, last, multiplier in given:
        if first <= frame <= last:
            return f"given\n{100 * multiplier:.3g} % noise" if multiplier else "given"
    return ""


def _draw(blocks: Sequence[_Block], title: str, note: str, *, across: int = 1) -> Figure:
    """Blocks below each other, ``across`` in a line, laid out in inches from the top."""
    title = wrap(title, WIDTH - 2 * _MARGIN, 1.2 * TITLE_SIZE)  # bold is wider
    note = wrap(note, WIDTH - 2 * _MARGIN, SMALL_SIZE)
    width = (WIDTH - 2 * _MARGIN - (across - 1) * 3 * _GAP) / across
    lines = [blocks[i : i + across] for i in range(0, len(blocks), across)]
    heights = [max(_block_height(block, width) for block in line) for line in lines]
    top = 2 * _MARGIN + _text_height(title, TITLE_SIZE)
    bottom = _MARGIN + _text_height(note, SMALL_SIZE)
    figure = Figure(figsize=(WIDTH, top + sum(heights) + bottom))
    page = _Page(figure)
    page.text(_MARGIN, _MARGIN, title, size=TITLE_SIZE, weight="bold")
    for line, height in zip(lines, heights, strict=True):
        for column, block in enumerate(line):
            _draw_block(page, block, _MARGIN + column * (width + 3 * _GAP), top, width)
        top += height
    page.text(_MARGIN, top, note, size=SMALL_SIZE, color=GREY)
    return figure


class _Page:
    """A figure whose places are inches from its upper left corner."""

    def __init__(self, figure: Figure):
        self.figure = figure
        self.width, self.height = figure.get_size_inches()

    def text(self, x: float, y: float, text: str, **style) -> None:
        style = {"va": "top", "linespacing": 1.2} | style
        self.figure.text(x / self.width, 1 - y / self.height, text, **style)

    def image(self, x: float, y: float, width: float, height: float, pixels: np.ndarray):
        box = (x / self.width, 1 - (y + height) / self.height)
        axis = self.figure.add_axes((*box, width / self.width, height / self.height))
        axis.imshow(pixels, aspect="auto")
        axis.set(xticks=[], yticks=[])
        return axis


def _draw_block(page: _Page, block: _Block, left: float, top: float, width: float) -> None:
    heading = _heading(block, width)
    page.text(left, top, heading, size=TEXT_SIZE)
    top += _text_height(heading, TEXT_SIZE) + _GAP
    for row in block.rows:
        start = left + (_NAME_WIDTH if row.name else 0)
        cell, height = _cell_size(row, width)
        name = wrap(row.name, _NAME_WIDTH - _GAP, SMALL_SIZE)
        page.text(left, top + height / 2, name, size=SMALL_SIZE, va="center")
        for column, (frame, given) in enumerate(zip(row.frames, row.given, strict=True)):
            x = start + column * (cell + _GAP)
            axis = page.image(x, top, cell, height, frame)
            axis.spines[:].set(visible=given, color=VERMILLION, linewidth=2)
            if row.labels:
                style = {"color": VERMILLION, "weight": "bold"} if given else {}
                below = {"x": x + cell / 2, "y": top + height + _GAP, "ha": "center"}
                page.text(text=row.labels[column], size=SMALL_SIZE, **below, **style)
        top += height + _labels_height(row) + _GAP


def _cell_size(row: _Row, width: float) -> tuple[float, float]:
    """Width and height of a row's frames."""
    count = len(row.frames)
    cell = (width - (_NAME_WIDTH if row.name else 0) - (count - 1) * _GAP) / count
    rows, columns = row.frames[0].shape[:2]
    return cell, cell * rows / columns


def _heading(block: _Block, width: float) -> str:
    return wrap(block.heading, width, TEXT_SIZE, max_lines=3)


def _block_height(block: _Block, width: float) -> float:
    rows = sum(_cell_size(row, width)[1] + _labels_height(row) + _GAP for row in block.rows)
    return _text_height(_heading(block, width), TEXT_SIZE) + _GAP + rows + _BLOCK_GAP


def _labels_height(row: _Row) -> float:
    return _GAP + max(_text_height(x, SMALL_SIZE) for x in row.labels) if row.labels else 0.0


def _text_height(text: str, points: float) -> float:
    return (text.count("\n") + 1) * points * _LINE if text else 0.0


def _take(video: np.ndarray, frames: Sequence[int]) -> np.ndarray:
    """Frames by their numbers from 1: copies, so that the rest of a long video can go."""
    return video[np.array(frames, int) - 1]


def _sheet_cell(clip: np.ndarray) -> np.ndarray:
    """A clip, made about 256 pixels wide by whole factors."""
    width = clip.shape[2]
    repeat, stride = max(1, SHEET_PIXELS // width), max(1, width // SHEET_PIXELS)
    return clip[:, ::stride, ::stride].repeat(repeat, 1).repeat(repeat, 2)


def _grid(cells: list[np.ndarray]) -> np.ndarray:
    """Clips side by side: ``(frames, height, width, 3)``."""
    columns = min(SHEET_COLUMNS, len(cells))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.concatenate(cells[i : i + columns], 2) for i in range(0, len(cells), columns)]
    return np.concatenate(rows, 1)
