"""The workflow itself, run by snakemake as a user runs it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pusa.data.video import read_settings, read_video, write_video
from pusa.digests import digest_file
from pusa.models.lora import convert_lora
from tests.mini import ROOT, activated, snakemake, write_mini

SHEET = """\
table	group	published	prompts	model	task	rank	iteration	alpha	steps
1	baseline	Wan-I2V	subset	wan_i2v	i2v				2
1	baseline		subset	base	i2v				2
1	ours	Ours	all	pusa	i2v	4	4	1.4	2
2	lora	512/750/1.4/10	subset	pusa	i2v	4	4	1.4	2
2	steps	512/900/1.4/10	subset	pusa	i2v	4	4	1.4	2
2	iterations	512/150/1.4/10	subset	pusa	i2v	4	2	1.4	2
2	iterations	512/900/1.4/10	subset	pusa	i2v	4	4	1.4	2
	control		subset	control	i2v	4	4	1.4	2
	text_to_video		subset	pusa	t2v	4	4	1.4	2
"""
MAIN = "pusa-rank4-seed0-iteration4-alpha1.4-i2v-steps2"
MERGED = "pusa-rank4-seed0-iteration4-alpha1.4"
MORE = {"subject": 3, "background": 2, "camera": 2}


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> Path:
    """A configuration of the same workflow that takes a minute or two; its results folder.

    The suite has one prompt more than the subset and than a job makes videos, and clips are long
    enough for all tasks.
    """
    results = tmp_path_factory.mktemp("mini") / "results"
    write_mini(
        results,
        clip={"frames": 25},
        sample={"videos_per_job": 6},
        score={"videos_per_job": 6},
        effects={"prompts": MORE},
    )
    (results / "mini.tsv").write_text(SHEET)
    return results


def run(mini: Path, *arguments: str) -> subprocess.CompletedProcess:
    return snakemake(mini / "mini.yaml", *arguments)


def dry_run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", "--dry-run", *arguments]
    environment = activated(dict(os.environ))
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def planned_rules(mini: Path) -> set[str]:
    """Rules that a dry run would execute."""
    dry = run(mini, "--dry-run")
    assert dry.returncode == 0, dry.stdout
    return set(re.findall(r"^(?:local)?rule (\w+):", dry.stdout, re.MULTILINE))


def test_end_to_end(mini):
    finished = run(mini)
    assert finished.returncode == 0, finished.stdout[-4000:]

    # every reported number is there, each setting computed once
    table = pd.read_csv(mini / "tables/table2.csv")
    here = table[table["source"] == "here"].dropna(subset="total")  # others were not run
    assert len(here) == 4 and here[["total_low", "total_high"]].notna().all(axis=None)
    # what is compared says what it is compared with
    assert set(table["source"]) == {"published", "here", "here - main"}
    assert len(list((mini / "scores/tables").glob("*.csv"))) == 6
    # the setting of both tables is sampled once, on all prompts, and each row counts its own
    ours = "pusa, rank 4, iteration 4, alpha 1.4, 2 steps"
    table1 = pd.read_csv(mini / "tables/table1.csv").set_index("model")
    assert table1.loc[ours, "videos"] == 7
    assert set(here["videos"]) == {6}
    assert len(list((mini / "samples/tables" / MAIN).glob("shard*.csv"))) == 2
    assert len(list((mini / "scores/tables" / MAIN / "all").glob("shard*.csv"))) == 2
    assert {"base + VTA, 2 steps", "Wan-I2V, 2 steps", ours} <= set(table1.index)
    # every figure of the paper, for screen and print; Figure 2 is a diagram
    for kind in ("png", "pdf"):
        drawn = {f.stem for f in (mini / "figures").glob(f"figure*.{kind}")}
        assert drawn == {f"figure{n}" for n in (1, *range(3, 14))}

    # a second run does nothing
    assert planned_rules(mini) == set()

    # deleting one file remakes only what depends on it
    scores = mini / "scores/tables/base-i2v-steps2.csv"
    scores.rename(mini / "kept")
    assert planned_rules(mini) == {
        "gather_scores",
        "make_tables",
        "claims",
        "price",
        "measure_effects",
        "record_provenance",
        "make_overview",
        "plot_scores",
        "plot_figure1",
        "all",
    }
    (mini / "kept").rename(scores)

    # the report is one self-contained page
    report = mini / "report.html"
    assert run(mini, "--report", str(report)).returncode == 0
    page = report.read_text()
    for shown in (
        *(f"Figure {n}" for n in (1, *range(3, 14))),
        *("Table 1", "Table 2", "Contact sheet", "not VBench numbers"),
        *("Audit of the published tables", "Claims, on the published numbers"),
    ):
        assert shown in page


@pytest.mark.slow
def test_a_first_look(mini):
    """A page of a few videos, which changes nothing of the rest, and is remade in part."""
    if not (mini / "trained/pusa-rank4-seed0/iteration_4.safetensors").exists():
        pytest.skip("needs the results of test_end_to_end")
    done = run(mini, "--", "first_look")
    assert done.returncode == 0, done.stdout[-4000:]
    page = mini / "first_look/gallery"
    videos = sorted(page.glob("videos/*/*.mp4"))
    assert {v.parent.name for v in videos} == {MAIN, "base-i2v-steps2", "wan_i2v-i2v-steps2"}
    assert len(videos) == 12 and "A first look" in (page / "index.html").read_text()
    # the very videos of the tables
    tables = mini / "samples/tables"
    for video in videos:
        same = tables / video.parent.name / video.name
        assert np.array_equal(read_video(video), read_video(same))
    assert planned_rules(mini) == set()

    (mini / "samples/first_look" / MAIN / videos[0].name).unlink()
    dry = run(mini, "--dry-run", "--", "first_look")
    planned = set(re.findall(r"^(?:local)?rule (\w+):", dry.stdout, re.MULTILINE))
    assert planned == {"sample_suite", "gallery_first_look", "first_look"}


@pytest.mark.slow
def test_finished_videos_survive_an_interruption(mini):
    """Only the manifest of a sampling job is lost; its videos are not made again."""
    manifest = mini / "samples/tables/base-i2v-steps2/shard0.csv"
    if not manifest.exists():
        pytest.skip("needs the results of test_end_to_end")
    videos = sorted(manifest.parent.glob("*.mp4"))
    before = {v.name: v.stat().st_mtime_ns for v in videos[1:]}
    manifest.unlink()
    videos[0].unlink()
    assert run(mini, "--", str(manifest)).returncode == 0
    assert videos[0].exists()
    assert before == {v.name: v.stat().st_mtime_ns for v in videos[1:]}


@pytest.mark.slow
def test_released_lora_takes_the_place_of_training(mini, tmp_path):
    """A LoRA in the authors' layout gives the very scores of the training that it came from."""
    trained = mini / "trained/pusa-rank4-seed0/iteration_4.safetensors"
    if not trained.exists():
        pytest.skip("needs the results of test_end_to_end")
    convert_lora(trained, tmp_path / "pusa_v1.safetensors", to="authors")
    lora = {"source": "released", "path": str(tmp_path), "file": "pusa_v1.safetensors"}
    suite = {"source": "folder", "path": str(mini / "suite")}
    file = write_mini(tmp_path / "results", suite=suite, clip={"frames": 25})
    config = yaml.safe_load(file.read_text()) | {"lora": lora | {"rank": 4, "iteration": 4}}
    config["baseline"] = {"source": "folder", "path": str(mini / "baseline")}
    del config["train"], config["dataset"]
    file.write_text(yaml.safe_dump(config))

    score = f"scores/tables/{MAIN}.csv".replace("seed0", "released")
    done = snakemake(file, "--", str(tmp_path / "results" / score))
    assert done.returncode == 0, done.stdout[-4000:]
    assert not (tmp_path / "results/training").exists()
    files = (tmp_path / "results" / score, mini / f"scores/tables/{MAIN}.csv")
    released, own = (pd.read_csv(file).set_index(["file", "dimension"]) for file in files)
    # The videos say what they were made with, so that their files differ.
    own = own.loc[released.index].drop(columns="sha256")
    pd.testing.assert_frame_equal(released.drop(columns="sha256"), own)


