"""What adaptation does to a model: attention maps (Figure 4) and parameter drift (Figure 5)."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm

from pusa.digests import digest_file
from pusa.figures.style import (
    GREY,
    MODEL_NAMES,
    SMALL_SIZE,
    in_style,
    model_colors,
    new_figure,
    save,
)
from pusa.models.drift import mean_by_block, mean_by_module

#: Kinds of module, from the input of the network to its output.
MODULES = (
    "embedding",
    "image",
    "self-attention",
    "cross-attention",
    "feed-forward",
    "modulation",
    "norm",
    "head",
)
LARGEST = 20
#: How a map was made of a frame's tokens, by whether as the authors do.
AVERAGES = {
    False: "weights averaged over heads and tokens after the softmax",
    True: "tokens averaged before the softmax, as the authors do, and weights over heads",
}
#: Parts of diffusers' parameter names, in fewer letters; the longer ones first.
SHORT_NAMES = {
    "condition_embedder.": "",
    "scale_shift_table": "modulation",
    "image_embedder": "image",
    "time_embedder": "time",
    "text_embedder": "text",
    "patch_embedding": "patches",
    "ffn.net.0.proj": "ffn in",
    "ff.net.0.proj": "ff in",
    "ffn.net.2": "ffn out",
    "ff.net.2": "ff out",
    "attn1.": "self-attn ",
    "attn2.": "cross-attn ",
    "to_out.0": "o",
    "to_": "",
    ".weight": "",
    ".": " ",
}


@in_style
def plot_attention(files: Sequence[Path], out: Path, *, note: str = "") -> None:
    """Figure 4: frame-to-frame attention, a row for each model and a column for each step.

    Below it, how much of the later frames' attention the first frame takes. All maps share one
    colour scale, on which the square root of a weight is even.

    Args:
        files: columns ``step, query, key, weight`` each, latent frames counted from 0; the JSON
            beside a file tells its model, ``label``, the ``block``, the ``steps_total``, and
            whether tokens were averaged ``as_authors`` do.
        out: the PNG; a PDF is written beside it.
        note: stands below.

    Raises:
        FileNotFoundError: if a file or the JSON beside it is missing.
        ValueError: if a file is another than the JSON was written for, lacks a column or a weight,
            a row of a map does not sum to 1, or files differ in their block, steps, frames or
            averages.
    """
    names = [_read_name(file) for file in files]
    totals = sorted({_read_about(file, "steps_total") for file in files})
    blocks = [_read_about(file, "block") for file in files]
    averages = [AVERAGES[_read_about(file, "as_authors")] for file in files]
    maps = [_read_maps(file) for file in files]
    steps, frames = list(maps[0]), len(next(iter(maps[0].values())))
    for file, found, block, average in zip(files, maps, blocks, averages, strict=True):
        if average != averages[0]:
            raise ValueError(f"{file} has {average}, but {files[0]} has {averages[0]}")
        if block != blocks[0]:
            raise ValueError(f"{file} is of block {block}, but {files[0]} of block {blocks[0]}")
        if list(found) != steps or len(found[steps[0]]) != frames:
            raise ValueError(
                f"{file} has steps {list(found)} of {len(found[next(iter(found))])} latent frames, "
                f"but {files[0]} has steps {steps} of {frames}"
            )
    figure = new_figure(
        1.05 + 1.5 * len(files) + 1.6,
        "Figure 4: Attention between frames while the video is generated",
        f"Self-attention of block {blocks[0]}, counted from 0, {averages[0]}. The colour scale is "
        f"that of all maps; even in the square root. {note}".strip(),
    )
    upper, lower = figure.subfigures(2, 1, height_ratios=[0.3 + 1.5 * len(files), 1.6])
    grid = upper.subplots(len(files), len(steps), squeeze=False, sharex=True, sharey=True)
    scale = PowerNorm(0.5, vmin=0, vmax=max(m.max() for found in maps for m in found.values()))
    ticks = np.arange(0, frames, 2 if frames < 12 else 5)
    for line, found, name in zip(grid, maps, names, strict=True):
        for axis, (step, weights) in zip(line, found.items(), strict=True):
            image = axis.imshow(weights, norm=scale, interpolation="nearest")
            axis.set(xticks=ticks, yticks=ticks)
            axis.spines[:].set_visible(False)
            if axis in grid[0]:
                axis.set_title(f"step {step}")
        line[0].set_ylabel(f"{name}\nquery: latent frame")
    for axis in grid[-1]:
        axis.set_xlabel("key: latent frame")
    upper.colorbar(image, ax=grid, label="attention", shrink=0.8, aspect=30)

    axis = lower.subplots()
    colors = model_colors(names)
    for found, name, marker in zip(maps, names, "osD^v<>Pd" * len(maps), strict=False):
        first = [w[1:, 0].mean() for w in found.values()]
        axis.plot(steps, first, marker=marker, color=colors[name], label=name)
    axis.axhline(1 / frames, color=GREY, ls="--", lw=0.8, label=f"uniform, 1/{frames}")
    axis.set(
        title="Attention of the later frames to the first frame",
        xlabel=f"sampling step, from 0, of {' and '.join(map(str, totals))}",
        ylabel="share of attention",
        xticks=steps,
        ylim=(0, None),
    )
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, out)


@in_style
def plot_drift(files: Sequence[Path], out: Path, *, note: str = "") -> None:
    """Figure 5: relative change of the parameters against the base, a row for each model.

    From the left: mean by kind of module, the 20 largest, mean by block, on logarithmic scales that
    all models share.

    Args:
        files: columns ``parameter, module, block, relative_change`` each; parameters without a
            change, as those that the base lacks, count nowhere. The JSON beside a file tells its
            model, ``label``.
        out: the PNG; a PDF is written beside it.
        note: stands below.

    Raises:
        FileNotFoundError: if a file or the JSON beside it is missing.
        ValueError: if a file is another than the JSON was written for, lacks a column, or has no
            change above 0.
    """
    names = [_read_name(file) for file in files]
    tables = [_read_drift(file) for file in files]
    found = {module for table in tables for module in table["module"]}
    modules = [m for m in MODULES if m in found] + sorted(found - set(MODULES))

    figure = new_figure(
        0.8 + 2.9 * len(files),
        "Figure 5: Relative change of parameters against the base",
        "||W' - W|| / ||W|| of each parameter, on the same logarithmic scales in every row. In the "
        f"means, parameters that a LoRA leaves alone count as 0. {note}".strip(),
    )
    grid = figure.subplots(len(files), 3, squeeze=False, width_ratios=[1, 1.15, 1])
    colors = model_colors(names)
    for line, table, name in zip(grid, tables, names, strict=True):
        color = {"color": colors[name]}
        _draw_modules(line[0], mean_by_module(table).reindex(modules), **color)
        largest = table.nlargest(LARGEST, "relative_change").iloc[::-1]
        parameters = [short_name(p) for p in largest["parameter"]]
        line[1].barh(parameters, largest["relative_change"], **color)
        line[1].tick_params("y", length=0)
        line[1].margins(y=0.01)
        line[1].set_xscale("log")
        by_block = mean_by_block(table)
        line[2].plot(by_block.index.astype(int), by_block, marker="o", ms=2.5, **color)
        line[2].set(xlabel="block", yscale="log")
        line[0].set_ylabel(name, size="large", weight="bold")
    for axis in grid[-1][:2]:
        axis.set_xlabel("relative change")
    titles = ("mean by kind of module", f"the {LARGEST} largest", "mean by block")
    for axis, title in zip(grid[0], titles, strict=True):
        axis.set_title(title)
    _share_scale(grid[:, 0], "x", room=10)
    _share_scale(grid[:, 1], "x")
    _share_scale(grid[:, 2], "y")
    figure.get_layout_engine().set(wspace=0.04, hspace=0.04)
    save(figure, out)


def short_name(parameter: str) -> str:
    """A parameter of diffusers' Wan transformer in few letters: ``block 3 self-attn q bias``."""
    name = re.sub(r"^blocks\.(\d+)\.", r"block \1 ", parameter)
    for long, short in SHORT_NAMES.items():
        name = name.replace(long, short)
    return name


