import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pusa.cli import app
from pusa.models.folder import digest_weights
from pusa.models.load import load_merged, load_transformer
from pusa.models.lora import (
    LoraInfo,
    convert_lora,
    lora_info,
    merge_lora,
    read_merged,
    save_lora,
)
from pusa.models.lora_formats import open_lora, to_wan
from pusa.models.stream import write_tensors

RANK, ALPHA = 3, 6  # alpha is not the rank, so that a forgotten alpha / rank shows
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def base(model):
    return model / "transformer"


@pytest.fixture(scope="module")
def adapter(base):
    """The base with a LoRA whose B is not zero, by PEFT."""
    transformer = load_transformer(base)
    torch.manual_seed(0)
    transformer.add_adapter(
        LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), bias="none")
    )
    for name, parameter in transformer.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape)
    return transformer.eval()


@pytest.fixture(scope="module")
def info(base):
    return LoraInfo(
        rank=RANK,
        lora_alpha=ALPHA,
        targets=TARGETS,
        base=digest_weights(base),
        iteration=7,
        p_async=1.0,
        vectorized=True,
        objective="paper",
    )


@pytest.fixture(scope="module")
def lora(adapter, info, tmp_path_factory):
    file = tmp_path_factory.mktemp("lora") / "deep" / "iteration_7.safetensors"
    save_lora(file, get_peft_model_state_dict(adapter, adapter_name="default"), info)
    return file


@pytest.fixture(scope="module")
def for_any_base(adapter, info, tmp_path_factory):
    """The same without a word on the base, as others write theirs."""
    file = tmp_path_factory.mktemp("lora") / "any.safetensors"
    tensors = get_peft_model_state_dict(adapter, adapter_name="default")
    save_lora(file, tensors, replace(info, base=None))
    return file


def test_a_lora_that_was_exchanged_with_another(lora, tmp_path):
    other = shutil.copy(lora, tmp_path / "iteration_9.safetensors")
    with pytest.raises(ValueError, match=r"iteration_9\.safetensors says .* of iteration 7"):
        lora_info(open_lora(other))


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(2, 16, 3, 4, 4, generator=generator),
        torch.tensor([[0.0, 300.0, 900.0], [50.0, 1000.0, 10.0]]),
        torch.randn(2, 5, 64, generator=generator),
    )


def read_lora(file):
    """Tensors of a LoRA of any format, by the names that `save_lora` takes, and what it tells."""
    lora = open_lora(file)
    tensors = {}
    for name, module in lora.modules.items():
        tensors[f"{name}.lora_A.weight"] = lora.tensor(module.down)
        tensors[f"{name}.lora_B.weight"] = lora.tensor(module.up)
    return tensors, lora_info(lora)


def original_name(tensor):
    """The name that the original model gives a tensor of diffusers' names."""
    module, _, kind = tensor.rpartition(".")
    return to_wan(tensor) or f"{to_wan(module)}.{kind}"


def run(transformer, inputs, **options):
    with torch.no_grad():
        return transformer(*inputs, return_dict=False, **options)[0]


def test_round_trip(adapter, lora, info):
    tensors, found = read_lora(lora)
    assert found == info
    expected = get_peft_model_state_dict(adapter, adapter_name="default")
    assert tensors.keys() == expected.keys()
    assert len(tensors) == 2 * 10 * 2  # A and B of ten linears in two blocks
    assert all(torch.equal(tensors[name], expected[name]) for name in tensors)


def test_metadata_says_how_it_was_trained(lora, base):
    with safe_open(lora, framework="pt") as file:
        metadata = json.loads(file.metadata()["pusa"])
    assert metadata == {
        "rank": RANK,
        "lora_alpha": ALPHA,
        "targets": list(TARGETS),
        "base": digest_weights(base),
        "iteration": 7,
        "p_async": 1.0,
        "vectorized": True,
        "objective": "paper",
    }


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_merge_is_w_plus_scaled_ba(tmp_path, base, lora, scale):
    merge_lora(base, lora, tmp_path / "merged", lora_scale=scale)
    before, after = load_file(base / WEIGHTS), load_file(tmp_path / "merged" / WEIGHTS)
    tensors = load_file(lora)
    assert before.keys() == after.keys()
    changed = 0
    for name, weight in before.items():
        module = "transformer." + name.removesuffix(".weight")
        if f"{module}.lora_A.weight" in tensors:
            down = tensors[f"{module}.lora_A.weight"].double()
            up = tensors[f"{module}.lora_B.weight"].double()
            expected = weight.double() + scale * ALPHA / RANK * torch.einsum("or,ri->oi", up, down)
            torch.testing.assert_close(after[name].double(), expected, rtol=0, atol=1e-6)
            assert not torch.equal(after[name], weight)
            changed += 1
        else:
            assert torch.equal(after[name], weight), name
    assert changed == 20