@pytest.mark.slow
def test_full_fine_tuning(mini, tmp_path):
    """The whole transformer is trained, and sampled without a LoRA."""
    if not (mini / "cache/index.json").exists():
        pytest.skip("needs the results of test_end_to_end")
    file = write_mini(tmp_path / "results", suite={"source": "folder", "path": str(mini / "suite")})
    config = yaml.safe_load(file.read_text())
    config["dataset"]["path"] = str(mini / "dataset")
    config["train"]["method"] = "full"
    file.write_text(yaml.safe_dump(config))
    sheet = SHEET.splitlines()[:4]
    sheet[3] = "1\tours\tOurs\tsubset\tpusa\ti2v\t\t2\t\t2"
    (tmp_path / "results/mini.tsv").write_text("\n".join(sheet) + "\n")

    manifest = tmp_path / "results/samples/tables/pusa-full-seed0-iteration2-i2v-steps2/shard0.csv"
    done = snakemake(file, "--", str(manifest))
    assert done.returncode == 0, done.stdout[-4000:]
    assert (tmp_path / "results/trained/pusa-full-seed0/iteration_2/config.json").exists()
    assert len(pd.read_csv(manifest)) == 6


@pytest.mark.slow
def test_a_study_that_grows_keeps_what_it_has(tmp_path):
    """More prompts and samples, otherwise divided among jobs: only the rest is made and scored."""
    name = "base-i2v-steps2"
    results = tmp_path / "results"
    scores = results / f"scores/tables/{name}.csv"
    per_job = {"videos_per_job": 4}

    def grow(counts, samples):
        """Videos by the time they were written, their scores, and how many were scored anew."""
        config = write_mini(
            results,
            suite={"subset": counts},
            effects={"prompts": {"subject": 4, "background": 2, "camera": 2}},
            sample=per_job | {"samples": samples},
            score=per_job,
        )
        done = snakemake(config, "--", str(scores))
        assert done.returncode == 0, done.stdout[-4000:]
        videos = (results / f"samples/tables/{name}").glob("*.mp4")
        logs = (results / f"logs/score_videos/tables/{name}/all").glob("*.log")
        ends = [re.findall(r"100%.* (\d+)/\d+ ", log.read_text()) for log in logs]
        table = pd.read_csv(scores).set_index(["file", "dimension"])
        return {v: v.stat().st_mtime_ns for v in videos}, table, sum(int(e[-1]) for e in ends if e)

    videos, table, scored = grow({"subject": 2, "background": 2, "camera": 2}, 1)
    assert len(videos) == scored == 6
    more_videos, more, scored = grow({"subject": 3, "background": 2, "camera": 2}, 2)
    assert len(more_videos) == 14
    assert scored == 8
    assert videos == {file: more_videos[file] for file in videos}
    pd.testing.assert_frame_equal(more.loc[table.index], table)


