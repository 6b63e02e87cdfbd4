"""The workflow away from its checkout: as a module of a release, or run in another folder."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from pusa import __version__
from pusa.config import read_config
from pusa.layout import find_shipped, read_layout
from tests.mini import ROOT, activated, write_mini

URL = "https://github.com/owner/pusa"
#: What `snakedeploy deploy-workflow` (0.17.1) writes; it copies config/ and profiles/ too.
DEPLOYED = f"""\
configfile: "config/config.yaml"


module pusa:
    snakefile:
        github("owner/pusa", path="workflow/Snakefile", tag="v{__version__}")
    config:
        config


use rule * from pusa
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """In which the checkout, as it is, is the release of a repository on GitHub."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    release = tmp_path_factory.mktemp("release")
    for part in ("workflow", "config", "envs"):
        shutil.copytree(ROOT / part, release / part)
    for words in (
        ["init", "--quiet"],
        ["add", "--all"],
        ["-c", "user.name=owner", "-c", "user.email=owner@example.org", "commit", "-qm", "Release"],
        ["tag", f"v{__version__}"],
    ):
        subprocess.run(["git", *words], cwd=release, check=True)
    return activated(dict(os.environ)) | {
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),  # where Snakemake keeps clones
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{release}.insteadOf",
        "GIT_CONFIG_VALUE_0": URL,
    }


@pytest.fixture
def deployed(tmp_path):
    """A folder as snakedeploy leaves it, with the embedded model's configuration."""
    for part in ("config", "profiles"):
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy(ROOT / "config/demo.yaml", tmp_path / "config/config.yaml")
    (tmp_path / "workflow").mkdir()
    (tmp_path / "workflow/Snakefile").write_text(DEPLOYED)
    return tmp_path


def snakemake(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    """Run Snakemake in a folder without fail; what it prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "snakemake", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def count_jobs(printed: str) -> int:
    return int(re.search(r"^total +(\d+)$", printed, re.M)[1])


def test_a_deployed_release_plans_the_same_jobs(deployed, environment):
    dry = snakemake(deployed, environment, "--dry-run", "--forceall", "--quiet", "rules")
    assert "What this configuration takes from nothing" in dry
    demo = ("--configfile", "config/demo.yaml")
    here = snakemake(ROOT, environment, "--dry-run", "--forceall", "--quiet", "rules", *demo)
    assert count_jobs(dry) == count_jobs(here) > 100
    assert (deployed / "profiles/slurm/config.yaml").is_file()


def test_a_deployed_sheet_is_the_one_that_counts(deployed, environment):
    """Not the release's, when what snakedeploy copied was edited."""
    sheet = deployed / "config/demo_experiments.tsv"
    rows = sheet.read_text().splitlines(keepends=True)
    sheet.write_text("".join(row for row in rows if not row.startswith("2\t")))
    dry = snakemake(deployed, environment, "--dry-run", "--quiet", "rules")
    assert "0 of them sampled for Table 2" in dry


def test_a_job_of_a_deployed_release(deployed, environment):
    audit = "results/demo/tables/audit.csv"
    snakemake(deployed, environment, "--cores", "1", audit)
    assert (deployed / audit).stat().st_size > 0


@pytest.mark.slow
def test_a_deployed_release_runs_to_its_report(deployed, environment):
    """Scripts and captions come from the release, the embedded model from the package."""
    config = yaml.safe_load(write_mini(deployed / "results").read_text())
    (deployed / "config/config.yaml").write_text(yaml.safe_dump(config))
    snakemake(deployed, environment, "--cores", "2")
    snakemake(deployed, environment, "--report", "report.html")
    assert "Audit of the published tables" in (deployed / "report.html").read_text()
    assert count_jobs_left(deployed, environment) == 0


def count_jobs_left(folder: Path, environment: dict[str, str]) -> int:
    dry = snakemake(folder, environment, "--dry-run", "--quiet", "rules")
    return 0 if "Nothing to be done" in dry else count_jobs(dry)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("snakefile", "arguments"),
    [
        ("Snakefile", ("--configfile", str(ROOT / "config/demo.yaml"))),
        ("workflow/Snakefile", ("--configfile", str(ROOT / "config/demo.yaml"))),
        ("workflow/Snakefile", ()),
    ],
)
def test_any_folder_is_a_working_directory(tmp_path, arguments, snakefile):
    """The configuration, its sheet, the published tables and the model are the checkout's."""
    snakefile = ("--snakefile", str(ROOT / snakefile))
    dry = snakemake(
        tmp_path, activated(dict(os.environ)), *snakefile, *arguments, "--dry-run", "audit"
    )
    sheet = "demo_experiments.tsv" if arguments else "experiments.tsv"
    for file in (sheet, "published/table1.csv", "published/table2.csv"):
        assert f"{ROOT}/config/{file}" in dry
    assert [f.name for f in tmp_path.iterdir()] == [".snakemake"]


def test_the_working_directory_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home, claims = tmp_path / "home", "config/claims.yaml"
    assert find_shipped("pusa/tiny/model", home) == str(ROOT / "pusa/tiny/model")
    assert find_shipped("no/such", home) == "no/such"
    for place in (home, tmp_path):
        (place / "config").mkdir(parents=True)
        (place / claims).touch()
        found = find_shipped(claims, home)
        assert Path(found).resolve() == place / claims
    assert found == claims


