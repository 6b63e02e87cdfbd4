"""Why PyTorch finds no GPU, told from its build and from the node's driver."""

import subprocess

import pytest

from pusa import driver
from pusa.cli import options
from pusa.driver import explain_no_gpu, find_driver

WHEELS = "https://download.pytorch.org/whl"
PROPRIETARY = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82  Release Build  (root)\n"
GCC = "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"


@pytest.fixture
def node(monkeypatch, tmp_path):
    """A function that makes a node with a file of the driver, or with an `nvidia-smi`."""

    def make(proc: str | None = None, smi: str | None = None) -> None:
        monkeypatch.setattr(driver, "PROC", tmp_path / "version")
        if proc is not None:
            (tmp_path / "version").write_text(proc)
        monkeypatch.setenv("PATH", str(tmp_path))
        if smi is not None:
            (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{smi}'\n")
            (tmp_path / "nvidia-smi").chmod(0o755)

    return make


@pytest.mark.parametrize(
    ("proc", "smi", "expected"),
    [
        (None, None, None),
        (PROPRIETARY + GCC, None, "535.183.01"),
        (OPEN + GCC, None, "580.82"),
        (None, "550.54.15", "550.54.15"),
        (None, "550.54.15\n550.54.15", "550.54.15"),  # a line for each GPU
        (None, "No devices were found", None),
        ("something else", "550.54.15", "550.54.15"),
    ],
)
def test_the_driver_is_found(node, proc, smi, expected):
    node(proc, smi)
    assert find_driver() == expected


def test_a_program_that_hangs_is_not_waited_for(node, monkeypatch):
    def hang(*_, **options):
        raise subprocess.TimeoutExpired("nvidia-smi", options["timeout"])

    node()
    monkeypatch.setattr(subprocess, "run", hang)
    assert find_driver() is None


@pytest.mark.parametrize(
    ("torch", "cuda", "found", "told"),
    [
        (
            "2.13.0",
            "13.0",
            "550.54.15",
            f"that needs 580 or newer; install torch from {WHEELS}/cu126",
        ),
        (
            "2.13.0+cu126",
            "12.6",
            "470.82",
            "that needs 525 or newer; expected a driver from 525 on",
        ),
        (
            "2.13.0+cpu",
            None,
            "535.183.01",
            f"driver 535.183.01; install torch from {WHEELS}/cu126,",
        ),
        ("2.13.0+cpu", None, "580.82", f"driver 580.82; install torch from {WHEELS}/cu130,"),
        ("3.1.0", "14.1", "590.1", f"driver 590.1; install torch from {WHEELS}/cu130,"),
        (
            "2.13.0+cu126",
            "12.6",
            "525.60",
            "new enough: was the job given one? CUDA_VISIBLE_DEVICES",
        ),
        ("2.13.0", "13.0", None, "finds no GPU here, nor is there an NVIDIA driver"),
    ],
)
def test_what_would_help(torch, cuda, found, told):
    built = "without CUDA" if cuda is None else f"for CUDA {cuda}"
    why = explain_no_gpu(torch, cuda, found)
    assert why.startswith(f"PyTorch {torch}, built {built}, finds no GPU")
    assert told in why
    assert found is None or f"driver {found}" in why


def test_a_job_that_wants_a_gpu_says_why_it_has_none(node, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    node(PROPRIETARY)
    with pytest.raises(ValueError, match=r"--device cuda: .* 535\.183\.01, and .*/cu126"):
        options.choose_device("cuda")
    assert options.choose_device(None) == "cpu"