#: One file of each kind, and the rule that makes it.
DELETED = {
    "dataset/metadata.csv": "render_dataset",
    "dataset/train/video_000003.mp4": "render_dataset",
    "suite/crop/1-1/subject 001.jpg": "render_suite",
    "suite/reference/0000.mp4": "render_suite",
    "cache/latents-00000.safetensors": "cache_latents",
    "cache/captions.safetensors": "cache_latents",
    "cache/prompts.safetensors": "cache_prompts",
    "baseline/transformer/diffusion_pytorch_model.safetensors": "train_tiny_baseline",
    "baseline/vae/config.json": "train_tiny_baseline",
    "trained/pusa-rank4-seed0/iteration_4.safetensors": "train_pusa_rank4_seed0",
    "trained/pusa-rank4-seed0/validation.csv": "train_pusa_rank4_seed0",
    "trained/control-rank4-seed0/run.json": "train_control_rank4_seed0",
    f"merged/{MERGED}/diffusion_pytorch_model.safetensors": "merge",
    f"merged/{MERGED}/config.json": "merge",
    f"samples/tables/{MAIN}/shard1.csv": "sample_suite",
    f"samples/tables/{MAIN}/0001-0.mp4": "sample_suite",
    "samples/tables/wan_i2v-i2v-steps2/0000-0.mp4": "sample_suite",
    "samples/tasks/start_end/0002.mp4": "sample_task",
    f"scores/tables/{MAIN}/all/shard0.csv": "score_videos",
    f"scores/tables/{MAIN}/all/shard1.json": "score_videos",
    f"scores/tables/{MAIN}.json": "gather_scores",
    "attention/base-mass.csv": "attention",
    "drift/pusa.json": "drift",
    "tables/costs.csv": "measure_costs",
    "tables/table2.tex": "make_tables",
    "tables/claims.md": "claims",
    "tables/price.csv": "price",
    "tables/audit.csv": "audit",
    "tables/provenance.json": "record_provenance",
    "tables/overview.html": "make_overview",
    "effects/tables.csv": "measure_effects",
    "figures/figure3.pdf": "plot_figure3",
    "figures/contact_sheet.mp4": "make_contact_sheet",
    "figures/videos_models.html": "gallery_page",
    "gallery/index.html": "gallery",
    "gallery/videos/base-i2v-steps2/0000-0.mp4": "gallery",
}