@pytest.mark.parametrize("scale", [1.0, 1.4])
def test_merged_model_is_the_adapter_at_that_scale(tmp_path, base, lora, adapter, inputs, scale):
    merge_lora(base, lora, tmp_path / "merged", lora_scale=scale)
    merged = run(load_transformer(tmp_path / "merged"), inputs)
    scaled = run(adapter, inputs, attention_kwargs={"scale": scale})
    # Float32: (W + BA) x against W x + B (A x), sums of 24 and 48 terms.
    torch.testing.assert_close(merged, scaled, rtol=1e-4, atol=1e-5)
    assert (merged - run(load_transformer(base), inputs)).abs().max() > 0.05


def test_merge_of_scale_zero_is_the_base(tmp_path, base, lora):
    merge_lora(base, lora, tmp_path / "merged", lora_scale=0.0)
    before, after = load_file(base / WEIGHTS), load_file(tmp_path / "merged" / WEIGHTS)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_merge_keeps_the_storage_type_and_rounds_once(tmp_path, base, for_any_base):
    half = tmp_path / "half"
    WanTransformer3DModel.from_pretrained(base).to(torch.bfloat16).save_pretrained(half)
    merge_lora(half, for_any_base, tmp_path / "merged", lora_scale=1.0)
    before, after = load_file(half / WEIGHTS), load_file(tmp_path / "merged" / WEIGHTS)
    assert {n: t.dtype for n, t in before.items()} == {n: t.dtype for n, t in after.items()}
    name = "blocks.0.attn1.to_q"
    tensors, _ = read_lora(for_any_base)
    product = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    expected = (before[f"{name}.weight"].float() + ALPHA / RANK * product).bfloat16()
    assert torch.equal(after[f"{name}.weight"], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("names", ["diffusers", "original"])
def test_merge_in_the_type_that_is_loaded(tmp_path, base, for_any_base, dtype, names):
    """To the bit what a float32 merge is loaded as; what diffusers keeps in float32 stays so."""
    whole, small = tmp_path / "whole", tmp_path / "small"
    merge_lora(base, for_any_base, whole, lora_scale=1.4)
    if names == "original":
        base = shutil.copytree(base, tmp_path / "original")
        tensors = {original_name(n): t for n, t in load_file(base / WEIGHTS).items()}
        save_file(tensors, base / WEIGHTS)
    merge_lora(base, for_any_base, small, lora_scale=1.4, dtype=dtype)
    expected = load_transformer(whole, dtype).state_dict()
    stored = load_file(small / WEIGHTS)
    if names == "original":
        expected = {original_name(n): t for n, t in expected.items()}
    assert stored.keys() == expected.keys()
    for name, tensor in expected.items():
        assert stored[name].dtype == tensor.dtype
        assert torch.equal(stored[name], tensor), name
    assert {t.dtype for t in stored.values()} == {dtype, torch.float32}
    if names == "diffusers":
        loaded = load_transformer(small, dtype).state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_while_loading_is_loading_what_was_merged(
    tmp_path, base, for_any_base, inputs, dtype
):
    """To the bit, in both types, whatever the base is stored as; and nothing is written."""
    for stored in (torch.float32, torch.bfloat16):
        folder = tmp_path / f"{stored}"
        WanTransformer3DModel.from_pretrained(base).to(stored).save_pretrained(folder)
        merged = tmp_path / f"{stored}-merged"
        merge_lora(folder, for_any_base, merged, lora_scale=1.4, dtype=dtype)
        files = sorted(tmp_path.rglob("*"))
        expected = load_transformer(merged, dtype)
        found = load_merged(folder, for_any_base, lora_scale=1.4, dtype=dtype)
        assert sorted(tmp_path.rglob("*")) == files
        tensors = found.state_dict()
        assert [*tensors] == [*expected.state_dict()]
        for name, tensor in expected.state_dict().items():
            assert tensors[name].dtype == tensor.dtype
            assert torch.equal(tensors[name], tensor), name
        assert found.dtype == expected.dtype and not found.training
        latents, timestep, text = inputs
        given = (latents.to(dtype), timestep, text.to(dtype))
        assert torch.equal(run(found, given), run(expected, given))


def test_merging_while_loading_refuses_what_merging_does(tmp_path, base, lora, new_transformer):
    new_transformer(3).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="was trained on a base of SHA-256"):
        load_merged(tmp_path / "other", lora, lora_scale=1.0, dtype=torch.float32)


