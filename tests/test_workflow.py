"""The workflow itself, run by snakemake as a user runs it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[1]
MODEL = "pusa/tiny/model"
SHEET = """\
table	group	published	model	task	rank	iteration	alpha	steps
1	baseline		base	i2v				2
1	ours	Ours	pusa	i2v	4	4	1.4	2
2	lora	256/750/1.4/10	pusa	i2v	2	4	1.4	2
2	lora	512/750/1.4/10	pusa	i2v	4	4	1.4	2
2	steps	512/900/1.4/5	pusa	i2v	4	4	1.4	1
2	steps	512/900/1.4/10	pusa	i2v	4	4	1.4	2
2	iterations	512/150/1.4/10	pusa	i2v	4	2	1.4	2
2	iterations	512/900/1.4/10	pusa	i2v	4	4	1.4	2
	control		control	i2v	4	4	1.4	2
"""


def snakemake(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    # As in an activated environment: the rules' commands are found beside this Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> Path:
    """A configuration of the same workflow that takes a minute or two; its results folder."""
    results = tmp_path_factory.mktemp("mini") / "results"
    results.mkdir()
    counts = {"subject": 2, "background": 2, "camera": 2}
    config = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
    config |= {"results": str(results), "experiments": str(results / "sheet.tsv")}
    config["dataset"] |= {"path": str(results / "dataset"), "clips": 10}
    config["suite"] |= {"path": str(results / "suite"), "prompts": counts}
    config["clip"]["frames"] = 9
    config["train"] |= {"ranks": [2, 4], "iterations": [2, 4], "validation_clips": 2}
    config["effects"] = {"seeds": [0, 1], "prompts": counts}
    (results / "sheet.tsv").write_text(SHEET)
    (results / "config.yaml").write_text(yaml.safe_dump(config))
    return results


def run(mini: Path, *arguments: str) -> subprocess.CompletedProcess:
    return snakemake(*arguments, "--configfile", str(mini / "config.yaml"))


def planned_rules(mini: Path) -> set[str]:
    """Rules that a dry run would execute."""
    dry = run(mini, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    return set(re.findall(r"^(?:local)?rule (\w+):", dry.stdout + dry.stderr, re.MULTILINE))


@pytest.mark.workflow
def test_end_to_end(mini):
    finished = run(mini)
    assert finished.returncode == 0, finished.stderr[-4000:]

    # every reported number is there, each setting computed once
    table = pd.read_csv(mini / "tables/table2.csv")
    here = table[table["source"] == "here"]
    assert len(here) == 6 and here["total"].notna().all()
    assert len(list((mini / "scores/tables").glob("*.csv"))) == 6
    assert {"base + VTA, 2 steps", "pusa, rank 4, iteration 4, alpha 1.4, 2 steps"} <= set(
        pd.read_csv(mini / "tables/table1.csv")["model"]
    )
    # merged checkpoints are temporary
    assert not any((mini / "merged").glob("*"))

    # a second run does nothing
    assert planned_rules(mini) == set()

    # deleting one file remakes only what depends on it
    (mini / "scores/tables/base-i2v-steps2.csv").unlink()
    assert planned_rules(mini) == {
        "score_videos",
        "make_tables",
        "measure_effects",
        "plot_scores",
        "all",
    }
    assert run(mini).returncode == 0

    # the report is one self-contained page
    report = mini / "report.html"
    assert run(mini, "--report", str(report)).returncode == 0
    page = report.read_text()
    for shown in ("Figure 3", "Table 1", "Table 2", "Contact sheet", "not VBench numbers"):
        assert shown in page


@pytest.mark.workflow
def test_finished_videos_survive_an_interruption(mini):
    """Only the manifest of a sampling job is lost; its videos are not made again."""
    manifest = mini / "samples/tables/base-i2v-steps2/shard0.csv"
    if not manifest.exists():
        pytest.skip("needs the results of test_end_to_end")
    videos = sorted(manifest.parent.glob("*.mp4"))
    before = {v.name: v.stat().st_mtime_ns for v in videos[1:]}
    manifest.unlink()
    videos[0].unlink()
    assert run(mini, str(manifest)).returncode == 0
    assert videos[0].exists()
    assert before == {v.name: v.stat().st_mtime_ns for v in videos[1:]}


def test_paper_config_builds_its_dag():
    dry = snakemake("--dry-run")
    assert dry.returncode == 0, dry.stderr
    for rule in ("download_model", "train_lora", "make_tables"):
        assert rule in dry.stdout + dry.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trian": {}}, "config key trian is unknown"),
        ({"clip": {"frames": 32, "height": 64, "width": 64, "text_tokens": 20}}, "4k+1"),
        ({"experiments": "no/such.tsv"}, "experiments sheet no/such.tsv does not exist"),
        ({"model": {"source": "folder", "path": "no/such"}}, "model folder no/such does not exist"),
    ],
)
def test_bad_config_stops_before_any_job(tmp_path, change, message):
    config = yaml.safe_load((ROOT / "config/demo.yaml").read_text()) | change
    config["results"] = str(tmp_path / "results")
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(config))
    done = snakemake("--configfile", str(tmp_path / "bad.yaml"))
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


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
    done = snakemake(
        str(results / "cache/index.json"), "--configfile", str(tmp_path / "config.yaml")
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (results / "cache/index.json").exists()
