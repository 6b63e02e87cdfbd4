"""A wheel, installed in an environment outside the checkout, has all commands and the model."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from pusa import __version__
from pusa.models.lora import LoraInfo, save_lora
from pusa.train.engine import TARGETS
from tests.mini import ROOT

TRANSFORMER = ROOT / "pusa/tiny/model/transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, as a build leaves folders behind."""
    source = tmp_path_factory.mktemp("source")
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, source / part)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "pusa", source / "pusa", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    built = subprocess.run([*pip, "."], cwd=source, capture_output=True, text=True)
    if "No matching distribution found for setuptools" in built.stderr:
        pytest.skip("needs a network, for setuptools")
    assert built.returncode == 0, built.stderr
    (file,) = source.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory, wheel):
    """A function that runs a program of an environment with the wheel in it, in an empty folder.

    Other packages are this environment's, but not its `pusa`: of a folder that is only named in a
    .pth file, the .pth files are not read.
    """
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "venv"], cwd=folder, check=True)
    python = folder / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, wheel], check=True)
    site = sysconfig.get_path("purelib", vars={"base": folder / "venv"})
    Path(site, "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / "empty").mkdir()

    def call(program: str, *words: object) -> str:
        done = subprocess.run(
            [folder / "venv/bin" / program, *map(str, words)],
            cwd=folder / "empty",
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return call


def write_lora(file: Path) -> None:
    """A LoRA of rank 1 on every target of the embedded model."""
    tensors = {}
    with safe_open(TRANSFORMER, "pt") as weights:
        for name in weights.keys():  # noqa: SIM118
            module = name.removesuffix(".weight")
            if module.startswith("blocks.") and module.endswith(TARGETS):
                rows, columns = weights.get_slice(name).get_shape()
                tensors[f"{module}.lora_A.weight"] = torch.full((1, columns), 0.01)
                tensors[f"{module}.lora_B.weight"] = torch.full((rows, 1), 0.01)
    info = LoraInfo(
        rank=1, lora_alpha=1, targets=TARGETS, base=None, iteration=1, p_async=1.0, vectorized=True
    )
    save_lora(file, tensors, info)


@pytest.mark.slow
def test_commands_of_an_installed_wheel(run, tmp_path):
    assert run("pusa", "--version") == f"pusa {__version__}\n"
    place = "import pusa.tiny; print(next(iter(pusa.tiny.__path__)))"
    model = Path(run("python", "-c", place).strip(), "model")
    assert "venv" in model.parts and model.is_dir()

    lora, authors, merged = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "m"))
    write_lora(lora)
    run("pusa", "convert", "--to", "authors", lora, authors)
    base = ("--base", model / "transformer", "--lora-scale", 1.4)
    run("pusa", "merge", *base, "--lora", authors, "--out", merged)
    size = ("--frames", 9, "--height", 64, "--width", 64, "--steps", 1, "--dtype", "float32")
    words = ("a red circle stays still over dots, camera static", *size, "--model", model)
    run("pusa", "generate", *words, "--transformer", merged, "--out", tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").stat().st_size > 0


def test_one_version_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "pusa.__version__"}
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    releases = [
        line.removeprefix("## ").split()[0]
        for line in (ROOT / "CHANGELOG.md").read_text().splitlines()
        if line.startswith("## ")
    ]
    assert releases[0] == __version__
