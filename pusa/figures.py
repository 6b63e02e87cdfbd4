"""The figures: loss curves, score curves beside the paper's, Figure 3's strip, contact sheet."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pusa.experiments import Setting, main_setting, published_key
from pusa.intervals import score_intervals
from pusa.study import NOT_VBENCH, Study
from pusa.suite import SuitePrompt, load_image
from pusa.video import read_video, write_video

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "figure.dpi": 150,
    "savefig.bbox": "tight",
    # Okabe and Ito's palette, told apart by colour-blind readers too.
    "axes.prop_cycle": matplotlib.cycler(
        color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
    ),
}
STRIP_FRAMES = 6
SHEET_PROMPTS = 24
SHEET_PIXELS = 256  # width of a clip in the contact sheet's video


def plot_losses(runs: list[Path], out: Path) -> None:
    """Training loss, smoothed, and the three validation losses of every run."""
    names = {
        "training": "training loss (mean of 20 iterations)",
        "asynchronous": "validation: a timestep per frame",
        "image_to_video": "validation: first frame clean",
        "synchronous": "validation: one timestep per clip",
    }
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 4, figsize=(13, 3), layout="constrained")
        for run in runs:
            training = pd.read_csv(run / "training.csv")
            smooth = training["loss"].rolling(20, min_periods=1).mean()
            axes[0].plot(training["iteration"], smooth, label=run.name)
            validation = pd.read_csv(run / "validation.csv")
            for axis, name in zip(axes[1:], list(names)[1:], strict=True):
                part = validation[validation["loss"] == name]
                axis.plot(part["iteration"], part["value"], marker="o", label=run.name)
        for axis, title in zip(axes, names.values(), strict=True):
            axis.set(title=title, xlabel="iteration", ylabel="mean squared velocity error")
        axes[0].legend(frameon=False)
        figure.savefig(out)
        plt.close(figure)


def plot_scores(study: Study, published: pd.DataFrame, out: Path) -> None:
    """Total score, with its 95 % interval, against alpha, rank, iterations and steps.

    The paper's curve is beside ours; on a scale of its own where ours are not VBench's scores.
    A panel that the sheet has nothing for is left empty.

    Args:
        study: from `pusa.study.read_study`, with the scores of every setting.
        published: the published Table 2, from `pusa.tables.read_published`.
        out: the image file.

    Raises:
        ValueError: if settings differ in their scorer.
    """
    main = main_setting(study.experiments)
    comparable = study.scorer == "vbench"
    ours = study.experiments[study.experiments["table"] == "2"]
    totals = [
        score_intervals(study.videos(row), ["total"])["total"] for row in ours.to_dict("records")
    ]
    ours = ours.assign(
        total=[t.value for t in totals],
        below=[t.value - t.low for t in totals],
        above=[t.high - t.value for t in totals],
    )
    paper = published.assign(published=published_key(published))
    both = ours[["group", "published", "setting", "total", "below", "above"]].merge(
        paper, on=["group", "published"], how="left", suffixes=("", "_paper")
    )
    for field in ("rank", "iteration", "alpha", "steps"):
        both[field] = [getattr(s, field) for s in both["setting"]]

    at_alpha = both["alpha"].isna() if main.alpha is None else both["alpha"] == main.alpha
    at_main_weights = (both["rank"] == main.rank) & (both["iteration"] == main.iteration)
    panels = (
        ("alpha", "alpha (lora_scale)", both[(both["group"] == "iterations") & at_main_weights]),
        ("rank", f"LoRA rank, alpha {main.alpha}", both[(both["group"] == "lora") & at_alpha]),
        ("iteration", "iterations", both[(both["group"] == "iterations") & at_alpha]),
        ("steps", "sampling steps", both[both["group"] == "steps"]),
    )
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 4, figsize=(13, 3), layout="constrained")
        for axis, (field, name, part) in zip(axes, panels, strict=True):
            part = part.dropna(subset=[field]).sort_values(field)
            positions = np.arange(len(part))
            ends = part[["below", "above"]].to_numpy(float).T
            ours_line = axis.errorbar(positions, part["total"], ends, marker="o", label="here")
            axis.set(xlabel=name, ylabel="total" if comparable else "total, here")
            axis.set_xticks(positions, [f"{v:g}" for v in part[field]])
            side = axis if comparable else axis.twinx()
            (paper_line,) = side.plot(
                positions, part["total_paper"], marker="s", ls="--", color="#D55E00", label="paper"
            )
            if not comparable:
                side.spines["right"].set_visible(True)
                side.set_ylabel("total, paper")
            for shown in {axis, side}:
                shown.set_visible(not part.empty)
        figure.legend(
            handles=[ours_line, paper_line], loc="outside lower center", ncols=2, frameon=False
        )
        scale = "" if comparable else f" ({NOT_VBENCH}); the two scales differ"
        figure.suptitle(f"Total score{scale}; bars are 95 % intervals over prompts", fontsize=9)
        figure.savefig(out)
        plt.close(figure)


def plot_figure3(
    prompts: list[SuitePrompt],
    samples: dict[Setting, Path],
    out: Path,
    *,
    height: int,
    width: int,
    references: Path | None = None,
) -> None:
    """Figure 3: the same image and prompt through base + VTA and the adapted model.

    One block of rows per prompt; the first column is the given image.
    """
    rows = [(setting.label.split(",")[0], folder) for setting, folder in samples.items()]
    if references is not None:
        rows.append(("true continuation", references))
    with plt.rc_context(STYLE):
        figure = plt.figure(
            figsize=(1.25 * (STRIP_FRAMES + 1) * width / height, 1.35 * len(prompts) * len(rows)),
            layout="constrained",
        )
        blocks = figure.subfigures(len(prompts), 1, squeeze=False)[:, 0]
        for block, prompt in zip(blocks, prompts, strict=True):
            block.suptitle(prompt.prompt, fontsize=9, fontweight="bold")
            image = load_image(prompt.image, height=height, width=width)
            lines = block.subplots(len(rows), STRIP_FRAMES + 1, squeeze=False)
            for line, (name, folder) in zip(lines, rows, strict=True):
                reference = folder == references
                clip = read_video(
                    folder / (prompt.reference_name if reference else prompt.video_name(0))
                )
                chosen = np.linspace(0, len(clip) - 1, STRIP_FRAMES).round().astype(int)
                for axis, frame in zip(line, [image, *clip[chosen]], strict=True):
                    axis.imshow(frame, interpolation="nearest")
                    axis.set(xticks=[], yticks=[])
                    axis.spines[:].set_visible(False)
                line[0].set_ylabel(name, fontsize=8)
            lines[0, 0].set_title("given", fontsize=8)
            for axis, n in zip(lines[0, 1:], chosen, strict=True):
                axis.set_title(f"frame {n + 1}", fontsize=8)
        figure.savefig(out)
        plt.close(figure)


def make_contact_sheet(
    prompts: list[SuitePrompt], setting: Setting, samples: Path, out: Path, *, columns: int = 2
) -> None:
    """Prompts of one setting: ``out`` with ``.png`` (strips) and ``.mp4`` (a grid).

    At most 24, spread evenly over ``prompts``.
    """
    chosen = np.linspace(0, len(prompts) - 1, min(SHEET_PROMPTS, len(prompts))).round()
    prompts = [prompts[int(i)] for i in chosen]
    clips = [read_video(samples / p.video_name(0)) for p in prompts]
    lines = -(-len(prompts) // columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            lines, columns, figsize=(7.5 * columns, 1.55 * lines), squeeze=False
        )
        for axis in axes.flat:
            axis.axis("off")
        for axis, prompt, clip in zip(axes.flat, prompts, clips, strict=False):
            chosen = np.linspace(0, len(clip) - 1, STRIP_FRAMES).round().astype(int)
            axis.imshow(np.concatenate(list(clip[chosen]), axis=1), interpolation="nearest")
            axis.set_title(prompt.prompt, fontsize=8, pad=2)
        figure.suptitle(f"{setting.label}: first to last frame; the first is given", fontsize=9)
        figure.tight_layout()
        figure.savefig(out.with_suffix(".png"))
        plt.close(figure)
    write_video(out.with_suffix(".mp4"), _grid(clips))


def _grid(clips: list[np.ndarray], columns: int = 6) -> np.ndarray:
    """Clips side by side at about 256 pixels each: ``(frames, height, width, 3)``."""
    width = clips[0].shape[2]
    repeat, stride = max(1, SHEET_PIXELS // width), max(1, width // SHEET_PIXELS)
    cells = [c[:, ::stride, ::stride].repeat(repeat, 1).repeat(repeat, 2) for c in clips]
    columns = min(columns, len(cells))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.concatenate(cells[i : i + columns], 2) for i in range(0, len(cells), columns)]
    return np.concatenate(rows, 1)
