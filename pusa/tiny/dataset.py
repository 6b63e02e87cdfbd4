"""Writes the tiny world as a training dataset and as an image-to-video prompt suite.

Training clips, prompt suite and the base model's clips come from separate random streams.
"""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from pusa.data.suite import INFO_FILE
from pusa.data.video import write_video
from pusa.tiny import world

#: First entry of the random seed, one for each use of the world.
STREAMS = {"base": 0, "lora": 1, "suite": 2}

#: Distinct captions of a texture without a shape under a moving camera.
BACKGROUNDS = len(world.TEXTURES) * (len(world.CAMERAS) - 1)
SUBJECT_DIMENSIONS = (
    "i2v_subject",
    "subject_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)
BACKGROUND_DIMENSIONS = (
    "i2v_background",
    "background_consistency",
    "aesthetic_quality",
    "imaging_quality",
)


def write_dataset(out: str | Path, *, stream: str, clips: int, workers: int = 1) -> None:
    """Render clips in the released dataset's layout: ``metadata.csv`` and ``train/*.mp4``."""
    out = Path(out)
    (out / "train").mkdir(parents=True, exist_ok=True)
    write = partial(_write_clip, out, stream)
    with ProcessPoolExecutor(workers) as pool:
        rows = list(
            tqdm(
                pool.map(write, range(1, clips + 1), chunksize=16),
                total=clips,
                desc="Rendering clips",
                unit="clip",
                mininterval=2,
            )
        )
    pd.DataFrame(rows).to_csv(out / "metadata.csv", index=False)


def _write_clip(out: Path, stream: str, number: int) -> dict[str, str]:
    rng = np.random.default_rng([STREAMS[stream], number])
    # The base is tried on captions that it was not trained on; a LoRA's clips may have any.
    scene = (
        world.held_out_scene(rng, held_out=False) if stream == "base" else world.sample_scene(rng)
    )
    name = f"train/video_{number:06d}.mp4"
    write_video(out / name, world.render(scene))
    return {"file_name": name, "text": scene.caption}


def write_suite(out: str | Path, *, subject: int, background: int, camera: int) -> None:
    """Render an image-to-video suite in VBench-I2V's layout, with the true continuations.

    Args:
        subject: prompts about a moving shape; the camera moves in half of them.
        background: prompts about a texture without a shape.
        camera: prompts about a camera motion; each run of seven shares one image, as in
            VBench-I2V.

    ``reference/<index>.mp4`` is the clip that an image was taken from: what a perfect model
    would make of image and prompt. VBench-I2V has no such thing.
    """
    if background > BACKGROUNDS:
        raise ValueError(
            f"the tiny world has {BACKGROUNDS} distinct background prompts, {background} were "
            "asked for"
        )
    out = Path(out)
    images, references = out / "crop" / "1-1", out / "reference"
    images.mkdir(parents=True, exist_ok=True)
    references.mkdir(exist_ok=True)

    entries = []
    written: set[str] = set()

    def add(scene: world.Scene, dimensions: tuple[str, ...], image_name: str) -> None:
        clip = world.render(scene)
        if image_name not in written:
            Image.fromarray(clip[0]).save(images / image_name, quality=98, subsampling=0)
            written.add(image_name)
        write_video(references / f"{len(entries):04d}.mp4", clip)
        entries.append(
            {
                "prompt_en": scene.caption,
                "dimension": list(dimensions),
                "image_type": "tiny world",
                "image_name": image_name,
            }
        )

    captions: set[str] = set()

    def draw(number: int, **choices) -> world.Scene:
        rng = np.random.default_rng([STREAMS["suite"], number])
        while True:  # captions are distinct, as a prompt names its videos in VBench
            scene = world.sample_scene(rng, **choices)
            if scene.caption not in captions:
                captions.add(scene.caption)
                return scene

    for i in range(subject):
        scene = draw(i, with_shape=True, moving=True)
        add(scene, SUBJECT_DIMENSIONS, f"subject {i:03d}.jpg")
    for i in range(background):
        moving = list(world.CAMERAS)[i % 6]
        scene = draw(1000 + i, camera=moving, with_shape=False)
        add(scene, BACKGROUND_DIMENSIONS, f"background {i:03d}.jpg")
    for i in range(camera):
        image, motion = divmod(i, len(world.CAMERAS))
        rng = np.random.default_rng([STREAMS["suite"], 2000 + image])
        still = world.sample_still_scene(rng)
        scene = replace(still, camera=list(world.CAMERAS)[motion])
        add(scene, ("camera_motion",), f"camera {image:03d}.jpg")
    (out / INFO_FILE).write_text(json.dumps(entries, indent=4))
