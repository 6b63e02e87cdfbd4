"""Relative changes against a direct computation from whole matrices in memory."""

import json
import math
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pusa.cli import app
from pusa.models.drift import (
    lora_drift,
    mean_by_block,
    mean_by_module,
    module_kind,
    transformer_drift,
)
from pusa.models.folder import digest_weights
from pusa.models.lora import LoraInfo, convert_lora, lora_info, merge_lora, save_lora
from pusa.models.lora_formats import PREFIX, open_lora

WEIGHTS = "diffusion_pytorch_model.safetensors"
RANK, ALPHA, SCALE = 3, 6, 1.4  # alpha is not the rank, so that a forgotten alpha / rank shows
TOUCHED = ("attn1.to_q", "attn2.to_v", "ffn.net.2")


@pytest.fixture(scope="module")
def base(model):
    return model / "transformer"


@pytest.fixture(scope="module")
def before(base):
    return {name: tensor.double() for name, tensor in load_file(base / WEIGHTS).items()}


@pytest.fixture(scope="module")
def factors(before):
    generator = torch.Generator().manual_seed(0)
    pairs = {}
    for module in (f"blocks.{block}.{name}" for block in (0, 1) for name in TOUCHED):
        rows, columns = before[f"{module}.weight"].shape
        pairs[module] = (
            torch.randn(RANK, columns, generator=generator),
            0.1 * torch.randn(rows, RANK, generator=generator),
        )
    return pairs


@pytest.fixture(scope="module")
def lora(base, factors, tmp_path_factory):
    file = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    tensors = {}
    for module, (down, up) in factors.items():
        tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = down, up
    info = LoraInfo(
        rank=RANK,
        lora_alpha=ALPHA,
        targets=TOUCHED,
        base=digest_weights(base),
        iteration=1,
        p_async=1.0,
        vectorized=True,
    )
    save_lora(file, tensors, info)
    return file


@pytest.fixture
def trained(base, before, tmp_path):
    """A function that writes the base with changes, in one file."""

    def write(**changes):
        tensors = {name: tensor.float() for name, tensor in before.items()}
        tensors.update({name.replace("__", "."): tensor for name, tensor in changes.items()})
        folder = tmp_path / "trained"
        folder.mkdir()
        shutil.copy(base / "config.json", folder)
        save_file({n: t for n, t in tensors.items() if t is not None}, folder / WEIGHTS)
        return folder

    return write


def by_name(changes):
    return dict(zip(changes["parameter"], changes["relative_change"], strict=True))


def test_every_parameter_of_a_trained_model(base, before, trained):
    generator = torch.Generator().manual_seed(1)
    after = {
        n: t.float() + 0.1 * torch.randn(t.shape, generator=generator) for n, t in before.items()
    }
    changes = transformer_drift(base, trained(**after))
    assert sorted(changes["parameter"]) == sorted(before)
    for name, change in by_name(changes).items():
        expected = (after[name].double() - before[name]).norm() / before[name].norm()
        assert change == pytest.approx(expected.item(), rel=1e-12)


def test_rows_are_summed_over_parts(monkeypatch, base, before, trained):
    """24 rows of a weight in parts of 10, 10 and 4."""
    monkeypatch.setattr("pusa.models.drift._ROWS", 10)
    name = "blocks.1.attn1.to_k.weight"
    changes = by_name(transformer_drift(base, trained(**{name: (2 * before[name]).float()})))
    assert changes.pop(name) == pytest.approx(1, rel=1e-12)
    assert set(changes.values()) == {0.0}


def test_a_lora_is_the_norm_of_its_product(base, before, factors, lora):
    changes = by_name(lora_drift(base, lora, lora_scale=SCALE))
    assert changes.keys() == before.keys()
    for module, (down, up) in factors.items():
        product = SCALE * ALPHA / RANK * (up.double() @ down.double())
        expected = (product.norm() / before[f"{module}.weight"].norm()).item()
        assert changes.pop(f"{module}.weight") == pytest.approx(expected, rel=1e-12)
    assert set(changes.values()) == {0.0}