def test_index_tells_the_size_of_the_type(tmp_path, base, for_any_base):
    sharded = tmp_path / "sharded"
    WanTransformer3DModel.from_pretrained(base).save_pretrained(sharded, max_shard_size="40KB")
    merge_lora(sharded, for_any_base, tmp_path / "merged", lora_scale=1.0, dtype=torch.bfloat16)
    index = json.loads((tmp_path / "merged" / f"{WEIGHTS}.index.json").read_text())
    tensors = [
        t for f in (tmp_path / "merged").glob("*.safetensors") for t in load_file(f).values()
    ]
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors)
    assert load_transformer(tmp_path / "merged").num_parameters() > 0


def test_sharded_base_merges_alike(tmp_path, base, for_any_base, inputs):
    sharded = tmp_path / "sharded"
    WanTransformer3DModel.from_pretrained(base).save_pretrained(sharded, max_shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    for folder in (base, sharded):
        merge_lora(folder, for_any_base, tmp_path / f"merged-{folder.name}", lora_scale=1.4)
    outputs = [
        run(load_transformer(tmp_path / f"merged-{f.name}"), inputs) for f in (base, sharded)
    ]
    assert torch.equal(*outputs)


def test_merged_folder_says_what_was_merged(tmp_path, base, lora):
    merge_lora(base, lora, tmp_path / "merged", lora_scale=1.4)
    record = read_merged(tmp_path / "merged")
    assert record["lora_scale"] == 1.4
    assert len(record["sha256"]) == 64
    assert read_merged(base) == {}


def test_diffusers_pipeline_loads_the_lora(model, base, lora, adapter, inputs):
    """All tensors find their place, and alpha / rank is read from the file."""
    pipeline = WanPipeline.from_pretrained(model)
    pipeline.load_lora_weights(str(lora))
    loaded = get_peft_model_state_dict(
        pipeline.transformer, adapter_name=pipeline.get_active_adapters()[0]
    )
    tensors, _ = read_lora(lora)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    latents, _, text = inputs
    t = torch.tensor([300.0, 900.0])
    theirs = run(pipeline.transformer, (latents, t, text))
    torch.testing.assert_close(theirs, run(adapter, (latents, t, text)), rtol=1e-4, atol=1e-5)
    base_output = run(load_transformer(base), (latents, t, text))
    assert (theirs - base_output).abs().max() > 0.05


def test_original_names_merge_alike(tmp_path, base, foreign):
    """A base as Wan-AI published it first, with a LoRA on either naming."""
    folder = tmp_path / "original"
    shutil.copytree(base, folder)
    renamed = {original_name(n): t for n, t in load_file(base / WEIGHTS).items()}
    save_file(renamed, folder / WEIGHTS)
    assert "head.modulation" in renamed and "blocks.1.norm3.weight" in renamed
    for name in ("authors", "diffusers"):
        merge_lora(folder, foreign / f"{name}.safetensors", tmp_path / name, lora_scale=1.4)
    merge_lora(base, foreign / "authors.safetensors", tmp_path / "expected", lora_scale=1.4)
    expected = load_file(tmp_path / "expected" / WEIGHTS)
    for name in ("authors", "diffusers"):
        found = load_file(tmp_path / name / WEIGHTS)
        assert len(found) == len(expected)
        assert torch.equal(
            found["blocks.1.cross_attn.o.weight"], expected["blocks.1.attn2.to_out.0.weight"]
        )
        assert torch.equal(
            found["blocks.0.ffn.0.weight"], expected["blocks.0.ffn.net.0.proj.weight"]
        )


MEMORY = """
import resource, sys, torch
from pusa.models.lora import merge_lora
from pusa.models.stream import TensorLayout, write_tensors
names = [f"blocks.{i}.attn1.to_q" for i in range(30)]
write_tensors(
    "base/diffusion_pytorch_model.safetensors",
    {f"{n}.weight": TensorLayout(torch.bfloat16, (1024, 2048)) for n in names},
    lambda _: torch.ones(1024, 2048, dtype=torch.bfloat16), {},
)
shapes = {"A": (64, 2048), "B": (1024, 64)}
write_tensors(
    "lora.safetensors",
    {f"{n}.lora_{s}.weight": TensorLayout(torch.float32, shapes[s]) for n in names for s in "AB"},
    lambda name: torch.ones(shapes[name.split("lora_")[1][0]]), {},
)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge_lora("base", "lora.safetensors", "merged", lora_scale=1.0)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_does_not_grow_with_the_model(tmp_path):
    """120 MiB of base and 22 MiB of LoRA, in tensors of 4 MiB: a few tensors' worth of memory."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 32


# Refusals


def test_a_whole_model_folder_is_refused(tmp_path, model, lora):
    with pytest.raises(
        ValueError, match=r"is a whole model, expected its transformer, .*/transformer"
    ):
        merge_lora(model, lora, tmp_path / "merged", lora_scale=1.0)


def test_a_foreign_lora_of_other_shapes_is_refused(tmp_path, base, foreign):
    tensors = load_file(foreign / "authors.safetensors")
    tensors["blocks.1.ffn.2.lora_A.default.weight"] = torch.zeros(RANK, 49)
    save_file(tensors, tmp_path / "lora.safetensors")
    message = r"module blocks\.1\.ffn\.net\.2 is for a weight of shape \[24, 49\].*is \[24, 48\]"
    with pytest.raises(ValueError, match=message):
        merge_lora(base, tmp_path / "lora.safetensors", tmp_path / "merged", lora_scale=1.0)


def test_a_quantised_base_is_refused(tmp_path, base, foreign):
    shutil.copytree(base, tmp_path / "base")
    tensors = load_file(base / WEIGHTS)
    tensors["blocks.1.ffn.net.2.weight"] = tensors["blocks.1.ffn.net.2.weight"].char()
    save_file(tensors, tmp_path / "base" / WEIGHTS)
    with pytest.raises(
        ValueError, match=r"blocks\.1\.ffn\.net\.2\.weight is stored as torch\.int8"
    ):
        merge_lora(tmp_path / "base", foreign / "comfy.safetensors", tmp_path / "m", lora_scale=1.0)


@pytest.fixture
def sharded(tmp_path, base):
    """The base in several files."""
    folder = tmp_path / "sharded"
    WanTransformer3DModel.from_pretrained(base).save_pretrained(folder, max_shard_size="40KB")
    return folder


def test_a_missing_shard_is_named(tmp_path, sharded, lora):
    *_, last = sorted(sharded.glob("*.safetensors"))
    last.unlink()
    with pytest.raises(FileNotFoundError, match=rf"sharded lacks {last.name}"):
        merge_lora(sharded, lora, tmp_path / "merged", lora_scale=1.0)


def test_a_damaged_index_is_named(tmp_path, sharded, lora):
    (sharded / f"{WEIGHTS}.index.json").write_text('{"metadata": {}')
    with pytest.raises(
        ValueError, match=r"index\.json is damaged, expected JSON with a weight_map"
    ):
        merge_lora(sharded, lora, tmp_path / "merged", lora_scale=1.0)


def test_a_cut_shard_is_named(tmp_path, sharded, lora):
    *_, last = sorted(sharded.glob("*.safetensors"))
    os.truncate(last, last.stat().st_size - 1)
    with pytest.raises(ValueError, match=rf"{last.name} is not a readable safetensors file"):
        merge_lora(sharded, lora, tmp_path / "merged", lora_scale=1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sharded"]


def test_a_full_disk_is_seen_before_writing(tmp_path, base, lora, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    message = rf"{tmp_path}: the merged transformer needs 0\.\d+ GB, 5e-05 GB are free"
    with pytest.raises(OSError, match=message):
        merge_lora(base, lora, tmp_path / "merged", lora_scale=1.0)
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_there_is_kept(tmp_path, base, lora):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine").write_text("mine")
    for out in (tmp_path / "merged", tmp_path / "merged" / "mine", base):
        with pytest.raises(FileExistsError, match="exists already, expected a new or empty folder"):
            merge_lora(base, lora, out, lora_scale=1.0)
    assert (tmp_path / "merged" / "mine").read_text() == "mine"


def test_an_empty_output_folder_is_taken(tmp_path, base, lora):
    (tmp_path / "merged").mkdir()
    merge_lora(base, lora, tmp_path / "merged", lora_scale=1.0)
    assert read_merged(tmp_path / "merged")["lora_scale"] == 1.0


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(tmp_path, base, lora, scale):
    with pytest.raises(ValueError, match=r"lora_scale is (nan|inf), expected a finite number"):
        merge_lora(base, lora, tmp_path / "merged", lora_scale=scale)


def test_an_interrupted_merge_leaves_nothing(tmp_path, sharded, for_any_base, monkeypatch):
    """Stopped in the second shard; the next merge also clears what a killed one left."""
    written = []

    def stop(file, *arguments):
        written.append(file)
        if len(written) == 2:
            raise KeyboardInterrupt
        write_tensors(file, *arguments)

    monkeypatch.setattr("pusa.models.lora.write_tensors", stop)
    with pytest.raises(KeyboardInterrupt):
        merge_lora(sharded, for_any_base, tmp_path / "merged", lora_scale=1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["sharded"]
    monkeypatch.undo()
    left = tmp_path / ".partial-merged"
    left.mkdir()
    (left / "half.safetensors").write_text("")
    merge_lora(sharded, for_any_base, tmp_path / "merged", lora_scale=1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "sharded"]
    files = {path.name for path in sharded.iterdir()}
    assert {path.name for path in (tmp_path / "merged").iterdir()} == files


def test_another_base_is_refused(tmp_path, lora, new_transformer):
    new_transformer(seed=9).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"was trained on a base of SHA-256 .* but .*other is"):
        merge_lora(tmp_path / "other", lora, tmp_path / "merged", lora_scale=1.0)
    assert not (tmp_path / "merged").exists()


def test_a_second_merge_is_refused(tmp_path, base, lora):
    merge_lora(base, lora, tmp_path / "merged", lora_scale=1.0)
    with pytest.raises(ValueError, match="already holds a merged LoRA"):
        merge_lora(tmp_path / "merged", lora, tmp_path / "twice", lora_scale=1.0)
    assert not (tmp_path / "twice").exists()


def test_unknown_module_is_refused(tmp_path, base, lora, info):
    tensors, _ = read_lora(lora)
    for side, shape in (("A", (RANK, 24)), ("B", (24, RANK))):
        tensors[f"blocks.9.attn1.to_q.lora_{side}.weight"] = torch.zeros(shape)
    save_lora(tmp_path / "big.safetensors", tensors, info)
    with pytest.raises(ValueError, match=r"1 modules are not in .*blocks\.9\.attn1\.to_q"):
        merge_lora(base, tmp_path / "big.safetensors", tmp_path / "merged", lora_scale=1.0)


def test_lora_with_a_gap_is_refused(tmp_path, base, lora, info):
    tensors, _ = read_lora(lora)
    part = {n: t for n, t in tensors.items() if not n.startswith("blocks.1.ffn.net.2.")}
    save_lora(tmp_path / "part.safetensors", part, info)
    message = r"part\.safetensors lacks 1 of 20 modules, such as blocks\.1\.ffn\.net\.2, which"
    with pytest.raises(ValueError, match=message):
        merge_lora(base, tmp_path / "part.safetensors", tmp_path / "merged", lora_scale=1.0)
    with pytest.raises(ValueError, match=message):
        convert_lora(tmp_path / "part.safetensors", tmp_path / "c.safetensors", to="comfy")


def test_lora_of_fewer_blocks_is_refused(tmp_path, base, lora, info):
    tensors, _ = read_lora(lora)
    half = {n: t for n, t in tensors.items() if n.startswith("blocks.0.")}
    save_lora(tmp_path / "half.safetensors", half, info)
    with pytest.raises(ValueError, match=r"has 1 blocks, but .* has 2"):
        merge_lora(base, tmp_path / "half.safetensors", tmp_path / "merged", lora_scale=1.0)


def test_values_that_are_not_finite_are_refused(tmp_path, base, lora, info):
    tensors, _ = read_lora(lora)
    name = "blocks.1.attn1.to_q.lora_B.weight"
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    save_lora(tmp_path / "nan.safetensors", tensors, info)
    with pytest.raises(ValueError, match=r"attn1\.to_q\.weight with .* are not finite"):
        merge_lora(base, tmp_path / "nan.safetensors", tmp_path / "merged", lora_scale=1.0)
    assert not (tmp_path / "merged").exists()


def test_file_of_peft_is_read(tmp_path, lora):
    tensors, _ = read_lora(lora)
    save_file(
        {f"base_model.model.{n}": t for n, t in tensors.items()}, tmp_path / "peft.safetensors"
    )
    found, _ = read_lora(tmp_path / "peft.safetensors")
    assert found.keys() == tensors.keys()


def test_foreign_safetensors_file_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"foreign\.safetensors: tensor a is not of a LoRA"):
        read_lora(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 1000, -100])
def test_truncated_file_is_refused(tmp_path, lora, kept):
    file = shutil.copy(lora, tmp_path / "cut.safetensors")
    os.truncate(file, kept if kept >= 0 else lora.stat().st_size + kept)
    with pytest.raises(ValueError, match=r"cut\.safetensors is not a readable safetensors file"):
        read_lora(file)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"LoRA .*none\.safetensors does not exist"):
        read_lora(tmp_path / "none.safetensors")


