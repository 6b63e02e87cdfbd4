"""Attention maps against the full matrix, computed from the model's own weights."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig

from pusa.models import attention
from pusa.models.attention import (
    attention_of_means,
    capture_attention,
    first_frame_mass,
    frame_attention,
    maps_at_steps,
    write_attention,
)
from pusa.transformer import VTAWanTransformer3DModel

BATCH, FRAMES, TOKENS, HEADS = 2, 3, 4, 2


@pytest.fixture(params=["base", "vta", "lora", "image_to_video"])
def transformer(request, new_transformer):
    """Every kind of transformer that the figure compares."""
    base = new_transformer()
    if request.param == "base":
        return base.eval()
    if request.param == "image_to_video":
        torch.manual_seed(0)
        transformer = WanTransformer3DModel.from_config({**base.config, "in_channels": 36})
        return transformer.eval()
    transformer = VTAWanTransformer3DModel.from_config(base.config)
    transformer.load_state_dict(base.state_dict())
    if request.param == "lora":
        torch.manual_seed(3)
        transformer.add_adapter(
            LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights="gaussian")
        )
        for name, parameter in transformer.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    return transformer.eval()


@pytest.fixture
def inputs(transformer):
    generator = torch.Generator().manual_seed(1)
    channels = transformer.config.in_channels
    return {
        "hidden_states": torch.randn(BATCH, channels, FRAMES, 4, 4, generator=generator),
        "timestep": torch.tensor([300.0, 871.5]),
        "encoder_hidden_states": torch.randn(BATCH, 5, 64, generator=generator),
    }


def predict(transformer, inputs):
    with torch.no_grad():
        return transformer(**inputs, return_dict=False)[0]


def full_matrix(transformer, inputs, block):
    """The whole ``(batch, heads, queries, keys)``; complex numbers for the rotary embedding."""
    attn, seen = transformer.blocks[block].attn1, {}
    hook = attn.register_forward_pre_hook(lambda _, i: seen.update(x=i[0]))
    predict(transformer, inputs)
    hook.remove()
    head_dim = attn.inner_dim // HEADS
    # Wan's: of a head's channels, frames have what rows and columns, a third each, leave.
    third = 2 * (head_dim // 6)
    angles = []
    for frame in range(FRAMES):
        for row in range(2):
            for column in range(2):
                position = []
                sizes = (head_dim - 2 * third, third, third)
                for place, size in zip((frame, row, column), sizes, strict=True):
                    rates = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
                    position.append(place * rates)
                angles.append(torch.cat(position))
    turn = torch.polar(torch.ones(12, head_dim // 2, dtype=torch.float64), torch.stack(angles))
    with torch.no_grad():
        rotated = []
        for project, norm in ((attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k)):
            heads = norm(project(seen["x"])).double().reshape(BATCH, 12, HEADS, -1, 2)
            pairs = torch.view_as_complex(heads.contiguous()) * turn[:, None]
            rotated.append(torch.view_as_real(pairs).flatten(3).transpose(1, 2))
        return (rotated[0] @ rotated[1].mT / head_dim**0.5).softmax(-1)


def direct_map(matrix):
    expected = torch.empty(BATCH, FRAMES, FRAMES, dtype=torch.float64)
    for q in range(FRAMES):
        for k in range(FRAMES):
            at = matrix[:, :, q * TOKENS : (q + 1) * TOKENS, k * TOKENS : (k + 1) * TOKENS]
            expected[:, q, k] = at.sum(-1).mean((1, 2))
    return expected


@pytest.mark.parametrize("block", [0, -1])
def test_map_is_that_of_the_full_matrix(transformer, inputs, block):
    with capture_attention(transformer, block=block) as maps:
        predict(transformer, inputs)
    expected = direct_map(full_matrix(transformer, inputs, block))
    torch.testing.assert_close(maps[0].double(), expected, rtol=1e-5, atol=1e-6)
    assert (expected - 1 / FRAMES).abs().max() > 0.01, "a uniform map would show nothing"


def test_rows_sum_to_one(transformer, inputs):
    with capture_attention(transformer) as maps:
        predict(transformer, inputs)
    torch.testing.assert_close(maps[0].sum(2), torch.ones(BATCH, FRAMES))


def test_output_is_unchanged(transformer, inputs):
    before = predict(transformer, inputs)
    with capture_attention(transformer):
        assert torch.equal(predict(transformer, inputs), before)
    assert torch.equal(predict(transformer, inputs), before)


def test_chosen_calls(transformer, inputs):
    with capture_attention(transformer, calls={1, 3}) as maps:
        for _ in range(5):
            inputs["timestep"] = inputs["timestep"] + 20
            predict(transformer, inputs)
    assert list(maps) == [1, 3]
    assert not torch.equal(maps[1], maps[3])


def hooks_of(transformer):
    return sum(len(module._forward_hooks) for module in transformer.modules())


def test_hooks_end_with_the_scope(transformer, inputs):
    before = hooks_of(transformer)
    with pytest.raises(RuntimeError, match="stop"), capture_attention(transformer) as maps:
        assert hooks_of(transformer) > before
        predict(transformer, inputs)
        raise RuntimeError("stop")
    assert hooks_of(transformer) == before
    predict(transformer, inputs)
    assert list(maps) == [0]


def test_chunks_do_not_change_the_result(monkeypatch):
    query, key = torch.randn(2, BATCH, 12, HEADS, 6, generator=torch.Generator().manual_seed(0))
    whole = frame_attention(query, key, FRAMES)
    monkeypatch.setattr(attention, "_ENTRIES", 12 * 5)  # 5, 5 and 2 queries
    torch.testing.assert_close(frame_attention(query, key, FRAMES), whole)


def test_known_maps():
    """Equal keys share a query's mass equally; a far nearer one takes it all."""
    query = torch.ones(1, 6, 1, 4)
    assert torch.equal(
        frame_attention(query, torch.zeros(1, 6, 1, 4), 2), torch.full((1, 2, 2), 0.5)
    )
    key = torch.zeros(1, 6, 1, 4)
    key[:, 4] = 1000.0  # a token of the second frame
    assert frame_attention(query, key, 2).tolist() == [[[0.0, 1.0], [0.0, 1.0]]]