def test_merged_agrees_with_the_lora(base, lora, tmp_path):
    merge_lora(base, lora, tmp_path / "merged", lora_scale=SCALE)
    merged = transformer_drift(base, tmp_path / "merged")
    # The merged weights are rounded to float32.
    pd.testing.assert_frame_equal(merged, lora_drift(base, lora, lora_scale=SCALE), rtol=1e-5)


def test_every_format_and_a_negative_scale(base, lora, tmp_path):
    convert_lora(lora, tmp_path / "comfy.safetensors", to="comfy")
    ours = lora_drift(base, lora, lora_scale=-1.0)
    pd.testing.assert_frame_equal(lora_drift(base, tmp_path / "comfy.safetensors"), ours)


def test_shards(base, lora, tmp_path):
    whole = WanTransformer3DModel.from_pretrained(base)
    whole.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    changes = transformer_drift(tmp_path / "shards", base)
    assert set(changes["relative_change"]) == {0.0}
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(lora).items()}
    anywhere = tmp_path / "any.safetensors"
    save_lora(anywhere, tensors, replace(lora_info(open_lora(lora)), base=None))
    pd.testing.assert_frame_equal(lora_drift(tmp_path / "shards", anywhere), lora_drift(base, lora))


def test_image_to_video_model(base, before, trained):
    """More input channels: the base's are compared. An image's embedding is listed alone."""
    patches = before["patch_embedding.weight"].float()
    wider = torch.cat([1.5 * patches, torch.ones(len(patches), 20, 1, 2, 2)], dim=1)
    extra = {
        "condition_embedder.image_embedder.norm1.weight": torch.ones(8),
        "blocks.1.attn2.add_k_proj.weight": torch.ones(24, 24),
        "blocks.1.attn2.norm_added_k.weight": torch.ones(24),
    }
    changes = transformer_drift(base, trained(patch_embedding__weight=wider, **extra))
    change = by_name(changes)
    assert change["patch_embedding.weight"] == pytest.approx(0.5, rel=1e-6)
    assert {name for name, value in change.items() if math.isnan(value)} == set(extra)
    assert set(changes.loc[changes["parameter"].isin(extra), "module"]) == {"image"}
    assert "image" not in mean_by_module(changes)
    assert mean_by_block(changes).to_dict() == {0: 0.0, 1: 0.0}


def test_a_change_from_zero_has_no_size(before, trained, tmp_path):
    name = "blocks.0.attn1.to_q.bias"
    base = trained(**{name: torch.zeros(24)}).rename(tmp_path / "base")
    changes = by_name(transformer_drift(base, trained()))
    assert math.isnan(changes.pop(name))
    assert set(changes.values()) == {0.0}


@pytest.mark.parametrize(
    ("parameter", "kind"),
    [
        ("blocks.12.attn1.to_q.weight", "self-attention"),
        ("blocks.0.attn1.to_out.0.bias", "self-attention"),
        ("blocks.0.attn1.norm_q.weight", "norm"),
        ("blocks.0.norm2.bias", "norm"),
        ("blocks.0.attn2.to_k.weight", "cross-attention"),
        ("blocks.0.attn2.add_v_proj.weight", "image"),
        ("blocks.0.attn2.norm_added_k.weight", "image"),
        ("blocks.0.ffn.net.0.proj.weight", "feed-forward"),
        ("blocks.0.scale_shift_table", "modulation"),
        ("scale_shift_table", "head"),
        ("proj_out.weight", "head"),
        ("patch_embedding.weight", "embedding"),
        ("condition_embedder.time_proj.bias", "embedding"),
        ("condition_embedder.image_embedder.ff.net.2.weight", "image"),
    ],
)
def test_module_kinds(parameter, kind):
    assert module_kind(parameter) == kind


def test_unknown_parameter():
    with pytest.raises(ValueError, match=r"blocks\.0\.self_attn\.q\.weight is no parameter"):
        module_kind("blocks.0.self_attn.q.weight")


def test_means():
    changes = pd.DataFrame(
        {
            "module": ["norm", "norm", "head", "image"],
            "block": pd.array([0, 1, None, 1], dtype="Int64"),
            "relative_change": [0.1, 0.3, 0.5, math.nan],
        }
    )
    assert mean_by_module(changes).to_dict() == {"head": 0.5, "norm": pytest.approx(0.2)}
    assert mean_by_block(changes).to_dict() == {0: 0.1, 1: 0.3}


