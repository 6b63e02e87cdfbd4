import json
import os
import shutil
import subprocess
from datetime import datetime
from importlib.metadata import version

import pandas as pd
import pytest

from pusa.report.provenance import TRAINING_FACTS, collect_provenance, write_provenance

CONFIG = {
    "results": "results/x",
    "lora": {"source": "trained"},
    "train": {"seed": 4, "models": {"pusa": {"p_async": 1.0}}, "ranks": [16, 64]},
    "baseline": {"guidance_scale": 4.5},
    "sample": {"seed": 5, "guidance_scale": 5.0, "negative_prompt_file": "config/negative.txt"},
    "effects": {"seeds": [0, 1]},
}
COSTS = pd.DataFrame(
    {
        "stage": ["train: pusa-rank64-seed4", "train", "total"],
        "jobs": [1, 2, 3],
        "hours": [1 / 3, 0.5, 0.75],
        "gpu_hours": [8 / 3, 4.0, 4.0],
        "usd": [20 / 3, 10.0, 10.0],
    }
)
SCORES = {"scorer": "vbench", "imaging_quality_mode": "longer", "packages": {"vbench": "0.1.5"}}
RUN = dict.fromkeys(TRAINING_FACTS, "x") | {"rank": 64, "processes": 8, "device": "8 x GPU"}
DOWNLOAD = {
    "repo": "a/b",
    "revision": "main",
    "commit": "0123abc",
    "date": "2026-01-01T00:00:00+00:00",
    "files": {"x.safetensors": {"size": 3, "sha256": "f" * 64}, "y.json": {"size": 1}},
}


def git(folder, *arguments):
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", "-C", folder, *author, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def results(tmp_path):
    """The files of a finished run, with two jobs on record."""
    records = {
        "model/download.json": json.dumps(DOWNLOAD),
        "lora/pusa-rank64-seed4/run.json": json.dumps(RUN),
        "samples/base/shard0.csv": "file,device\n0.mp4,1 x B\n1.mp4,1 x B\n",
        "samples/base/shard1.csv": "file,device\n2.mp4,1 x A\n",
        "samples/base/shard2.csv": "file,device\n",  # a shard without prompts
        "scores/base.json": json.dumps(SCORES | {"devices": ["1 x A"]}),
        "scores/pusa.json": json.dumps(SCORES | {"devices": ["1 x C", "1 x A"]}),
        "benchmarks/cache_latents.tsv": "s\th:m:s\n600.0\t0:10:00\n",
        "benchmarks/score_videos/tables/base.tsv": "s\th:m:s\n60.0\t0:01:00\n",
    }
    for name, text in records.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name, end in (("cache_latents", "10:00:00"), ("score_videos/tables/base", "12:30:00")):
        time = datetime.fromisoformat(f"2026-02-03T{end}+00:00").timestamp()
        os.utime(tmp_path / f"benchmarks/{name}.tsv", (time, time))
    return tmp_path


@pytest.fixture
def collect(results):
    def call(config=CONFIG, repository=results, **changes):
        files = {
            "negative_prompt": "grey, still",
            "downloads": [results / "model/download.json"],
            "benchmarks": results / "benchmarks",
            "runs": [results / "lora/pusa-rank64-seed4"],
            "manifests": sorted(results.glob("samples/*/*.csv")),
            "scores": sorted(results.glob("scores/*.json")),
            **changes,
        }
        return collect_provenance(config, repository=repository, **files)

    return call


def test_all_that_decides_the_numbers(collect, results):
    record = collect()
    assert record["config"] == CONFIG
    assert record["seeds"] == {"training": 4, "sampling": 5, "effects": [0, 1]}
    assert record["guidance"] == {
        "scale": 5.0,
        "scale of Wan-I2V": 4.5,
        "negative prompt": "grey, still",
    }
    assert record["switches"] == {"change scores": {}, "round otherwise": {}}
    assert record["times"] == {
        "start": "2026-02-03T09:50:00+00:00",
        "end": "2026-02-03T12:30:00+00:00",
    }
    assert record["devices"] == {"sampling": ["1 x A", "1 x B"], "scoring": ["1 x A", "1 x C"]}
    assert record["scoring"]["base"]["packages"] == {"vbench": "0.1.5"}
    assert record["training"] == {"pusa-rank64-seed4": RUN}
    assert record["downloads"] == {str(results / "model"): DOWNLOAD}
    assert record["packages"]["torch"] == version("torch")
    assert record["packages"]["diffusers"] == version("diffusers")
    assert record["python"].startswith("3.")
    assert json.loads(json.dumps(record)) == record