def test_map_of_means():
    """By the authors' own lines, whose tensors are (batch, heads, tokens, head_dim)."""
    query, key = torch.randn(2, BATCH, 12, HEADS, 6, generator=torch.Generator().manual_seed(0))
    q, k = (x.transpose(1, 2).reshape(BATCH, HEADS, FRAMES, 4, 6).mean(3) for x in (query, key))
    similarity = torch.einsum("bhid,bhjd->bhij", q, k) / 6**0.5
    found = attention_of_means(query, key, FRAMES)
    torch.testing.assert_close(found, similarity.softmax(-1).mean(1))
    assert (found - frame_attention(query, key, FRAMES)).abs().max() > 0.01
    query, key = (x[:, ::4].repeat_interleave(4, dim=1) for x in (query, key))  # tokens are alike
    torch.testing.assert_close(
        attention_of_means(query, key, FRAMES), frame_attention(query, key, FRAMES)
    )


def test_map_of_means_of_a_model(transformer, inputs):
    """Before the softmax is after the rotary embedding, with the softmax's scale."""
    with capture_attention(transformer, measure=attention_of_means) as maps:
        predict(transformer, inputs)
    logits = full_matrix(transformer, inputs, -1).log()  # up to a constant per query
    logits = logits - logits.mean(-1, keepdim=True)
    means = logits.unflatten(3, (FRAMES, TOKENS)).mean(4).unflatten(2, (FRAMES, TOKENS)).mean(3)
    torch.testing.assert_close(maps[0].double(), means.softmax(-1).mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("guidance", [False, True])
def test_maps_are_of_the_prompts_pass(transformer, inputs, guidance):
    """With guidance, every second pass is without the prompt, and is passed over."""
    timesteps = [torch.full((BATCH,), t) for t in (900.0, 700.0, 300.0, 100.0)]
    without = inputs | {"encoder_hidden_states": torch.zeros(BATCH, 5, 64)}

    def sample():
        for timestep in timesteps:
            predict(transformer, inputs | {"timestep": timestep})
            if guidance:
                predict(transformer, without | {"timestep": timestep})

    maps = maps_at_steps(sample, transformer, [3, 1], guidance=guidance)
    assert list(maps) == [1, 3]
    for step, found in maps.items():
        with capture_attention(transformer) as expected:
            predict(transformer, inputs | {"timestep": timesteps[step]})
        assert torch.equal(found, expected[0][0])


def test_step_that_does_not_run(new_transformer):
    with pytest.raises(ValueError, match="step 3 has no attention map"):
        maps_at_steps(lambda: None, new_transformer(), [3, 5], guidance=True)


def test_first_frame_mass():
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.5, 0.25], [0.75, 0.0, 0.25]])
    mass = first_frame_mass({2: weights}, torch.tensor([1.0, 0.75, 0.5, 0.0]))
    assert mass.to_dict("records") == [
        {"step": 2, "sigma": 0.5, "mass": 0.5, "uniform": pytest.approx(1 / 3)}
    ]