def test_missing_base_is_named(tmp_path, lora):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        merge_lora(tmp_path / "nowhere", lora, tmp_path / "merged", lora_scale=1.0)


# Other formats


def as_authors(tensors, infix=".default"):
    """Tensors of `read_lora` as the authors name them."""
    renamed = {}
    for name, tensor in tensors.items():
        module, side, _ = name.rsplit(".", 2)
        renamed[f"{to_wan(module)}.{side}{infix}.weight"] = tensor
    return renamed


@pytest.fixture(scope="module")
def foreign(lora, tmp_path_factory):
    """Files in the formats of others, bfloat16, alpha the rank; their effect is the same."""
    folder = tmp_path_factory.mktemp("foreign")
    tensors = {name: tensor.bfloat16() for name, tensor in read_lora(lora)[0].items()}
    authors = as_authors(tensors)
    musubi = {}
    for name, tensor in authors.items():
        module, side = name.removesuffix(".default.weight").rsplit(".", 1)
        side = {"lora_A": "lora_down", "lora_B": "lora_up"}[side]
        musubi[f"lora_unet_{module.replace('.', '_')}.{side}.weight"] = tensor
        musubi[f"lora_unet_{module.replace('.', '_')}.alpha"] = torch.tensor(RANK).bfloat16()
    files = {
        "diffusers": {f"transformer.{name}": tensor for name, tensor in tensors.items()},
        "bare": tensors,
        "authors": authors,
        "comfy": {f"diffusion_model.{n}": t for n, t in as_authors(tensors, "").items()},
        "musubi": musubi,
    }
    for name, content in files.items():
        save_file(content, folder / f"{name}.safetensors")
    torch.save(authors, folder / "authors.pt")
    return folder


