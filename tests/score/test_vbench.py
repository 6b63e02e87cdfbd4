"""Scoring by VBench's own code: names and refusals here, the nine dimensions in its environment.

The environment is large, so what needs it is skipped where it is absent; `make vbench` makes it.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from pusa.data.download import describe_file, write_record
from pusa.data.suite import INFO_FILE, SuitePrompt, read_suite
from pusa.data.video import write_video
from pusa.score import vbench as run
from pusa.score import vbench_weights as weights
from pusa.score.arithmetic import NAMES, prompt_sums
from pusa.score.files import COLUMNS
from tests.mini import COUNTS, snakemake, write_mini

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("PUSA_VBENCH_PYTHON", ROOT / ".venv-vbench/bin/python"))
CUT_OFF = ["unshare", "--map-root-user", "--net"]

SUBJECT = ["i2v_subject", "subject_consistency", "motion_smoothness", "dynamic_degree",
           "aesthetic_quality", "imaging_quality", "temporal_flickering"]  # fmt: skip
BACKGROUND = ["i2v_background", "background_consistency", "aesthetic_quality", "imaging_quality"]
#: Prompts that a shell, a file system or a pattern could trip over; frames; pixels per frame.
CLIPS = (
    ('-rf a "big" dog\'s 🐕 $(touch pwned), \\ * ?', SUBJECT, 17, 1),
    ("a cat: 100%d <b>; `ls` é", SUBJECT, 9, 3),
    ("a lake\twith a tab", BACKGROUND, 17, 2),
    ("a hill " + "long " * 40, BACKGROUND, 9, 0),
    ("a street, camera pans left", ["camera_motion"], 17, 2),
    ("a street, camera zooms in", ["camera_motion"], 9, 2),
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What importing VBench switches off stays off for these tests alone."""
    for name, value in run.OFFLINE.items():
        monkeypatch.setenv(name, value)


