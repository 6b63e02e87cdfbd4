import json
import os
import shutil

import pytest
from safetensors.torch import load_file, save_file

from pusa.models.folder import (
    PARTS,
    check_baseline_folder,
    check_model_folder,
    digest_weights,
    require_files,
    weight_files,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tmp_path, model):
    """A copy of the model folder, by links, that a test may take files from."""
    return shutil.copytree(model, tmp_path / "model", copy_function=os.link)


def test_whole_folder_passes(model):
    check_model_folder(model)


@pytest.mark.parametrize("part", [*PARTS, "transformer/config.json", f"transformer/{WEIGHTS}"])
def test_missing_part_is_named(copy, part):
    if (copy / part).is_dir():
        shutil.rmtree(copy / part)
    else:
        (copy / part).unlink()
    with pytest.raises(
        FileNotFoundError, match=f"lacks {part.removeprefix('transformer/')}|{part}"
    ):
        check_model_folder(copy)


@pytest.mark.parametrize("part", [f"vae/{WEIGHTS}", "text_encoder/model.safetensors"])
def test_missing_weights_of_other_parts_are_named(copy, part):
    (copy / part).unlink()
    with pytest.raises(FileNotFoundError):
        check_model_folder(copy)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model folder .*nowhere does not exist"):
        require_files(tmp_path / "nowhere", [])


def test_all_missing_files_are_listed(tmp_path):
    (tmp_path / "b").touch()
    with pytest.raises(FileNotFoundError, match="lacks a, c; expected a text-to-video model"):
        require_files(tmp_path, ["a", "b", "c"])


def test_one_file_of_weights(model):
    assert weight_files(model / "transformer") == [model / "transformer" / WEIGHTS]


def test_missing_shard_is_named(tmp_path, new_transformer):
    new_transformer().save_pretrained(tmp_path, max_shard_size="40KB")
    shards = weight_files(tmp_path)
    assert len(shards) > 1
    assert shards == sorted(tmp_path.glob("*.safetensors"))
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {shards[1].name};"):
        weight_files(tmp_path)


def test_damaged_download_says_how_to_mend_it(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "download.json").write_text("{}")
    check_model_folder(folder)
    (folder / "vae/config.json").unlink()
    message = r"lacks vae/config\.json; .*delete .*download\.json to have it downloaded again"
    with pytest.raises(FileNotFoundError, match=message):
        check_model_folder(folder)


# An image-to-video model


@pytest.mark.parametrize(
    "part", ["model_index.json", "vae/config.json", "scheduler/scheduler_config.json"]
)
def test_missing_part_of_a_baseline_is_named(tmp_path, baseline, part):
    check_baseline_folder(baseline)
    copy = shutil.copytree(baseline, tmp_path / "baseline", copy_function=os.link)
    (copy / part).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {part}; expected an image-to-video model"):
        check_baseline_folder(copy)


def test_missing_image_encoder_is_named(tmp_path, baseline):
    copy = shutil.copytree(baseline, tmp_path / "baseline")
    index = json.loads((copy / "model_index.json").read_text())
    index["image_encoder"] = ["transformers", "CLIPVisionModel"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"lacks image_encoder/config\.json"):
        check_baseline_folder(copy)


@pytest.mark.parametrize("named", [5, [], ["diffusers"], [None, "WanTransformer3DModel"], {}])
def test_a_part_that_is_none(tmp_path, baseline, named):
    index = json.loads((baseline / "model_index.json").read_text()) | {"transformer_2": named}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model_index\.json: transformer_2 is .* expected a lib"):
        check_baseline_folder(tmp_path)


def test_a_folder_where_weights_are_to_be(tmp_path, model):
    for part in ("transformer", "vae", "text_encoder"):
        copy = shutil.copytree(model, tmp_path / part, copy_function=os.link)
        (weights,) = (copy / part).glob("*.safetensors")
        weights.unlink()
        weights.mkdir()
        with pytest.raises(FileNotFoundError, match=f"lacks {weights.name}|weights in {part}"):
            check_model_folder(copy)


def test_pair_of_experts_is_no_baseline(tmp_path, baseline):
    shutil.copytree(baseline, tmp_path / "pair")
    index = json.loads((baseline / "model_index.json").read_text())
    index["transformer_2"] = ["diffusers", "WanTransformer3DModel"]
    (tmp_path / "pair" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"pair has two experts, as Wan2\.2-I2V, expected one"):
        check_baseline_folder(tmp_path / "pair")


def test_text_to_video_is_no_baseline(model):
    message = "is of a WanPipeline, expected a WanImageToVideoPipeline"
    with pytest.raises(ValueError, match=message):
        check_baseline_folder(model)


def test_weights_are_told_apart_by_their_content(copy, model, tmp_path):
    """All weights of the blocks are noise, and nothing else is changed."""
    before = digest_weights(model / "transformer")
    file = copy / "transformer" / WEIGHTS
    assert digest_weights(file.parent) == before
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.startswith("blocks.") and tensor.ndim == 2:
            tensor.normal_()
    file.unlink()  # a link
    save_file(tensors, file, {"format": "pt"})
    assert digest_weights(file.parent) != before


def test_the_config_counts_too(copy, model):
    config = copy / "transformer/config.json"
    changed = config.read_text().replace('"eps": 1e-06', '"eps": 1e-05')
    config.unlink()
    config.write_text(changed)
    assert digest_weights(config.parent) != digest_weights(model / "transformer")


def rewrite(file, text):
    file.unlink()  # a link to the fixture's own
    file.write_text(text)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("transformer", {"_class_name": "AutoencoderKLWan"}, "_class_name: found 'AutoencoderKL"),
        ("transformer", {"patch_size": [1, 0, 0]}, "patch_size.1: found 0, expected more than 0"),
        ("transformer", {"eps": "x"}, "eps: found the text 'x', expected a number"),
        ("transformer", {"num_layers": 10**7}, "num_layers: found 10000000, expected at most 1000"),
        ("transformer", {"patch_size": "122"}, "patch_size: found '122', expected a list"),
        ("transformer", {"num_attention_heads": -1}, "num_attention_heads: found -1, expected"),
        ("vae", {"_class_name": "WanTransformer3DModel"}, "expected 'AutoencoderKLWan'"),
        ("vae", {"z_dim": None}, "z_dim: found None, expected a whole number"),
        ("vae", {"latents_std": [0.0]}, "latents_std.0: found 0.0, expected more than 0"),
        ("text_encoder", {"model_type": "t5"}, "model_type: found 't5', expected 'umt5'"),
        ("text_encoder", {"d_model": "64"}, "d_model: found '64', expected a whole number"),
    ],
)
def test_config_of_another_part_or_of_none(copy, part, change, message):
    file = copy / part / "config.json"
    rewrite(file, json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=f"{part}/config.json: ") as caught:
        check_model_folder(copy)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "holds a list, expected a JSON object"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_config_that_is_no_object(copy, part, text, message):
    rewrite(copy / part / "config.json", text)
    with pytest.raises(ValueError, match=f"{part}/config.json {message}"):
        check_model_folder(copy)