FOREIGN = [
    "diffusers.safetensors",
    "bare.safetensors",
    "authors.safetensors",
    "authors.pt",
    "comfy.safetensors",
    "musubi.safetensors",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_read_lora_of_others(foreign, lora, name):
    tensors, info = read_lora(foreign / name)
    expected = read_lora(lora)[0]
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[n], expected[n].bfloat16()) for n in tensors)
    assert (info.rank, info.lora_alpha) == (RANK, RANK)
    assert (info.base, info.iteration, info.p_async, info.vectorized) == (None,) * 4
    assert info.targets == tuple(
        sorted(
            [f"attn{i}.{t}" for i in (1, 2) for t in TARGETS[:4]] + ["ffn.net.0.proj", "ffn.net.2"]
        )
    )


@pytest.mark.parametrize("name", FOREIGN[1:])
def test_a_lora_merges_alike_in_every_format(tmp_path, base, foreign, name):
    """Also what is recorded of it: the weights are the same bytes."""
    for file in (FOREIGN[0], name):
        merge_lora(base, foreign / file, tmp_path / file, lora_scale=1.4)
    first, second = (tmp_path / file / WEIGHTS for file in (FOREIGN[0], name))
    assert first.read_bytes() == second.read_bytes()


def test_alpha_of_a_module_counts_in_a_merge(tmp_path, base, foreign):
    tensors = load_file(foreign / "comfy.safetensors")
    tensors["diffusion_model.blocks.0.self_attn.q.alpha"] = torch.tensor(2.0 * RANK)
    save_file(tensors, tmp_path / "lora.safetensors")
    merge_lora(base, foreign / "comfy.safetensors", tmp_path / "one", lora_scale=1.0)
    merge_lora(base, tmp_path / "lora.safetensors", tmp_path / "two", lora_scale=1.0)
    weights = [load_file(folder / WEIGHTS) for folder in (base, tmp_path / "one", tmp_path / "two")]
    name = "blocks.0.attn1.to_q.weight"
    before, one, two = (w.pop(name) for w in weights)
    torch.testing.assert_close(two - before, 2 * (one - before))
    assert all(torch.equal(weights[1][n], weights[2][n]) for n in weights[1])
    records = [read_merged(tmp_path / folder)["sha256"] for folder in ("one", "two")]
    assert records[0] != records[1]