def test_command(base, lora, tmp_path):
    merge_lora(base, lora, tmp_path / "merged", lora_scale=SCALE)
    of = {
        "lora": ["--lora", str(lora), "--lora-scale", str(SCALE)],
        "merged": ["--other", str(tmp_path / "merged")],
    }
    tables = {}
    for name, options in of.items():
        out = tmp_path / "drift" / f"{name}.csv"
        result = CliRunner().invoke(app, ["drift", str(base), str(out), *options])
        assert result.exit_code == 0, result.output
        assert "self-attention" in result.output
        tables[name] = pd.read_csv(out)
        assert json.loads(out.with_suffix(".json").read_text())["label"] == name
    assert list(tables["lora"]) == ["parameter", "module", "block", "relative_change"]
    assert tables["lora"]["block"].isna().any()
    pd.testing.assert_frame_equal(tables["lora"], tables["merged"], rtol=1e-5)


# Bad input


@pytest.mark.parametrize("options", [[], ["--other", "x", "--lora", "y"]])
def test_command_wants_one_of_two(base, tmp_path, options):
    result = CliRunner().invoke(app, ["drift", str(base), str(tmp_path / "x.csv"), *options])
    assert "expected either --other or --lora" in str(result.exception)


def test_command_wants_no_scale_without_lora(base, tmp_path):
    words = ["drift", base, tmp_path / "x.csv", "--other", base, "--lora-scale", 2]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert "--lora-scale is for --lora" in str(result.exception)


def test_other_parameters(base, trained):
    name = "blocks.1.ffn.net.2.bias"
    other = trained(**{name: None})
    with pytest.raises(ValueError, match=f"{name} is only in {base}"):
        transformer_drift(base, other)
    with pytest.raises(ValueError, match=f"{name} is only in {base}"):
        transformer_drift(other, base)


def test_other_shapes(base, trained):
    other = trained(**{"blocks.0.attn1.to_q.weight": torch.ones(24, 30)})
    with pytest.raises(ValueError, match=r"to_q.weight has shape \[24, 30\] in .*\[24, 24\] in"):
        transformer_drift(base, other)


def test_fewer_input_channels(base, trained):
    other = trained(patch_embedding__weight=torch.ones(24, 4, 1, 2, 2))
    with pytest.raises(ValueError, match=r"patch_embedding.weight has shape \[24, 4, 1, 2, 2\]"):
        transformer_drift(base, other)


def test_values_that_are_not_finite(base, trained):
    name = "blocks.0.attn1.to_q.bias"
    with pytest.raises(ValueError, match=f"{name} has values that are not finite"):
        transformer_drift(base, trained(**{name: torch.full((24,), math.inf)}))


def test_lora_of_another_base(lora, trained):
    other = trained(proj_out__bias=-torch.ones(64))
    with pytest.raises(ValueError, match="was trained on a base of SHA-256"):
        lora_drift(other, lora)


def test_lora_of_other_modules(base, tmp_path):
    module, file = "blocks.7.attn1.to_q", tmp_path / "other.safetensors"
    sides = {"A": torch.ones(2, 24), "B": torch.ones(24, 2)}
    save_file({f"{module}.lora_{side}.weight": tensor for side, tensor in sides.items()}, file)
    with pytest.raises(ValueError, match=f"1 of 1 modules are not in .*, such as {module}"):
        lora_drift(base, file)


def test_whole_model_for_a_transformer(model, lora):
    with pytest.raises(ValueError, match="is a whole model, expected its transformer"):
        lora_drift(model, lora)
    with pytest.raises(ValueError, match="is a whole model, expected its transformer"):
        transformer_drift(model / "transformer", model)


def test_missing_folder(base, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        transformer_drift(base, tmp_path / "nowhere")


def test_scale_that_is_not_finite(base, lora):
    with pytest.raises(ValueError, match="lora_scale is nan"):
        lora_drift(base, lora, lora_scale=math.nan)
