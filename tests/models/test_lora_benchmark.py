import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_benchmark_of_merging_runs_on_small_shapes(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "merge_lora.py"
    shapes = ["--dim", "128", "--ffn-dim", "256", "--layers", "1", "--rank", "2", "--rounds", "1"]
    command = [sys.executable, str(script), *shapes, "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    copy, ours, peft = (line.split("|")[1:-1] for line in done.stdout.splitlines()[4:7])
    assert [row[0].strip() for row in (copy, ours, peft)] == [
        "copy of the files",
        "tensor by tensor (ours)",
        "`merge_and_unload` (PEFT)",
    ]
    assert float(copy[2]) < float(ours[2])  # MiB: a copy has neither torch nor weights
    assert not list(tmp_path.iterdir())
