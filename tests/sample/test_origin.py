import json
import shutil

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from pusa.config import VideoSettings, Weights
from pusa.models.folder import digest_weights
from pusa.models.lora import convert_lora, merge_lora
from pusa.sample.origin import check_size, describe_baseline, describe_model


@pytest.fixture(scope="module")
def merged(model, lora, tmp_path_factory):
    out = tmp_path_factory.mktemp("merged") / "transformer"
    merge_lora(model / "transformer", lora, out, lora_scale=1.0)
    return str(out)


def test_what_is_told_of_a_model(model, lora):
    origin = describe_model(model, Weights(lora=[f"{lora}:1.4"], dtype="bfloat16"))
    [described] = origin["transformer"].pop("loras")
    assert len(described.pop("sha256")) == 64
    assert described == {"file": "a.safetensors", "lora_scale": 1.4, "vectorized": True}
    weights = digest_weights(model / "transformer")
    assert origin["transformer"] == {"weights": weights, "merged": {}}
    assert (origin["model"], origin["dtype"]) == (model.name, "bfloat16")


def test_models_are_told_apart(model, lora, merged, tmp_path, new_transformer):
    """A merge leaves the fingerprint's tensors alone; what was merged is compared too."""
    merge_lora(model / "transformer", lora, tmp_path / "merged", lora_scale=1.1)
    new_transformer(seed=4).save_pretrained(tmp_path / "other")
    chosen = [
        {},
        {"lora": [lora]},
        {"lora": [f"{lora}:1.5"]},
        {"transformer": merged},
        {"transformer": str(tmp_path / "merged")},
        {"transformer": str(tmp_path / "other")},
        {"dtype": "bfloat16"},
    ]
    origins = [json.dumps(describe_model(model, Weights(**weights))) for weights in chosen]
    assert len(set(origins)) == len(chosen)


def test_one_lora_serves_both_experts(pair, lora):
    origin = describe_model(pair, Weights(lora=[lora], lora_2=[lora]))
    assert origin["transformer"]["loras"] == origin["transformer_2"]["loras"]
    assert origin["boundary_ratio"] == 0.9


def test_what_is_told_of_a_baseline(baseline, tmp_path):
    origin = describe_baseline(baseline, "float32")
    assert origin["baseline"] == digest_weights(baseline / "transformer")
    assert origin["shift"] is None  # the pipeline has a scheduler of its own
    other = shutil.copytree(baseline, tmp_path / baseline.name)
    FlowMatchEulerDiscreteScheduler(shift=8.0).save_pretrained(other / "scheduler")
    differing = {k for k, v in describe_baseline(other, "float32").items() if v != origin[k]}
    assert differing == {"scheduler"}


# What is refused


def cut_rows(tensors):
    name = "blocks.0.attn1.to_q.lora_B.weight"
    tensors[name] = tensors[name][:-1].clone()


def rename_layer(tensors):
    for side in "AB":
        weight = tensors.pop(f"blocks.1.attn1.to_q.lora_{side}.weight")
        tensors[f"blocks.9.attn1.to_q.lora_{side}.weight"] = weight


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_rows, r"is for a weight of shape \[23, 24\]"),
        (rename_layer, r"1 of 4 modules are not in .*, such as blocks\.9\.attn1\.to_q"),
    ],
)
def test_lora_that_does_not_fit(model, write_lora, tmp_path, spoil, message):
    file = write_lora(tmp_path / "b.safetensors", spoil=spoil)
    with pytest.raises(ValueError, match=message):
        describe_model(model, Weights(lora=[file]))


def test_lora_twice(model, lora, merged, tmp_path):
    renamed = str(tmp_path / "renamed.safetensors")
    convert_lora(lora, renamed, to="comfy")
    with pytest.raises(ValueError, match=r"renamed.* applied twice, it is given as .*a\.safet"):
        describe_model(model, Weights(lora=[lora, f"{renamed}:0.5"]))
    with pytest.raises(ValueError, match=r"applied twice, it is merged into .*transformer already"):
        describe_model(model, Weights(transformer=merged, lora=[lora]))


def test_lora_without_its_expert_or_scale(model, lora):
    with pytest.raises(ValueError, match=r"given for the low-noise expert, but .* has no transfor"):
        describe_model(model, Weights(lora_2=[lora]))
    with pytest.raises(ValueError, match=r"lora_scale of .* is nan, expected a finite number"):
        describe_model(model, Weights(lora=[f"{lora}:nan"]))


def test_missing_files_are_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"LoRA .*none\.safetensors does not exist"):
        describe_model(model, Weights(lora=[str(tmp_path / "none.safetensors")]))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        describe_model(model, Weights(transformer=str(tmp_path / "nowhere")))
    shutil.copytree(model, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "vae")
    with pytest.raises(FileNotFoundError, match=r"lacks vae/config\.json"):
        describe_model(tmp_path / "model", Weights())


def test_models_of_another_kind(model, pair, baseline, tmp_path):
    with pytest.raises(ValueError, match=r"takes 36 channels and gives 16, expected a text-to-v"):
        describe_model(model, Weights(transformer=str(baseline / "transformer")))
    with pytest.raises(ValueError, match="is of a WanPipeline, expected a WanImageToVideoPipeline"):
        describe_baseline(model, "float32")
    folder = tmp_path / "model"
    shutil.copytree(pair, folder)
    index = json.loads((folder / "model_index.json").read_text())
    for boundary in (None, "0.9", True, 1.5, float("nan")):
        (folder / "model_index.json").write_text(json.dumps(index | {"boundary_ratio": boundary}))
        with pytest.raises(ValueError, match=r"model_index\.json: boundary_ratio .* between 0 and"):
            describe_model(folder, Weights())


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (480, 830, "width must be a multiple of 16.* found 830; 816 and 832 are the nearest"),
        (24, 832, "height must be a multiple of 16.* found 24; 16 and 32 are the nearest"),
    ],
)
def test_size_that_is_not_divided(height, width, message):
    size = VideoSettings(frames=81, height=height, width=width)
    with pytest.raises(ValueError, match=message):
        check_size(size, vae={}, transformer={"patch_size": (1, 2, 2)})  # as Wan2.1 has them


def test_more_patches_than_the_transformer_can_place():
    config = {"patch_size": (1, 2, 2), "rope_max_seq_len": 4}
    size = VideoSettings(frames=9, height=64, width=80, steps=1)
    with pytest.raises(ValueError, match=r"width: found 80, .* 5 patches, expected at most 4"):
        check_size(size, vae={}, transformer=config)