def _read_name(file: Path) -> str:
    """A model's name, if the file is that which was measured of it."""
    label = _read_about(file, "label")
    if file.is_file() and _read_about(file, "sha256").get(file.name) != digest_file(file):
        raise ValueError(
            f"{file} is not the table that {file.stem}.json was written for; delete both to have "
            "them made again"
        )
    return MODEL_NAMES.get(label, label)


def _read_about(file: Path, key: str):
    """A value of the JSON beside a CSV."""
    about = file.with_suffix(".json")
    if not about.is_file():
        raise FileNotFoundError(f"{about} does not exist; expected beside {file.name}")
    try:
        return json.loads(about.read_text(encoding="utf-8"))[key]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{about}: expected a JSON object with the key {key!r}") from None


def _read_columns(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist")
    try:
        table = pd.read_csv(file)
    except ValueError as error:  # pandas does not name the file
        raise ValueError(f"{file}: cannot be read as CSV ({error})") from None
    if lacking := [c for c in columns if c not in table]:
        raise ValueError(f"{file}: no column {', '.join(lacking)}; expected {', '.join(columns)}")
    if table.empty:
        raise ValueError(f"{file} has no rows")
    return table


def _read_maps(file: Path) -> dict[int, np.ndarray]:
    """Maps ``(query, key)`` by step, rising."""
    table = _read_columns(file, ("step", "query", "key", "weight"))
    maps = {}
    for step, part in table.groupby("step"):
        frames = int(part[["query", "key"]].to_numpy().max()) + 1
        if len(part) != frames**2 or part.duplicated(["query", "key"]).any():
            raise ValueError(
                f"{file}: step {step} has {len(part)} rows; expected one for each query and key "
                f"of {frames} latent frames, {frames**2}"
            )
        weights = part.pivot(index="query", columns="key", values="weight").to_numpy()
        sums = weights.sum(1)
        if not np.allclose(sums, 1, atol=1e-3):
            worst = sums[np.argmax(np.abs(np.nan_to_num(sums) - 1))]
            raise ValueError(
                f"{file}: weights of step {step} sum to {worst:.4g} over the keys, expected 1"
            )
        maps[int(step)] = weights
    return maps


def _read_drift(file: Path) -> pd.DataFrame:
    table = _read_columns(file, ("parameter", "module", "block", "relative_change"))
    if not (table["relative_change"] > 0).any():
        raise ValueError(f"{file}: no parameter has a relative change above 0")
    return table.dropna(subset=["relative_change"])


def _draw_modules(axis, means: pd.Series, color: str) -> None:
    """A bar for each kind of module with its number; none where nothing changed or is absent."""
    axis.set_xscale("log")
    places = np.arange(len(means))[::-1]  # the first one on top
    axis.barh(places, means.where(means > 0), color=color)
    axis.set_yticks(places, means.index)
    axis.set_ylim(-0.6, len(means) - 0.4)
    axis.tick_params("y", length=0)
    for place, value in zip(places, means, strict=True):
        text = "absent" if np.isnan(value) else f"{value:.2g}"
        axis.annotate(
            f" {text}",
            (value, place) if value > 0 else (0, place),
            xycoords="data" if value > 0 else ("axes fraction", "data"),
            va="center",
            size=SMALL_SIZE,
        )


def _share_scale(axes: Sequence, side: str, *, room: float = 1) -> None:
    """Give logarithmic axes the same limits, with room for the bars' numbers, and plain ticks."""
    limits = np.log10([getattr(axis, f"get_{side}lim")() for axis in axes])
    low, high = 10 ** np.floor(limits.min()), 10 ** np.ceil(limits.max())
    for axis in axes:
        getattr(axis, f"set_{side}lim")(low, high * room)
        scale = getattr(axis, f"{side}axis")
        scale.set_major_formatter("{x:g}")
        scale.set_minor_formatter("")
