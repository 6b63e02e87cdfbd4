"""Which Python make takes, and which build of torch."""

import os
import subprocess

import pytest

from tests.mini import ROOT

NAMES = ("python3.11", "python3.12", "python3.13")


@pytest.fixture
def plan(tmp_path):
    """A function that says what make would do on a machine with only some Pythons."""

    def make(*arguments: str, able: tuple[str, ...] = NAMES, venv: str = "venv") -> str:
        for name in NAMES:  # stand in for the machine's own
            (tmp_path / name).write_text(f"#!/bin/sh\nexit {int(name not in able)}\n")
            (tmp_path / name).chmod(0o755)
        target = f"{tmp_path}/{venv}/installed"
        done = subprocess.run(
            ["make", "--dry-run", f"VENV={tmp_path}/venv", target, *arguments],
            cwd=ROOT,
            env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.stdout

    return make


@pytest.mark.parametrize("able", [NAMES[:1], NAMES[:2], NAMES])
def test_the_newest_python_is_taken(plan, able):
    assert f"|| {able[-1]} -m venv" in plan(able=able)


def test_python_can_be_named(plan):
    assert "|| python3.12 -m venv" in plan("PYTHON=python3.12", able=())


def test_without_a_python_one_sentence_says_so(plan):
    """As on a Debian whose Python cannot make environments."""
    told = plan(able=())
    assert "looked for python3.13 python3.12 python3.11, with venv, and found none: apt" in told
    assert "-m venv" not in told and len(told.splitlines()) == 1


def test_vbench_has_a_python_of_its_own(plan):
    """Of its old pins some have wheels for 3.11 alone."""
    assert "|| python3.11 -m venv" in plan(venv="venv-vbench")
    assert "looked for python3.11, with venv" in plan(venv="venv-vbench", able=NAMES[1:])


def test_an_environment_keeps_its_python(plan, tmp_path):
    assert f"[ -x {tmp_path}/venv/bin/python ] ||" in plan()


@pytest.mark.parametrize("build", ["cpu", "cu126"])
def test_other_builds_of_torch_come_from_pytorch(plan, build):
    index = (
        f"--no-deps --index-url https://download.pytorch.org/whl/{build} $(grep '^torch==' envs/"
    )
    assert index in plan(f"TORCH={build}")
    assert "download.pytorch.org" not in plan()
    for wrong in ("gpu", "cu1", "cpu cu126"):
        assert f"TORCH: found {wrong}, expected one of cpu cu126" in plan(f"TORCH={wrong}")
    pins = (ROOT / "envs/requirements.txt").read_text().splitlines()
    assert sum(line.startswith("torch==") for line in pins) == 1


def test_an_environment_keeps_its_build_of_torch(plan, tmp_path):
    """Another is not taken for it without a word."""
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv/installed").write_text("cpu\n")
    assert "another build" not in plan() + plan("TORCH=cpu")
    assert "remove it to have cu126" in plan("TORCH=cu126")
