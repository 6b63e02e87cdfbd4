"""Score tables, made up, that tests of scores and of reports share."""

import pandas as pd

from pusa.score.files import COLUMNS
from pusa.tiny.dataset import BACKGROUND_DIMENSIONS, SUBJECT_DIMENSIONS

#: The nine dimensions, by the kind of the prompts that VBench-I2V asks them of.
DIMENSIONS = {
    "subject": SUBJECT_DIMENSIONS,
    "background": BACKGROUND_DIMENSIONS,
    "camera": ("camera_motion",),
}


def score_table(value=0.5, *, counts=(2, 2, 2), samples=1, scorer="weight_free", also=()):
    """Scores of some prompts of each kind.

    Args:
        value: of every score, or a function of index, sample and dimension.
        counts: how many prompts of each kind.
        also: measures of every prompt beside its dimensions.
    """
    value_of = value if callable(value) else lambda *_: value
    kinds = [k for k, count in zip(DIMENSIONS, counts, strict=True) for _ in range(count)]
    rows = [
        (f"{i:04d}-{s}.mp4", f"{i}-{s}", i, s, kind, name, value_of(i, s, name), 17, scorer)
        for i, kind in enumerate(kinds)
        for s in range(samples)
        for name in (*DIMENSIONS[kind], *also)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)
