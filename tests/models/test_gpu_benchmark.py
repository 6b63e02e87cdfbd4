"""The script that measures on a GPU, on a CPU at toy sizes."""

import json
import os
import subprocess
import sys

import pytest

from tests.mini import ROOT


def run(out, *arguments):
    """The script's output; without a GPU, whatever the machine has."""
    command = [sys.executable, "benchmarks/gpu.py", "--out", str(out), *arguments]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_every_part_is_measured_once(tmp_path):
    run(tmp_path)
    files = sorted(tmp_path.glob("*.json"))
    parts = {file.stem: json.loads(file.read_text())["rows"] for file in files}
    page = (tmp_path / "gpu.md").read_text()
    assert len(parts) == page.count("\n## ") == 10
    assert "not measured" not in page
    assert "toy sizes" in page.splitlines()[0]
    agreement = {row["what"]: row for row in parts["agreement"]}
    assert agreement["ours and per token, float32"]["largest difference"] < 1e-4
    assert agreement["ours, bfloat16 and float32"]["largest difference"] < 0.1
    assert agreement["a training resumed, to the bit"]["equal"]
    assert len(parts["training"]) == 10
    assert all(row["seconds"] > 0 and row["GiB counted"] > 0 for row in parts["training"])

    written = {file: file.stat().st_mtime_ns for file in files}
    files[0].unlink()
    run(tmp_path)
    again = [file for file in files if file.stat().st_mtime_ns != written[file]]
    assert again == files[:1]


def test_no_part_is_started_when_time_is_over(tmp_path):
    said = run(tmp_path, "--minutes", "1e-9")
    assert said.count("no time left; run the same command again") == 10
    assert (tmp_path / "gpu.md").read_text().count("not measured") == 10