def test_the_catalog_can_read_it():
    """What makes a workflow "standardized" in Snakemake's workflow catalog."""
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert set(usage) == {"mandatory-flags", "software-stack-deployment", "report"}
    assert set(usage["mandatory-flags"]) == {"desc", "flags"}
    assert set(usage["software-stack-deployment"]) == {"conda", "apptainer", "apptainer+conda"}
    assert (ROOT / "workflow/Snakefile").is_file() and (ROOT / "config/README.md").is_file()


# --- software deployment, with stand-ins for conda and apptainer ---

APPTAINER = """\
#!/bin/sh
# exec --home FOLDER IMAGE SHELL -c COMMAND
[ "$1" = --version ] && echo "apptainer version 1.4.0" && exit
echo "$@" >> "$CALLS"
while [ "$1" != -c ]; do shift; done
exec bash -c "$2"
"""
#: An environment is this one's Python with its packages, but without `pusa`.
CONDA = f"""\
#!/bin/sh
case "$1 $2" in
  "--version "*) echo "conda 25.1.0" ;;
  "info --json") echo "{{\\"conda_prefix\\": \\"$BASE\\", \\"platform\\": \\"linux-64\\"}}" ;;
  "config "*) echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
  "env create")
    while [ "$1" != --prefix ]; do shift; done
    echo "$2" >> "$CALLS"
    {sys.executable} -m venv --without-pip "$2"
    for site in "$2"/lib/python*/site-packages; do
      echo {sysconfig.get_path("purelib")} > "$site/others.pth"
    done ;;
esac
"""
ACTIVATE = 'export PATH="$1/bin:$PATH" CONDA_PREFIX="$1" CONDA_DEFAULT_ENV="$1"\n'


@pytest.fixture
def programs(tmp_path):
    """An environment in which conda and apptainer are found, and a file with their calls."""
    folder = tmp_path / "base/bin"
    folder.mkdir(parents=True)
    for name, code in {"apptainer": APPTAINER, "conda": CONDA, "activate": ACTIVATE}.items():
        (folder / name).write_text(code)
        (folder / name).chmod(0o755)
    environment = activated(dict(os.environ))
    return environment | {
        "PATH": f"{folder}{os.pathsep}{environment['PATH']}",
        "BASE": str(folder.parent),
        "CALLS": str(tmp_path / "calls"),
    }


#: A job of each kind, a command and a script.
JOBS = ["--allowed-rules", "audit", "plot_losses", "--cores", "1"]
MADE = ["results/demo/tables/audit.csv", "results/demo/figures/losses.png"]


@pytest.fixture
def losses(tmp_path):
    """What plot_losses draws, without a training."""
    config = read_config(yaml.safe_load((ROOT / "config/demo.yaml").read_text()))
    layout = read_layout(config)
    for run in layout.runs_of("tables"):
        folder = tmp_path / layout.trained(run)
        folder.mkdir(parents=True)
        (folder / "training.csv").write_text("iteration,loss\n1,0.5\n2,0.4\n")
        (folder / "validation.csv").write_text("iteration,loss,value\n0,asynchronous,0.5\n")


@pytest.mark.parametrize("method", ["conda", "apptainer"])
def test_jobs_run_in_their_environments(tmp_path, programs, losses, method):
    """A command of `pusa` and a script find the package outside of Snakemake's own environment."""
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs/pusa.sif").touch()
    demo = ("--snakefile", ROOT / "workflow/Snakefile", "--configfile", ROOT / "config/demo.yaml")
    snakemake(tmp_path, programs, *map(str, demo), "--sdm", method, *JOBS, "--", *MADE)
    assert all((tmp_path / file).stat().st_size > 0 for file in MADE)
    calls = (tmp_path / "calls").read_text().splitlines()
    if method == "conda":
        assert len(calls) == 1  # one environment for both
    else:
        assert len(calls) >= 2 and all(" envs/pusa.sif bash -c " in call for call in calls)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["apptainer"], "--sdm apptainer: found no image envs/pusa.sif, expected the one that"),
        (["conda", "apptainer"], "--sdm: found conda and apptainer, expected one of them"),
    ],
)
def test_an_image_that_is_missing(tmp_path, programs, methods, message):
    demo = ("--snakefile", ROOT / "workflow/Snakefile", "--configfile", ROOT / "config/demo.yaml")
    with pytest.raises(AssertionError) as error:
        snakemake(tmp_path, programs, *map(str, demo), "--dry-run", "--sdm", *methods)
    assert message in str(error.value)


def test_images_and_environments_agree():
    """The image is made of the pinned files, and conda's environment of the same pins."""
    image = (ROOT / "envs/Dockerfile").read_text()
    bases = re.findall(r"(?:FROM|--from=)(?: ?)(\S+[:/]\S+)", image)
    assert len(bases) == 2 and all(re.search(r":\d+\.\d+\.\d+", base) for base in bases)
    copied = re.findall(r"^COPY ([^-].*) /src", image, re.M)
    assert all((ROOT / file).exists() for files in copied for file in files.split())
    pins = (ROOT / "envs/requirements.txt").read_text().splitlines()
    conda = yaml.safe_load((ROOT / "envs/pusa.yaml").read_text())
    assert set(conda["dependencies"][-1]["pip"]) <= set(pins)


def test_the_dockerfile_has_no_known_mistake():
    hadolint = shutil.which("hadolint", path=activated(dict(os.environ))["PATH"])
    if hadolint is None:
        pytest.skip("needs hadolint")
    done = subprocess.run([hadolint, ROOT / "envs/Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
