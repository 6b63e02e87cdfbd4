import json
import os
import shutil

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pusa.lora import LoraInfo, fingerprint, merge_lora, read_lora, read_merged, save_lora
from pusa.models import load_transformer

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
        base=fingerprint(base),
        iteration=7,
        p_async=1.0,
        vectorized=True,
    )


@pytest.fixture(scope="module")
def lora(adapter, info, tmp_path_factory):
    file = tmp_path_factory.mktemp("lora") / "deep" / "iteration_7.safetensors"
    save_lora(file, get_peft_model_state_dict(adapter, adapter_name="default"), info)
    return file


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(2, 16, 3, 4, 4, generator=generator),
        torch.tensor([[0.0, 300.0, 900.0], [50.0, 1000.0, 10.0]]),
        torch.randn(2, 5, 64, generator=generator),
    )


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
        "base": fingerprint(base),
        "iteration": 7,
        "p_async": 1.0,
        "vectorized": True,
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


def test_merge_keeps_the_storage_type_and_rounds_once(tmp_path, base, lora):
    half = tmp_path / "half"
    WanTransformer3DModel.from_pretrained(base).to(torch.bfloat16).save_pretrained(half)
    merge_lora(half, lora, tmp_path / "merged", lora_scale=1.0)
    before, after = load_file(half / WEIGHTS), load_file(tmp_path / "merged" / WEIGHTS)
    assert {n: t.dtype for n, t in before.items()} == {n: t.dtype for n, t in after.items()}
    name = "blocks.0.attn1.to_q"
    tensors, _ = read_lora(lora)
    product = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    expected = (before[f"{name}.weight"].float() + ALPHA / RANK * product).bfloat16()
    assert torch.equal(after[f"{name}.weight"], expected)


def test_sharded_base_merges_alike(tmp_path, base, lora, inputs):
    sharded = tmp_path / "sharded"
    WanTransformer3DModel.from_pretrained(base).save_pretrained(sharded, max_shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    for folder in (base, sharded):
        merge_lora(folder, lora, tmp_path / f"merged-{folder.name}", lora_scale=1.4)
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


# Refusals


def test_another_base_is_refused(tmp_path, lora, new_transformer):
    new_transformer(seed=9).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"was trained on the base .* but .*other is"):
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


def test_foreign_safetensors_file_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"foreign\.safetensors has no 'pusa' metadata"):
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


# Fingerprint


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fingerprint_is_that_of_a_half_copy(tmp_path, model, dtype):
    """The released weights are bfloat16; a copy stored wider or narrower is the same model."""
    source = WanTransformer3DModel.from_pretrained(model / "transformer").to(torch.bfloat16)
    names = ("a", "b")
    for name, kind in zip(names, (torch.float32, dtype), strict=True):
        source.to(kind).save_pretrained(tmp_path / name)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")


def test_fingerprint_of_a_float16_copy_of_float32_weights(tmp_path, model):
    """Weights that float16 cannot hold exactly, as those that a training leaves."""
    source = WanTransformer3DModel.from_pretrained(model / "transformer")
    source.to(torch.float16).save_pretrained(tmp_path)
    assert fingerprint(tmp_path) == fingerprint(model / "transformer")


def test_fingerprint_does_not_depend_on_shards(tmp_path, new_transformer):
    new_transformer().save_pretrained(tmp_path / "one")
    new_transformer().save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "many")


def test_fingerprint_differs_for_another_model(tmp_path, model, new_transformer):
    new_transformer(seed=1).save_pretrained(tmp_path)
    assert fingerprint(tmp_path) != fingerprint(model / "transformer")


def test_fingerprint_differs_for_another_shape(tmp_path, model):
    tensors = load_file(model / "transformer" / WEIGHTS)
    tensors["blocks.0.ffn.net.2.weight"] = tensors["blocks.0.ffn.net.2.weight"][:, :-1].clone()
    save_file(tensors, tmp_path / WEIGHTS)
    assert fingerprint(tmp_path) != fingerprint(model / "transformer")