def write_clip(file: Path, *, frames: int = 17, shift: int = 2, height=128, width=128) -> None:
    """A picture that wanders to the right, as when the camera pans left."""
    coarse = np.random.default_rng(frames).integers(0, 255, (12, 12, 3)).astype(np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    write_video(file, np.stack([np.roll(picture, shift * n, axis=1) for n in range(frames)]))


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A folder with a suite and its videos."""
    folder = tmp_path_factory.mktemp("vbench")
    crop = folder / "suite/crop/1-1"
    crop.mkdir(parents=True)
    (folder / "videos").mkdir()
    info, rows = [], []
    for index, (prompt, dimensions, frames, shift) in enumerate(CLIPS):
        noise = np.random.default_rng(index).integers(0, 255, (128, 128, 3)).astype(np.uint8)
        Image.fromarray(noise).save(crop / f"{index}.png")
        info.append({"prompt_en": prompt, "dimension": dimensions, "image_name": f"{index}.png"})
        file = f"{index:04d}-1.mp4"
        write_clip(folder / "videos" / file, frames=frames, shift=shift)
        rows.append({"file": file, "index": index, "prompt": prompt, "sample": 1})
    (folder / "suite" / INFO_FILE).write_text(json.dumps(info))
    pd.DataFrame(rows).to_csv(folder / "videos/manifest.csv", index=False)
    return folder


# --- names ---


def prompt(text: str, index: int = 0, image: str = "image.jpg") -> SuitePrompt:
    return SuitePrompt(index, text, ("camera_motion",), Path(image))


def manifest(*rows: tuple[str, int, int]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["file", "index", "sample"])


def test_names_hold_the_prompt_letter_by_letter():
    texts = [text for text, *_ in CLIPS]
    prompts = [prompt(text, index) for index, text in enumerate(texts)]
    videos = manifest(*[(f"{n:04d}-{s}.mp4", n, s) for n in range(len(texts)) for s in (0, 4)])
    names = run.suite_names(prompts, videos)
    assert names["0001-4.mp4"] == "a cat: 100%d <b>; `ls` é-4.mp4"
    assert names == {
        f"{n:04d}-{s}.mp4": f"{text}-{s}.mp4" for n, text in enumerate(texts) for s in (0, 4)
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cats and/or dogs", "prompt 0 'cats and/or dogs' cannot name a file: it has a / or a NUL"),
        ("a\0b", r"prompt 0 'a\\x00b' cannot name a file"),
        ("x" * 300, "306 bytes with sample and suffix, expected at most 255"),
        ("🐕" * 63, "258 bytes"),
    ],
)
def test_prompts_that_cannot_name_a_file(text, message):
    with pytest.raises(ValueError, match=message):
        run.suite_names([prompt(text)], manifest(("0000-0.mp4", 0, 0)))


def test_the_longest_name():
    names = run.suite_names([prompt("x" * 249)], manifest(("0000-0.mp4", 0, 0)))
    assert len(names["0000-0.mp4"]) == 255


def test_one_name_for_two_videos():
    prompts = [prompt("caf\u00e9", 0), prompt("cafe\u0301", 1)]
    videos = manifest(("0000-0.mp4", 0, 0), ("0001-0.mp4", 1, 0))
    with pytest.raises(ValueError, match=r"0000-0\.mp4 and 0001-0\.mp4 are both"):
        run.suite_names(prompts, videos)


# --- refusals ---


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ({"width": 112}, r"clip\.mp4: 112x128 pixels, but VBench needs 128 or more a side"),
        ({"height": 96}, r"clip\.mp4: 128x96 pixels"),
        ({"frames": 2}, r"clip\.mp4: 2 frames, but VBench needs 3 or more"),
    ],
)
def test_clips_that_vbench_scores_wrong(tmp_path, clip, message):
    write_clip(tmp_path / "clip.mp4", **clip)
    with pytest.raises(ValueError, match=message):
        run.check_clips(["clip.mp4"], tmp_path)


def test_frames_are_counted(samples):
    files = ["0000-1.mp4", "0001-1.mp4"]
    assert run.check_clips(files, samples / "videos") == {files[0]: 17, files[1]: 9}


@pytest.mark.parametrize("content", [None, b"", b"not a video"])
def test_unreadable_clip(tmp_path, content):
    if content is not None:
        (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"clip\.mp4: cannot be read as a video"):
        run.check_clips(["clip.mp4"], tmp_path)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK"])
def test_images_that_are_not_rgb(tmp_path, mode):
    file = tmp_path / "image.tif"
    Image.new(mode, (128, 128)).save(file)
    with pytest.raises(ValueError, match=rf"image\.tif: mode {mode}, but VBench needs RGB"):
        run.check_images([prompt("a dog", image=str(file))])


@pytest.mark.parametrize("dimension", NAMES)
def test_missing_network(tmp_path, samples, dimension):
    *there, missing = weights.dimension_files(dimension)
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    prompts = read_suite(samples / "suite", height=128, width=128)
    videos = pd.read_csv(samples / "videos/manifest.csv")
    lacking = re.escape(str(tmp_path / missing))
    with pytest.raises(FileNotFoundError, match=rf"^{lacking} is missing; .*download"):
        run.score_videos(prompts, videos, "", dimension=dimension, weights=tmp_path, device="cpu")


def test_unknown_dimension(tmp_path):
    with pytest.raises(ValueError, match="unknown dimension 'beauty'; expected one of subject_"):
        run.score_videos(
            [], manifest(), tmp_path, dimension="beauty", weights=tmp_path, device="cpu"
        )


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (0, {"prompt": "a/b"}, "prompt 0 'a/b' cannot name a file"),
        (1, {"prompt": CLIPS[0][0]}, "0000-0.mp4 and 0001-0.mp4 are both"),
        (0, {"image": "grey.png"}, "grey.png: mode L, but VBench needs RGB"),
        (4, {"prompt": "a street, camera rolls"}, "prompt 4 .* names no camera motion"),
    ],
)
def test_a_suite_is_checked_before_it_is_sampled(samples, tmp_path, number, change, message):
    Image.new("L", (128, 128)).save(tmp_path / "grey.png")
    prompts = read_suite(samples / "suite", height=128, width=128)
    run.check_suite(prompts, 5)
    if "image" in change:
        change = {"image": tmp_path / change["image"]}
    prompts[number] = replace(prompts[number], **change)
    with pytest.raises(ValueError, match=message):
        run.check_suite(prompts, 5)


# --- what VBench returns ---


def results(**values: float) -> list[dict]:
    return [{"video_path": f"/tmp/x/{name}", "video_results": v} for name, v in values.items()]


def test_values_become_shares_by_our_names():
    files = {"a": "0000-0.mp4", "b": "0001-0.mp4"}
    values = run._read_results(results(b=True, a=False), files, "dynamic_degree")
    assert values == {"0000-0.mp4": 0.0, "0001-0.mp4": 1.0}
    values = run._read_results(results(a=75.0, b=50.0), files, "imaging_quality")
    assert values == {"0000-0.mp4": 0.75, "0001-0.mp4": 0.5}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (results(a=0.5), r"did not score every video once for i2v_subject: \['b'\]"),
        (results(a=0.5, b=0.5) + results(b=0.5), r"\['a', 'b', 'b'\]"),
        (results(a=0.5, b=float("nan")), r"i2v_subject of 0001-0\.mp4 is nan"),
    ],
)
def test_results_that_are_not_one_number_per_video(found, message):
    with pytest.raises(RuntimeError, match=message):
        run._read_results(found, {"a": "0000-0.mp4", "b": "0001-0.mp4"}, "i2v_subject")


@pytest.fixture
def pretend(monkeypatch, samples, tmp_path):
    """Score subject_consistency by a VBench that says what it is told to."""

    def score(say):
        monkeypatch.setattr(run, "PACKAGES", ())
        monkeypatch.setattr(run, "_check_files", lambda *_: None)
        monkeypatch.setattr(run, "_load_vbench", lambda *_: say)
        return run.score_videos(
            read_suite(samples / "suite", height=128, width=128),
            pd.read_csv(samples / "videos/manifest.csv"),
            samples / "videos",
            dimension="subject_consistency",
            weights=tmp_path,
            device="cpu",
        )

    return score


def test_vbench_is_told_where_videos_and_images_are(pretend, samples):
    told = []

    def say(info):
        told.extend(json.loads(Path(info).read_text()))
        links = [Path(video) for entry in told for video in entry["video_list"]]
        assert [link.resolve().name for link in links] == ["0000-1.mp4", "0001-1.mp4"]
        assert not (ROOT / "pwned").exists()
        values = dict(zip(links, (0.9, 0.6), strict=True))
        score = (16 * 0.9 + 8 * 0.6) / 24
        return score, [{"video_path": str(v), "video_results": values[v]} for v in links[::-1]]

    table, record = pretend(say)
    assert [(e["prompt_en"], e["dimension"]) for e in told] == [clip[:2] for clip in CLIPS[:2]]
    assert [e["image_name"] for e in told] == [
        str(samples / f"suite/crop/1-1/{n}.png") for n in (0, 1)
    ]
    assert list(table["value"]) == [0.9, 0.6]
    assert list(table["kind"]) == ["subject", "subject"]
    assert record["image_ratio"] == "1-1"


@pytest.mark.parametrize("score", [0.75, float("nan")])  # 0.75: as if all weighed the same
def test_vbench_that_adds_up_in_another_way(pretend, score):
    def say(info):
        videos = [v for e in json.loads(Path(info).read_text()) for v in e["video_list"]]
        return score, [
            {"video_path": v, "video_results": value}
            for v, value in zip(videos, (0.9, 0.6), strict=True)
        ]

    with pytest.raises(RuntimeError, match=r"subject_consistency .* but their mean 0\.8000000"):
        pretend(say)


# --- the environment ---


def test_conda_and_pip_install_the_same():
    lines = (ROOT / "envs/vbench-requirements.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    conda = yaml.safe_load((ROOT / "envs/vbench.yaml").read_text())
    assert conda["dependencies"][-1] == {"pip": pins}


def in_environment(code: str, *arguments: object) -> str:
    """What Python prints in VBench's environment, without a network where that can be had."""
    tried = subprocess.run([*CUT_OFF, "true"], capture_output=True)
    wrapper = [] if tried.returncode else CUT_OFF
    done = subprocess.run(
        [*wrapper, PYTHON, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # small networks: threads only wait
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


#: Score, and say what went wrong and whether certificates are checked after it.
ATTEMPT = """
import ssl, sys
import pandas as pd
from pusa.data.suite import read_suite
from pusa.score.vbench import score_videos

suite, samples, weights, dimension = sys.argv[1:]
prompts, videos = read_suite(suite, height=128, width=128), pd.read_csv(samples + "/manifest.csv")
try:
    score_videos(prompts, videos, samples, dimension=dimension, weights=weights, device="cpu")
except Exception as error:
    print("failed:", error)
print("certificates:", ssl._create_default_https_context().verify_mode.name)
"""
needs_vbench = pytest.mark.skipif(
    not PYTHON.is_file(), reason=f"no {PYTHON}; `make vbench` makes VBench's environment"
)


@pytest.fixture(scope="module")
def standins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    in_environment(
        "import sys; from pathlib import Path; from tests.vbench_standins import write_weights; "
        "write_weights(Path(sys.argv[1]))",
        folder,
    )
    return folder


@needs_vbench
@pytest.mark.parametrize("dimension", NAMES)
def test_vbench_scores_offline_as_it_does_itself(samples, standins, tmp_path, dimension):
    in_environment(
        "import sys; from tests.vbench_standins import score_twice; score_twice(*sys.argv[1:])",
        *(samples / "suite", samples / "videos", standins, dimension, tmp_path),
    )
    assert (tmp_path / "asked.txt").read_text() == ""
    shards = [pd.read_csv(tmp_path / f"shard{n}.csv") for n in (0, 1)]
    table = pd.concat(shards).sort_values("index", ignore_index=True)
    asked = [n for n, (_, dimensions, *_) in enumerate(CLIPS) if dimension in dimensions]
    assert list(table.columns) == list(COLUMNS)
    assert list(table["index"]) == asked
    assert list(table["file"]) == [f"{n:04d}-1.mp4" for n in asked]
    assert list(table["frames"]) == [CLIPS[n][2] for n in asked]
    assert set(table["dimension"]) == {dimension} and set(table["scorer"]) == {"vbench"}
    assert table["value"].between(0, 1 + 1e-6).all()  # a cosine of likes may be a hair over 1
    if dimension == "camera_motion":  # both clips pan left, the second should zoom in
        assert list(table["value"]) == [1, 0]

    unasked = pd.read_csv(tmp_path / "unasked.csv")
    assert list(unasked.columns) == list(COLUMNS) and unasked.empty
    own = json.loads((tmp_path / "official_eval_results.json").read_text())[dimension]
    score, per_video = own[0], own[-1]
    value, weight = (sums[dimension].sum() for sums in prompt_sums(table, [dimension]))
    assert value / weight == pytest.approx(score, abs=1e-5)
    scale = 100 if dimension == "imaging_quality" else 1
    assert {Path(r["video_path"]).name: float(r["video_results"]) for r in per_video} == {
        f"{CLIPS[row['index']][0]}-1.mp4": pytest.approx(scale * row["value"], rel=1e-5)
        for row in table.to_dict("records")
    }

    record = json.loads((tmp_path / "record.json").read_text())
    assert record["scorer"] == "vbench" and record["dimensions"] == [dimension]
    assert record["imaging_quality_mode"] == "longer" and record["image_ratio"] == "1-1"
    assert record["device"] and record["packages"]["vbench"] == "0.1.5"
    assert set(record["packages"]) == set(run.PACKAGES)


@needs_vbench
def test_environment_is_checked():
    in_environment("from pusa.score.vbench import check_environment; check_environment()")


def test_another_environment_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "vbench", None)
    monkeypatch.setitem(sys.modules, "vbench2_beta_i2v", None)
    with pytest.raises(ImportError):
        run.check_environment()


class Payload:
    """A pickle that leaves a file where it is loaded."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@needs_vbench
def test_weights_run_no_code(samples, tmp_path):
    raft = tmp_path / "raft_model/models/raft-things.pth"
    raft.parent.mkdir(parents=True)
    torch.save({"module.x": Payload(tmp_path / "pwned")}, raft)
    said = in_environment(
        ATTEMPT, samples / "suite", samples / "videos", tmp_path, "dynamic_degree"
    )
    assert "failed: Weights only load failed" in said
    assert not (tmp_path / "pwned").exists()


@needs_vbench
def test_certificates_stay_on_when_a_network_cannot_be_loaded(samples, tmp_path):
    for name in weights.dimension_files("camera_motion"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("raise RuntimeError('broken')")
    said = in_environment(ATTEMPT, samples / "suite", samples / "videos", tmp_path, "camera_motion")
    assert "failed: broken" in said
    assert "certificates: CERT_REQUIRED" in said


#: `python -m pusa …` on stand-ins: DreamSim's networks are tiny only if its code is told so.
TOLD = """#!/bin/sh
while [ "$1" != pusa ]; do shift; done; shift
exec {python} -c 'from tests.vbench_standins import shrink_dreamsim; shrink_dreamsim()
from pusa.cli import main; main()' "$@"
"""


@needs_vbench
def test_the_workflow_scores_by_vbench(standins, tmp_path):
    """From sampling to a setting's scores, a job for each dimension."""
    files = [p.relative_to(standins).as_posix() for p in standins.rglob("*") if p.is_file()]
    write_record(standins, {}, {name: describe_file(standins / name) for name in files})
    python = tmp_path / "environment/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(TOLD.format(python=PYTHON))
    python.chmod(0o755)
    config = write_mini(
        tmp_path,
        clip={"height": 128, "width": 128},
        score={
            "scorer": "vbench",
            "weights": str(standins),
            "environment": str(tmp_path / "environment"),
        },
    )
    scores = tmp_path / "scores/tables/base-i2v-steps2.csv"
    done = snakemake(config, "--show-failed-logs", "--", str(scores))
    assert done.returncode == 0, done.stdout[-4000:]
    table = pd.read_csv(scores)
    assert set(table["dimension"]) == set(NAMES) and set(table["scorer"]) == {"vbench"}
    assert set(table["frames"]) == {9}
    assert table.groupby("kind")["file"].nunique().to_dict() == COUNTS
    record = json.loads(scores.with_suffix(".json").read_text())
    assert record["image_ratio"] == "1-1" and record["packages"]["torch"] == "2.5.1"


def test_the_workflow_misses_the_environment_before_it_samples(tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "download.json").write_text("{}")
    config = write_mini(
        tmp_path,
        clip={"height": 128, "width": 128},
        score={
            "scorer": "vbench",
            "weights": str(weights),
            "environment": str(tmp_path / "not one"),
        },
    )
    done = snakemake(config, "--", str(tmp_path / "scores/vbench_checked"))
    assert done.returncode != 0
    assert "not one/bin/python does not exist: VBench runs in an environment" in done.stdout
    scores = str(tmp_path / "scores/tables/base-i2v-steps2.csv")
    planned = snakemake(config, "--dry-run", "--printshellcmds", "--", scores).stdout
    assert planned.count(f"'{tmp_path}/not one/bin/python' -W ignore -m pusa score ") == len(NAMES)