def test_files(tmp_path):
    maps = {0: torch.tensor([[0.75, 0.25], [0.5, 0.5]]), 3: torch.tensor([[1.0, 0.0], [0.0, 1.0]])}
    mass = first_frame_mass(maps, torch.linspace(1, 0, 5))
    out = tmp_path / "attention" / "base.csv"
    write_attention(out, maps, mass, {"label": "base", "prompt": "un été"})
    table = pd.read_csv(out)
    assert list(table) == ["step", "query", "key", "weight"]
    assert table.to_numpy().tolist() == [
        [0, 0, 0, 0.75],
        [0, 0, 1, 0.25],
        [0, 1, 0, 0.5],
        [0, 1, 1, 0.5],
        [3, 0, 0, 1.0],
        [3, 0, 1, 0.0],
        [3, 1, 0, 0.0],
        [3, 1, 1, 1.0],
    ]
    record = json.loads(out.with_suffix(".json").read_text())
    assert record.pop("sha256").keys() == {"base.csv", "base-mass.csv"}
    assert record == {"label": "base", "prompt": "un été"}
    mass = pd.read_csv(out.with_name("base-mass.csv"))
    assert mass.to_numpy().tolist() == [[0, 1.0, 0.5, 0.5], [3, 0.25, 0.0, 0.5]]


MEMORY = """
import resource, torch
from pusa.models.attention import frame_attention
query, key = torch.randn(2, 1, 32760, 1, 16, generator=torch.Generator().manual_seed(0))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
error = frame_attention(query, key, 21).sum(2).sub(1).abs().max().item()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, error)
"""


@pytest.mark.slow
def test_memory_at_the_papers_size():
    """One head of 832x480x81, whose full matrix would take 4,094 MiB."""
    output = subprocess.check_output([sys.executable, "-c", MEMORY], text=True)
    peak, error = map(float, output.split())
    assert peak < 300, "MiB"
    assert error < 1e-4


@pytest.mark.parametrize("block", [2, -3])
def test_no_such_block(new_transformer, block):
    with (
        pytest.raises(ValueError, match=f"block {block} does not exist, expected one of the 2"),
        capture_attention(new_transformer(), block=block),
    ):
        pass


def test_tokens_spread_over_processes(new_transformer):
    spread = new_transformer()
    spread._parallel_config = "as enable_parallelism leaves it"
    with (
        pytest.raises(ValueError, match="in one process, found context parallelism"),
        capture_attention(spread),
    ):
        pass


@pytest.mark.parametrize(
    "shapes", [[(1, 10, 2, 4)] * 2, [(1, 12, 2, 4), (1, 9, 2, 4)], [(12, 2, 4)] * 2]
)
@pytest.mark.parametrize("measure", [frame_attention, attention_of_means])
def test_wrong_shapes(measure, shapes):
    with pytest.raises(ValueError, match="must both have shape") as error:
        measure(*map(torch.zeros, shapes), 3)
    assert str(shapes[1]) in str(error.value)
