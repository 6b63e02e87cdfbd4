"""What tests of figures share."""

import matplotlib.figure
import numpy as np
from PIL import Image


def record_figures(monkeypatch):
    """A list to which every figure that is saved is added, once."""
    seen, save = [], matplotlib.figure.Figure.savefig

    def recording(figure, *arguments, **options):
        if figure not in seen:
            seen.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", recording)
    return seen


def written(file):
    """Whether both the PNG and the PDF of a figure are there, and the PNG is not blank."""
    pixels = np.asarray(Image.open(file).convert("RGB"))
    return pixels.std() > 5 and file.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def texts(figure):
    """All text of a figure, of its parts too."""
    found = figure.findobj(matplotlib.text.Text)
    return [text.get_text() for text in found if text.get_text()]