OVERWRITTEN = (
    "dataset/train/video_000003.mp4",
    "suite/crop/1-1/subject 001.jpg",
    "cache/latents-00000.safetensors",
    "baseline/transformer/diffusion_pytorch_model.safetensors",
    f"merged/{MERGED}/diffusion_pytorch_model.safetensors",
    f"samples/tables/{MAIN}/0001-0.mp4",
    "gallery/videos/base-i2v-steps2/0000-0.mp4",
    f"scores/tables/{MAIN}/all/shard0.csv",
    "attention/base-mass.csv",
    "tables/table2.tex",
    "effects/tables.csv",
    "figures/figure3.pdf",
)


@pytest.mark.slow
def test_what_is_deleted_or_overwritten_is_remade(mini):
    """A dry run says so, whatever it is, and leaves all as it is; the next run makes it again."""
    if not (mini / "gallery/index.html").exists():
        pytest.skip("needs the results of test_end_to_end")
    assert run(mini).returncode == 0
    before = {
        f: digest_file(f)
        for f in mini.rglob("*")
        if f.is_file() and not {"logs", "tensorboard"}.intersection(f.parts)
        if not f.name.startswith(".checked-")  # when videos were looked at last
    }
    unnoticed = []
    for name, rule in DELETED.items():
        kept = mini.parent / "kept"
        (mini / name).rename(kept)
        unnoticed += [] if rule in planned_rules(mini) else [name]
        kept.rename(mini / name)
    # and what is something else now, though as large and as old
    for name in OVERWRITTEN:
        file = mini / name
        content, times = file.read_bytes(), file.stat()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        unnoticed += [] if DELETED[name] in planned_rules(mini) else [name]
        file.write_bytes(content)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert unnoticed == [], unnoticed
    assert planned_rules(mini) == set()
    assert before == {f: digest_file(f) for f in before}

    for name in DELETED:
        (mini / name).unlink()
    done = run(mini)
    assert done.returncode == 0, done.stdout[-4000:]
    assert planned_rules(mini) == set()
    assert [f for f in before if not f.exists()] == []
    # A video that is made in a batch of its own may be rounded otherwise, and so its scores.
    made = ("dataset", "suite", "cache", "attention", "drift")
    kept = {*mini.glob("samples/*/*/*.mp4")} - {mini / name for name in DELETED}
    for file, digest in before.items():
        if file in kept or file.relative_to(mini).parts[0] in made:
            assert digest_file(file) == digest, file