@pytest.mark.parametrize(
    "start", ["authors.safetensors", "diffusers.safetensors", "comfy.safetensors"]
)
@pytest.mark.parametrize("way", ["diffusers", "comfy", "authors"])
def test_round_trip_of_foreign_tensors(tmp_path, foreign, start, way):
    home = start.removesuffix(".safetensors")
    convert_lora(foreign / start, tmp_path / "a.safetensors", to=way)
    convert_lora(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to=home)
    before, after = load_file(foreign / start), load_file(tmp_path / "b.safetensors")
    assert before.keys() == after.keys()
    assert all(t.dtype == torch.bfloat16 and torch.equal(t, after[n]) for n, t in before.items())


def test_round_trip_of_our_file_keeps_its_bytes(tmp_path, lora):
    """With its alpha, which is not its rank, and all that is known of the training."""
    convert_lora(lora, tmp_path / "a.safetensors", to="comfy")
    convert_lora(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="diffusers")
    assert (tmp_path / "b.safetensors").read_bytes() == lora.read_bytes()
    tensors = load_file(tmp_path / "a.safetensors")
    assert tensors["diffusion_model.blocks.1.ffn.0.alpha"] == ALPHA


def test_conversion_tells_how_the_lora_was_trained(tmp_path, lora, info, foreign):
    before, after = convert_lora(lora, tmp_path / "a.safetensors", to="comfy")
    assert (len(before.layout), len(after.layout), len(after.modules)) == (40, 60, 20)
    assert lora_info(after) == info
    _, after = convert_lora(foreign / "authors.pt", tmp_path / "b.safetensors", to="diffusers")
    assert json.loads(after.metadata["pusa"])["vectorized"] is None
    assert json.loads(after.metadata["lora_adapter_metadata"])["transformer.r"] == RANK


