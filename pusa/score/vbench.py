"""VBench-I2V's own code on one of its nine dimensions, video by video, without a network.

It runs in an environment of its own (``envs/vbench.yaml``), in which few of this package's
dependencies are installed. One process scores one dimension: VBench leaves modules with the
names ``utils`` and ``networks`` behind, which other dimensions' networks would import.

Networks are read from the folder of `pusa.score.vbench_weights`. What else vbench 0.1.5 would do
with them - download what is missing, turn certificate checks off, unpickle code - is prevented
here.
"""

import json
import math
import os
import ssl
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pandas as pd
from PIL import Image

from pusa.data.manifest import check_manifest
from pusa.data.suite import VBENCH_MIN_SIDE, SuitePrompt, check_motions
from pusa.data.video import video_shape
from pusa.digests import digest_file
from pusa.records import describe_device
from pusa.score.arithmetic import NAMES, prompt_sums
from pusa.score.files import COLUMNS
from pusa.score.vbench_weights import check_weights, dimension_files

#: How imaging_quality shrinks frames: VBench's default, and the leaderboard's.
IMAGING_QUALITY_MODE = "longer"
#: motion_smoothness compares each frame between two others.
MIN_FRAMES = 3
MAX_NAME = 255  # bytes of a file's name on Linux
IMAGE_DIMENSIONS = frozenset({"i2v_subject", "i2v_background"})  # compare with the given image
PACKAGES = (
    "vbench", "torch", "torchvision", "transformers", "timm", "peft", "dreamsim", "openai-clip",
    "open_clip_torch", "pyiqa", "decord", "opencv-python", "pillow", "numpy",
)  # fmt: skip
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    # VBench's checkpoints are other people's pickles, of which only tensors are read; CLIP's are
    # TorchScript archives, which are no Python pickles.
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
}


def score_videos(
    prompts: list[SuitePrompt],
    videos: pd.DataFrame,
    folder: str | Path,
    *,
    dimension: str,
    weights: str | Path,
    device: str,
) -> tuple[pd.DataFrame, dict]:
    """Score the videos whose prompts ask for a dimension.

    Args:
        prompts: the suite, with the images of the videos' aspect ratio.
        videos: the manifest, ``file, index, prompt, sample``; a share of it will do.
        folder: where the videos are.
        dimension: one of VBench-I2V's nine.
        weights: folder of `pusa.score.vbench_weights.download_weights`.
        device: ``cpu`` or ``cuda``.

    Returns:
        The score table, one row per video, values as shares; empty if no prompt asks for the
        dimension. And the record: device, package versions and VBench's settings.

    Raises:
        FileNotFoundError: if a network is missing.
        ValueError: for an unknown dimension, a prompt, clip or image that VBench cannot score
            (`suite_names`, `check_clips`, `check_images`, `pusa.data.suite.check_motions`).
        RuntimeError: if VBench leaves out a video, gives no number, or a score for the whole
            dimension that is not the mean of its videos by `pusa.score.arithmetic`.
    """
    folder, weights = Path(folder), Path(weights).absolute()
    _check_files(weights, dimension)
    record = {
        "scorer": "vbench",
        "dimensions": [dimension],
        "device": describe_device(device),
        "packages": _package_versions(),
        "imaging_quality_mode": IMAGING_QUALITY_MODE,
        "image_ratio": prompts[0].image.parent.name,
    }
    check_manifest(prompts, videos)
    names = suite_names(prompts, videos)
    by_index = {p.index: p for p in prompts}
    videos = videos[[dimension in by_index[index].dimensions for index in videos["index"]]]
    if videos.empty:
        return pd.DataFrame(columns=COLUMNS), record
    wanted = [by_index[index] for index in sorted(set(videos["index"]))]
    if dimension == "camera_motion":
        check_motions(wanted)
    if dimension in IMAGE_DIMENSIONS:
        check_images(wanted)
    frames = check_clips(videos["file"], folder)

    compute = _load_vbench(dimension, weights, device)
    with tempfile.TemporaryDirectory() as links:
        score, *_, results = compute(_link_videos(wanted, videos, names, folder, Path(links)))
    values = _read_results(results, {names[file]: file for file in videos["file"]}, dimension)
    table = videos[["file", "index", "sample"]].assign(
        sha256=[digest_file(folder / file) for file in videos["file"]],
        kind=[by_index[index].kind for index in videos["index"]],
        dimension=dimension,
        value=videos["file"].map(values),
        frames=videos["file"].map(frames),
        scorer="vbench",
    )[list(COLUMNS)]
    value, weight = (sums[dimension].sum() for sums in prompt_sums(table, [dimension]))
    mean = value / weight
    if not math.isclose(mean, score, rel_tol=0, abs_tol=1e-6):
        raise RuntimeError(
            f"VBench's {dimension} of these videos is {score:.7f}, but their mean {mean:.7f}; "
            "this version of VBench weights them in another way"
        )
    return table.reset_index(drop=True), record