@pytest.mark.slow
def test_an_overwritten_video_is_remade(mini):
    """Reversed, under its own record, and as old as it was; and two that were swapped."""
    folder = mini / f"samples/tables/{MAIN}"
    if not (folder / "shard0.csv").exists():
        pytest.skip("needs the results of test_end_to_end")
    first, second, third = sorted(folder.glob("*.mp4"))[:3]
    before = {file: digest_file(file) for file in (first, second, third)}
    frames = {file: read_video(file) for file in before}
    times = first.stat()
    write_video(first, read_video(first)[::-1], read_settings(first))
    os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))
    second.rename(folder / "kept")
    third.rename(second)
    (folder / "kept").rename(third)
    changed = {file: digest_file(file) for file in before}
    assert all(changed[file] != digest for file, digest in before.items())

    assert {"sample_suite", "score_videos", "gather_scores"} <= planned_rules(mini)
    assert changed == {file: digest_file(file) for file in before}
    assert run(mini).returncode == 0
    # In another batch they may be rounded otherwise.
    for file, expected in frames.items():
        assert np.abs(read_video(file).astype(int) - expected).mean() < 1
    assert planned_rules(mini) == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "rules"),
    [
        (
            "config.yaml",
            ["download_model", "download_dataset", "train_pusa_rank256_seed0", "plot_figure12"],
        ),
        (
            "wan1.3b.yaml",
            ["download_model", "download_dataset", "train_pusa_rank256_seed0", "plot_figure12"],
        ),
        ("config.yaml 480p.yaml", ["download_baseline", "train_pusa_rank512_seed0"]),
        ("released.yaml", ["download_model", "download_lora", "convert", "plot_figure13"]),
    ],
)
def test_large_configs_build_their_dags(config, rules):
    dry = dry_run("--configfile", *(f"config/{file}" for file in config.split()))
    assert dry.returncode == 0, dry.stderr
    for rule in rules:
        assert re.search(rf"^{rule} +1$|^{rule} +3$", dry.stdout + dry.stderr, re.MULTILINE)
    assert "of them sampled for Table 2, each made once" in dry.stderr
    if config == "released.yaml":  # nothing is trained, and no clips are left for tasks
        assert "train_" not in dry.stdout + dry.stderr
        assert "sample_task" not in dry.stdout + dry.stderr


@pytest.mark.slow
def test_download_target_holds_all_that_needs_a_network():
    dry = dry_run("--printshellcmds", "--", "download")
    assert dry.returncode == 0, dry.stderr
    found = set(re.findall(r"^(?:local)?rule (\w+):", dry.stdout + dry.stderr, re.MULTILINE))
    needed = {"model", "baseline", "dataset", "vbench"}
    assert found == {"download", *(f"download_{name}" for name in needed)}
    (line,) = (
        line
        for line in dry.stdout.splitlines()
        if "models/Wan2.1-I2V-14B-720P" in line and "pusa download" in line
    )
    assert "image_encoder" in line and "text_encoder" not in line and "tokenizer" not in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trian": {}}, "config key trian is unknown"),
        ({"clip": {"frames": 32, "height": 64, "width": 64, "text_tokens": 20}}, "4k+1"),
        ({"experiments": "no/such.tsv"}, "experiments sheet no/such.tsv does not exist"),
        ({"model": {"source": "folder", "path": "no/such"}}, "model folder no/such does not exist"),
        ({"tasks": {"dataset": "no/such"}}, "tasks.dataset: found no metadata.csv in no/such"),
        ({"train": {"ranks": [4]}}, "config key train.ranks is no more: it is the column rank of"),
    ],
)
def test_bad_config_stops_before_any_job(tmp_path, change, message):
    config = yaml.safe_load((ROOT / "config/demo.yaml").read_text()) | change
    config["results"] = str(tmp_path / "results")
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(config))
    done = snakemake(tmp_path / "bad.yaml")
    assert done.returncode != 0
    assert message in done.stdout
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_rules_do_not_need_a_shell_safe_path(tmp_path):
    """A results folder with spaces and quotes goes through every rule's shell command."""
    if shutil.which("bash") is None:
        pytest.skip("snakemake's shell commands need bash")
    results = tmp_path / "it's a test"
    config = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
    config |= {"results": str(results)}
    config["dataset"] |= {"path": str(results / "data set"), "clips": 3}
    config["train"]["validation_clips"] = 1
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = snakemake(tmp_path / "config.yaml", "--", str(results / "cache/index.json"))
    assert done.returncode == 0, done.stdout[-3000:]
    assert (results / "cache/index.json").exists()