def test_ranks_and_alphas_of_modules_survive(tmp_path, foreign):
    tensors = load_file(foreign / "comfy.safetensors")
    name = "diffusion_model.blocks.1.ffn.2"
    for side, dim in (("A", 0), ("B", 1)):
        key = f"{name}.lora_{side}.weight"
        tensors[key] = torch.cat([tensors[key]] * 2, dim)
    tensors[f"{name}.alpha"] = torch.tensor(2.5)
    save_file(tensors, tmp_path / "a.safetensors")
    first, _ = convert_lora(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="diffusers")
    _, second = convert_lora(tmp_path / "b.safetensors", tmp_path / "c.safetensors", to="comfy")
    assert first.modules == second.modules
    module = first.modules["blocks.1.ffn.net.2"]
    assert (module.rank, module.alpha) == (2 * RANK, 2.5)


def test_alpha_is_folded_into_the_authors_format(tmp_path, lora):
    """Alpha / rank is 2: exact."""
    _, after = convert_lora(lora, tmp_path / "a.safetensors", to="authors")
    assert lora_info(after).lora_alpha == RANK
    before, tensors = read_lora(lora)[0], read_lora(tmp_path / "a.safetensors")[0]
    for name, tensor in before.items():
        assert torch.equal(tensors[name], tensor * 2 if "lora_B" in name else tensor), name


