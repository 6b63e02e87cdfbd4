import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file

from pusa.config import read_config
from pusa.data.manifest import write_manifest
from pusa.data.video import write_video
from pusa.digests import digest_file, digest_folder
from pusa.layout import read_layout
from pusa.made_from import check_made_from
from pusa.models.folder import digest_text_encoder, digest_weights
from tests.mini import ROOT

OTHER = "0123456789abcdef"


@pytest.fixture
def files(tmp_path, model, baseline):
    """The demo's files in a folder of their own, with models that can be spoilt."""
    config = read_config(yaml.safe_load((ROOT / "config/demo.yaml").read_text()))
    sections = {"results": str(tmp_path / "results")}
    for name, folder in {"model": model, "baseline": baseline}.items():
        shutil.copytree(folder, tmp_path / name)
        at = {"source": "folder", "path": str(tmp_path / name)}
        sections[name] = getattr(config, name).model_copy(update=at)
    files = read_layout(config)  # whose ranks are too high for these models
    return replace(files, config=config.model_copy(update=sections))


def digests(folder):
    return {
        "transformer": digest_weights(folder / "transformer"),
        "vae": digest_folder(folder / "vae"),
        "text_encoder": digest_text_encoder(folder),
    }


def write_run(files, told):
    run = Path(files.trained(next(iter(files.runs)), "run.json"))
    run.parent.mkdir(parents=True)
    run.write_text(json.dumps({"base": told["transformer"]}))
    return run.parent


def write_index(files, told):
    index = Path(files.path("cache/index.json"))
    index.parent.mkdir(parents=True)
    index.write_text(json.dumps({"made": told, "clips": []}))
    return index


def write_prompts(files, told):
    file = Path(files.path("cache/prompts.safetensors"))
    file.parent.mkdir(parents=True)
    save_file({"x": torch.zeros(1)}, file, {"text_encoder": told["text_encoder"]})
    return file


def write_samples(manifest, told):
    manifest = Path(manifest)
    manifest.parent.mkdir(parents=True)
    video = manifest.parent / "0000-0.mp4"
    write_video(video, np.zeros((5, 16, 16, 3), np.uint8), told)
    row = {"file": video.name, "index": 0, "prompt": "a", "sample": 0, "sha256": digest_file(video)}
    write_manifest(pd.DataFrame([row]), manifest)
    return manifest.parent


def write_adapted(files, told):
    origin = told | {"transformer": {"weights": told["transformer"]}}
    return write_samples(files.manifest("tables", files.main.name, 0), origin)


def write_task(files, told):
    origin = told | {"transformer": {"weights": told["transformer"]}}
    return write_samples(files.task_manifest("start_end"), origin)


def write_baseline(files, told):
    setting = next(s for s in files.compared if s.model == "wan_i2v")
    origin = {"baseline": told["transformer"], "vae": told["vae"]}
    return write_samples(files.manifest("tables", setting.name, 0), origin)


@pytest.mark.parametrize(
    ("write", "part"),
    [
        (write_run, "transformer"),
        (write_index, "vae"),
        (write_index, "text_encoder"),
        (write_prompts, "text_encoder"),
        (write_adapted, "vae"),
        (write_adapted, "transformer"),
        (write_task, "text_encoder"),
        (write_baseline, "vae"),
        (write_baseline, "transformer"),
    ],
)
def test_a_part_that_was_exchanged_is_named(files, tmp_path, write, part):
    check_made_from(files)  # nothing is made yet
    folder = tmp_path / ("baseline" if write is write_baseline else "model")
    made = write(files, digests(folder))
    check_made_from(files)
    weights = next((folder / part).glob("*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    name = part.replace("_", " ")
    told = (
        rf"{made} was made from another {name}.* than that of {folder}: expected SHA-256 \w{{12}}, "
    )
    with pytest.raises(ValueError, match=told):
        check_made_from(files)
    shutil.rmtree(folder / part)  # for its room
    check_made_from(files)


def test_what_says_nothing_of_its_model_is_not_compared(files):
    write_samples(files.manifest("tables", files.main.name, 0), {})
    write_samples(files.manifest("tables", "still-i2v", 0), {"bound": "still"})
    Path(files.path("cache")).mkdir()
    for damaged in ("cache/prompts.safetensors", "cache/index.json"):
        Path(files.path(damaged)).write_text("damaged")
    check_made_from(files)


def test_a_transformer_that_was_trained_whole_is_not_the_base(files, tmp_path):
    sheet = pd.read_csv(files.config.experiments, sep="\t", comment="#", dtype=str)
    sheet = sheet[(sheet["table"] == "1") & sheet["group"].isin(["ours", "baseline"])]
    sheet[["rank", "alpha"]] = ""
    sheet.to_csv(tmp_path / "whole.tsv", sep="\t", index=False)
    config = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
    config["train"]["method"] = "full"
    config |= {"results": files.config.results, "experiments": str(tmp_path / "whole.tsv")}
    whole = read_layout(read_config(config))
    assert whole.main.rank is None
    origin = {"transformer": {"weights": OTHER}}
    write_samples(whole.manifest("tables", whole.main.name, 0), origin)
    check_made_from(whole)
