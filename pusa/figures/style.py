"""The figures, in one style: as wide as a page of print, in colours that all readers tell apart.

Every figure is written as PNG and, beside it, as PDF.
"""

import textwrap
import unicodedata
import warnings
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure

from pusa.experiments import AS_THEY_ARE, BASE

WIDTH = 7.0  # inches, of every figure; a page's text is as wide
PNG_DPI, PDF_DPI = 200, 300
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 9, 8, 7  # points
#: Okabe and Ito's colours, told apart by colour-blind readers too.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
GREY = "#595959"
#: How a model of the experiments sheet is called in a figure.
MODEL_NAMES = {**AS_THEY_ARE, "pusa": "Pusa"}
MODEL_COLORS = {"Pusa": BLUE, "Wan-I2V": VERMILLION, AS_THEY_ARE[BASE]: GREEN}
#: For scripts that matplotlib's own font lacks; the installed ones of these are used.
FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Emoji",
)
_installed = set(font_manager.get_font_names())
STYLE = {
    "font.family": ["DejaVu Sans", *(font for font in FALLBACK_FONTS if font in _installed)],
    "font.size": TEXT_SIZE,
    "axes.titlesize": TEXT_SIZE,
    "axes.labelsize": SMALL_SIZE,
    "xtick.labelsize": SMALL_SIZE,
    "ytick.labelsize": SMALL_SIZE,
    "legend.fontsize": SMALL_SIZE,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "axes.prop_cycle": matplotlib.cycler(
        color=[BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY],
        linestyle=["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1))],  # for print in grey
    ),
    "text.parse_math": False,  # a prompt may hold dollar signs
    "pdf.fonttype": 42,  # whole outlines, which printers and editors take
}
#: Decorates what draws a figure.
in_style = matplotlib.rc_context(STYLE)


def new_figure(height: float, title: str, note: str = "") -> Figure:
    """A figure of the common width, ``height`` inches, with its title above and note below."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    text = {"x": 0.01, "ha": "left"}
    figure.suptitle(wrap(title, WIDTH, 1.2 * TITLE_SIZE), **text, size=TITLE_SIZE, weight="bold")
    if note:
        figure.supxlabel(wrap(note, WIDTH, SMALL_SIZE), **text, size=SMALL_SIZE, color=GREY)
    return figure


def model_colors(names: Iterable[str]) -> dict[str, str]:
    """Colours of models by their names in figures: the paper's have the same in every figure."""
    others = cycle([PURPLE, ORANGE, SKY])
    return {name: MODEL_COLORS.get(name) or next(others) for name in names}


def wrap(text: str, inches: float, points: float, max_lines: int | None = None) -> str:
    """Text in lines of at most ``inches``; what goes beyond ``max_lines`` ends in an ellipsis."""
    wide = any(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    letter = points / 72 * (1.2 if wide else 0.54)  # inches; a cautious mean
    return textwrap.fill(text, int(inches / letter), max_lines=max_lines, placeholder=" …")


def save(figure: Figure, out: Path) -> None:
    """Write a figure to ``out`` and beside it as PDF, without dates: bytes repeat.

    Letters that no installed font has show as boxes.

    Raises:
        ValueError: if ``out`` does not end in .png.
    """
    if out.suffix != ".png":
        raise ValueError(f"figure {out}: expected a name that ends in .png; the PDF goes beside it")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # one for each letter
        figure.savefig(out, dpi=PNG_DPI, metadata={"Software": None})
        figure.savefig(out.with_suffix(".pdf"), dpi=PDF_DPI, metadata={"CreationDate": None})