def check_suite(prompts: list[SuitePrompt], samples: int) -> None:
    """Refuse, before anything is sampled, a suite that VBench cannot score.

    Args:
        prompts: all that will be sampled, with their images.
        samples: videos of each.

    Raises:
        ValueError: by `suite_names`, `check_images` and `pusa.data.suite.check_motions`.
    """
    rows = [(p.video_name(n), p.index, n) for p in prompts for n in range(samples)]
    suite_names(prompts, pd.DataFrame(rows, columns=["file", "index", "sample"]))
    check_images([p for p in prompts if not IMAGE_DIMENSIONS.isdisjoint(p.dimensions)])
    check_motions(prompts)


def suite_names(prompts: list[SuitePrompt], videos: pd.DataFrame) -> dict[str, str]:
    """The name that VBench-I2V gives to each video, ``<prompt>-<sample>.mp4``, by our file name.

    The prompt stands there letter by letter, as VBench reads the camera motion from it; no shell
    ever sees it.

    Raises:
        ValueError: for a prompt that no file can be named by, or two videos with one name (composed
            and decomposed letters count as one).
    """
    texts = {p.index: p.prompt for p in prompts}
    names, taken = {}, {}
    for row in videos.to_dict("records"):
        file, index = row["file"], row["index"]
        prompt = texts[index]
        name = f"{prompt}-{row['sample']}.mp4"
        if "/" in prompt or "\0" in prompt:
            raise ValueError(f"prompt {index} {prompt!r} cannot name a file: it has a / or a NUL")
        if len(name.encode()) > MAX_NAME:
            raise ValueError(
                f"prompt {index} {prompt!r} cannot name a file: {len(name.encode())} bytes with "
                f"sample and suffix, expected at most {MAX_NAME}"
            )
        composed = unicodedata.normalize("NFC", name)
        if composed in taken:
            raise ValueError(f"{taken[composed]} and {file} are both {name!r} to VBench")
        names[file], taken[composed] = name, file
    return names


def check_clips(files: Iterable[str], folder: str | Path) -> dict[str, int]:
    """Refuse clips that VBench would score wrong without a word.

    Returns:
        Frames of each file, counted by decoding.

    Raises:
        ValueError: if a clip cannot be read, has a side under `VBENCH_MIN_SIDE` pixels or fewer
            than `MIN_FRAMES` frames.
    """
    frames = {}
    for file in files:
        path = Path(folder) / file
        frames[file], height, width = video_shape(path)
        if min(width, height) < VBENCH_MIN_SIDE:
            raise ValueError(
                f"{path}: {width}x{height} pixels, but VBench needs {VBENCH_MIN_SIDE} or more a "
                "side"
            )
        if frames[file] < MIN_FRAMES:
            raise ValueError(
                f"{path}: {frames[file]} frames, but VBench needs {MIN_FRAMES} or more"
            )
    return frames


def check_images(prompts: list[SuitePrompt]) -> None:
    """Refuse images that VBench cannot compare a video with.

    Raises:
        ValueError: if an image is not RGB.
    """
    for prompt in prompts:
        with Image.open(prompt.image) as image:
            if image.mode != "RGB":
                raise ValueError(f"{prompt.image}: mode {image.mode}, but VBench needs RGB")


def check_environment() -> None:
    """Import VBench's code of all nine dimensions, and look for the packages of the record.

    Raises:
        ImportError: if the environment is not VBench's.
    """
    for dimension in NAMES:
        _import_vbench(dimension)
    _package_versions()