def test_released_lora_has_no_training_seeds(collect):
    record = collect({**CONFIG, "lora": {"source": "released"}}, runs=[])
    assert record["seeds"] == {"sampling": 5}
    assert record["training"] == {}


def test_commit_and_changes(collect, tmp_path):
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "a.py").write_text("a = 1\n")
    git(repository, "init", "--quiet")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "a")
    commit = git(repository, "rev-parse", "HEAD")
    assert collect(repository=repository)["repository"] == {"commit": commit, "modified": False}
    (repository / "a.py").write_text("a = 2\n")
    assert collect(repository=repository)["repository"] == {"commit": commit, "modified": True}
    git(repository, "checkout", "--quiet", "a.py")
    (repository / "new.py").touch()
    assert collect(repository=repository)["repository"] == {"commit": commit, "modified": True}


def test_folder_without_git(collect, monkeypatch, tmp_path):
    assert collect()["repository"] == {}
    git(tmp_path, "init", "--quiet")
    assert collect()["repository"] == {}  # no commit yet
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert shutil.which("git") is None
    assert collect()["repository"] == {}


def test_nothing_on_record_has_no_times(collect, tmp_path):
    assert collect(benchmarks=tmp_path / "none")["times"] == {}


# The page


@pytest.fixture
def write(tmp_path):
    """A function that writes a record and returns its JSON, Markdown and HTML."""

    def call(record, costs=COSTS):
        costs.to_csv(tmp_path / "costs.csv", index=False)
        write_provenance(record, pd.read_csv(tmp_path / "costs.csv"), tmp_path / "provenance")
        return [(tmp_path / f"provenance.{kind}").read_text() for kind in ("json", "md", "html")]

    return call


def cells(markdown):
    """Rows of the page's tables."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_page(collect, write, results):
    record = collect()
    saved, markdown, html = write(record)
    assert json.loads(saved) == record
    headings = [line for line in markdown.splitlines() if line.startswith("#")]
    assert headings == [
        "# Where these numbers come from",
        "## The run",
        "## Cost",
        "## Downloads",
        "## Training runs",
        "## Configuration",
        "## Packages",
    ]
    rows = cells(markdown)
    for row in (
        ["commit", "unknown"],
        ["start", "2026-02-03T09:50:00+00:00"],
        ["sampled on", "1 x A, 1 x B"],
        ["seed: sampling", "5"],
        ["guidance: scale", "5.0"],
        ["guidance: negative prompt", "grey, still"],
        ["total", "3", "0.750", "4.000", "10.000"],
        [str(results / "model"), "a/b", "main", "0123abc", "2"],
        ["pusa-rank64-seed4", "8 x GPU", "8", "x", "x", "x", "x"],
        ["train.models.pusa.p_async", "1.0"],
        ["train.ranks", "[16, 64]"],
        ["torch", version("torch")],
    ):
        assert row in rows
    for heading in headings:
        assert heading.strip("# ") in html
    for words in ("0123abc", "train.models.pusa.p_async", "1 x A, 1 x B"):
        assert f"<td>{words}</td>" in html


def test_switches_that_change_scores_are_marked(collect, write):
    sample = CONFIG["sample"] | {"vae_tiling": True, "attention_backend": "flash"}
    _, markdown, _ = write(collect(CONFIG | {"sample": sample}))
    rows = cells(markdown)
    assert ["switches that change scores", "vae_tiling True"] in rows
    assert ["switches that round otherwise", "attention_backend flash"] in rows


def test_page_without_price_downloads_and_training(collect, write):
    record = collect(downloads=[], runs=[])
    _, markdown, html = write(record, COSTS.assign(usd=None))
    assert "## Downloads" not in markdown
    assert "## Training runs" not in markdown
    assert ["total", "3", "0.750", "4.000", ""] in cells(markdown)
    assert "<td>nan</td>" not in html


def test_page_says_that_the_code_was_changed(collect, write):
    record = collect() | {"repository": {"commit": "abc", "modified": True}}
    assert ["commit", "abc with changes"] in cells(write(record)[1])
    record["repository"]["modified"] = False
    assert ["commit", "abc"] in cells(write(record)[1])


def test_page_of_the_suite_names_its_address(collect, write, results):
    """Its record has an address instead of a repository."""
    suite = {"url": "https://a.b/list.json", "commit": "abc", "files": {"list.json": {"size": 1}}}
    (results / "suite").mkdir()
    (results / "suite/download.json").write_text(json.dumps(suite))
    _, markdown, _ = write(collect(downloads=[results / "suite/download.json"]))
    row = [str(results / "suite"), "https://a.b/list.json", "", "abc", "1"]
    assert row in cells(markdown)