def test_alpha_that_would_round_is_refused(tmp_path, lora, info):
    save_lora(tmp_path / "a.safetensors", read_lora(lora)[0], replace(info, lora_alpha=2))
    with pytest.raises(ValueError, match=r"alpha 2 and rank 3; the authors' format has no alpha"):
        convert_lora(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="authors")
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("to", ["diffusers", "comfy"])
@pytest.mark.parametrize("start", ["ours", "authors", "musubi"])
def test_diffusers_pipeline_loads_what_we_export(
    tmp_path, model, base, lora, foreign, inputs, start, to
):
    """As much as the file that it began as, merged by us; and not the base."""
    source = lora if start == "ours" else foreign / f"{start}.safetensors"
    convert_lora(source, tmp_path / "lora.safetensors", to=to)
    pipeline = WanPipeline.from_pretrained(model)
    pipeline.load_lora_weights(str(tmp_path / "lora.safetensors"))
    latents, _, text = inputs
    inputs = (latents, torch.tensor([300.0, 900.0]), text)
    theirs = run(pipeline.transformer, inputs)
    merge_lora(base, source, tmp_path / "merged", lora_scale=1.0)
    ours = run(load_transformer(tmp_path / "merged"), inputs)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert (theirs - run(load_transformer(base), inputs)).abs().max() > 0.05


def test_released_lora_in_diffusers_is_the_adapter(tmp_path, model, lora, adapter, inputs):
    """From the authors' format, with nothing of our metadata, to PEFT's adapted model."""
    convert_lora(lora, tmp_path / "authors.safetensors", to="authors")
    torch.save(load_file(tmp_path / "authors.safetensors"), tmp_path / "released.pt")
    convert_lora(tmp_path / "released.pt", tmp_path / "lora.safetensors", to="diffusers", rank=RANK)
    pipeline = WanPipeline.from_pretrained(model)
    pipeline.load_lora_weights(str(tmp_path / "lora.safetensors"))
    latents, _, text = inputs
    inputs = (latents, torch.tensor([300.0, 900.0]), text)
    theirs = run(pipeline.transformer, inputs)
    torch.testing.assert_close(theirs, run(adapter, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lora.pt", "lora.bin", "lora"])
def test_only_safetensors_are_written(tmp_path, lora, name):
    with pytest.raises(ValueError, match=r"expected a name in \.safetensors"):
        convert_lora(lora, tmp_path / name, to="authors")


def test_an_existing_file_is_not_overwritten(tmp_path, lora):
    (tmp_path / "a.safetensors").write_text("mine")
    with pytest.raises(FileExistsError, match=r"a\.safetensors exists already"):
        convert_lora(lora, tmp_path / "a.safetensors", to="comfy")
    assert (tmp_path / "a.safetensors").read_text() == "mine"


def test_another_rank_than_asked_for_is_refused(tmp_path, lora):
    with pytest.raises(ValueError, match=r"iteration_7\.safetensors has rank 3, expected 512"):
        convert_lora(lora, tmp_path / "a.safetensors", to="comfy", rank=512)


def test_metadata_of_another_version_is_refused(tmp_path, lora):
    save_file(load_file(lora), tmp_path / "a.safetensors", {"pusa": '{"rank": 3}'})
    with pytest.raises(ValueError, match=r"a\.safetensors: metadata 'pusa' is not of this version"):
        read_lora(tmp_path / "a.safetensors")


# Command line


@pytest.fixture
def pusa():
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_convert_command_counts(tmp_path, pusa, foreign, lora):
    done = pusa("convert", "--to", "comfy", foreign / "authors.pt", tmp_path / "a.safetensors")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "authors to comfy: 40 tensors in, 40 out, 20 modules, rank 3",
        "trained with a timestep per frame, so image-to-video: unknown",
    ]
    done = pusa("convert", "--to", "diffusers", lora, tmp_path / "b.safetensors")
    assert done.stdout.endswith("image-to-video: yes\n")


def test_merge_command(tmp_path, pusa, base, lora):
    words = ["--base", base, "--lora", lora, "--lora-scale", 1.4, "--out", tmp_path / "merged"]
    done = pusa("merge", *words, "--dtype", "bfloat16")
    assert done.exit_code == 0, done.output
    assert read_merged(tmp_path / "merged")["lora_scale"] == 1.4
    weight = load_file(tmp_path / "merged" / WEIGHTS)["blocks.0.attn1.to_q.weight"]
    assert weight.dtype == torch.bfloat16
