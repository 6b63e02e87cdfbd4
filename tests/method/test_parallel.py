"""Context parallelism: two processes, each with half of every frame's tokens, against one.

The second part of this file is what the two processes run, started by torchrun.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import ContextParallelConfig
from safetensors.torch import load_file, save_file

from pusa.transformer import VTAWanTransformer3DModel
from tests.conftest import build_transformer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BATCH, FRAMES = 2, 3
TIMESTEPS = {
    "per_clip": torch.tensor([300.0, 871.5]),
    "per_frame": torch.tensor([[0.0, 250.5, 998.39], [1000.0, 7.25, 640.0]]),
}


def build(base):
    model = VTAWanTransformer3DModel.from_config(base.config)
    model.load_state_dict(base.state_dict())
    return model.eval()


def make_latents(height, width):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, 16, FRAMES, height, width, generator=generator)


def predict(model, timestep, height=8, width=4):
    text = torch.randn(BATCH, 5, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model(make_latents(height, width), timestep, text, return_dict=False)[0]


@pytest.fixture(scope="module")
def parallel(tmp_path_factory):
    """What each of two processes computed, and the error that it met."""
    folder = tmp_path_factory.mktemp("parallel")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, "-m", __name__, str(folder)], check=True, cwd=ROOT)
    outputs = [load_file(folder / f"{rank}.safetensors") for rank in range(2)]
    return outputs, json.loads((folder / "error.json").read_text())


@pytest.mark.parametrize("name", TIMESTEPS)
def test_two_processes_equal_one(new_transformer, parallel, name):
    expected = predict(build(new_transformer()), TIMESTEPS[name])
    for output in parallel[0]:
        # Half as many heads and tokens at once: sums in another order.
        torch.testing.assert_close(output[name], expected, rtol=1e-5, atol=1e-5)


def test_each_process_holds_half(parallel):
    """The rows of the last block's feed-forward: 2 clips, 3 frames, 4 of 8 tokens."""
    assert [output["rows"].tolist() for output in parallel[0]] == [[2, 3, 4, 24]] * 2


def test_tokens_that_cannot_be_shared(parallel):
    assert parallel[1] == (
        "context parallelism shares each frame's 9 tokens equally among 2 processes, expected a "
        "number that divides them"
    )


def test_heads_that_cannot_be_shared(new_transformer):
    model = build(new_transformer())
    with pytest.raises(ValueError, match="ulysses_degree=3 shares the 2 attention heads equally"):
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=3))


def test_without_torchrun(new_transformer):
    model = build(new_transformer())
    with pytest.raises(RuntimeError, match="must be available and initialized"):
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))


def run_process(folder: str) -> None:
    """Compute the cases in this process's share, and write them under its rank."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    model = build(build_transformer())
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    rows = []
    model.blocks[-1].ffn.register_forward_hook(lambda _, i, output: rows.append(output.shape))
    outputs = {name: predict(model, timestep) for name, timestep in TIMESTEPS.items()}
    save_file(outputs | {"rows": torch.tensor(rows[-1])}, f"{folder}/{rank}.safetensors")
    try:
        predict(model, TIMESTEPS["per_clip"], height=6, width=6)
    except ValueError as error:
        if rank == 0:
            with open(f"{folder}/error.json", "w") as file:
                json.dump(str(error), file)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_process(sys.argv[1])