def _check_files(weights: Path, dimension: str) -> None:
    if dimension not in NAMES:
        raise ValueError(f"unknown dimension {dimension!r}; expected one of {', '.join(NAMES)}")
    for file in dimension_files(dimension):
        if not (weights / file).exists():
            raise FileNotFoundError(
                f"{weights / file} is missing; `pusa download-vbench --weights {weights}` fetches "
                "what VBench needs, on a machine with a network"
            )
    if (weights / "download.json").exists():
        check_weights(weights)  # a truncated one would fail without its name, or abort


def _import_vbench(dimension: str) -> ModuleType:
    """VBench's module of a dimension, in a process that must not use the network."""
    os.environ.update(OFFLINE)
    # vbench 0.1.5 lacks this module, which draws CoTracker's tracks for debugging only.
    visualizer = ModuleType("vbench2_beta_i2v.third_party.cotracker.utils.visualizer")
    visualizer.Visualizer = None
    sys.modules[visualizer.__name__] = visualizer
    i2v = dimension in IMAGE_DIMENSIONS or dimension == "camera_motion"
    package = "vbench2_beta_i2v" if i2v else "vbench"
    try:
        return import_module(f"{package}.{dimension}")
    except ImportError as error:
        raise ImportError(
            f"VBench's {dimension} cannot be imported by {sys.executable} ({error}); it runs in "
            "the environment that `make vbench` makes"
        ) from error


def _load_vbench(dimension: str, weights: Path, device: str) -> Callable:
    """VBench's function of a dimension: from the file that lists videos to its scores."""
    module = _import_vbench(dimension)
    import torch
    from vbench2_beta_i2v import utils

    # A device by its name alone would make AMT shrink frames to fit the memory.
    device = torch.device(device)
    torch.hub.set_dir(str(weights / "torch/hub"))
    utils.CACHE_DIR = str(weights)
    submodules = utils.init_submodules([dimension], local=True)[dimension]
    if dimension == "i2v_background":
        # By default DreamSim goes to a GPU, and downloads into the working directory.
        from dreamsim import dreamsim

        module.dreamsim = partial(dreamsim, device=device, cache_dir=torch.hub.get_dir())
    if dimension == "camera_motion":
        # Without a branch, torch.hub asks GitHub for one. If loading fails, VBench tries again
        # with a context that checks no certificate, in the whole process: make that one check.
        submodules["repo"] += ":main"
        ssl._create_unverified_context = ssl.create_default_context
    return partial(
        getattr(module, f"compute_{dimension}"),
        device=device,
        submodules_list=submodules,
        imaging_quality_preprocessing_mode=IMAGING_QUALITY_MODE,
    )


def _link_videos(
    prompts: list[SuitePrompt],
    videos: pd.DataFrame,
    names: dict[str, str],
    folder: Path,
    links: Path,
) -> str:
    """Link the videos under their names in the suite; VBench's list of them, a JSON file."""
    entries = []
    for prompt in prompts:
        files = videos.loc[videos["index"] == prompt.index, "file"]
        for file in files:
            (links / names[file]).symlink_to((folder / file).absolute())
        entries.append(
            {
                "prompt_en": prompt.prompt,
                "dimension": prompt.dimensions,
                "image_name": str(prompt.image.absolute()),
                "video_list": [str(links / names[file]) for file in files],
            }
        )
    info = links / "info.json"
    info.write_text(json.dumps(entries))
    return str(info)


def _read_results(results: list[dict], files: dict[str, str], dimension: str) -> dict[str, float]:
    """Shares by our file names, from VBench's list of ``video_path`` and ``video_results``."""
    scored = sorted(Path(r["video_path"]).name for r in results)
    if scored != sorted(files):
        odd = sorted(set(scored) ^ set(files)) or scored
        raise RuntimeError(f"VBench did not score every video once for {dimension}: {odd[:3]}")
    percent = dimension == "imaging_quality"  # all others are shares, or yes and no
    values = {}
    for result in results:
        file = files[Path(result["video_path"]).name]
        values[file] = float(result["video_results"]) / (100 if percent else 1)
        if not math.isfinite(values[file]):
            raise RuntimeError(f"VBench's {dimension} of {file} is {values[file]}")
    return values


def _package_versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}
