"""Which tensor of a LoRA file belongs to which module; diffusers' own converters are the oracle."""

import json

import pytest
import torch
from diffusers import WanPipeline
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import save_file

from pusa.models.lora_formats import from_wan, open_lora, require_whole, to_wan

RANK = 4
#: A format's name of the query's and the second feed-forward linear's tensors.
NAMES = {
    "diffusers": (
        "transformer.blocks.3.attn1.to_q.lora_{}.weight",
        "transformer.blocks.3.ffn.net.2.lora_{}.weight",
        "AB",
    ),
    "diffusers without prefix": (
        "blocks.3.attn1.to_q.lora_{}.weight",
        "blocks.3.ffn.net.2.lora_{}.weight",
        "AB",
    ),
    "authors": (
        "blocks.3.self_attn.q.lora_{}.default.weight",
        "blocks.3.ffn.2.lora_{}.default.weight",
        "AB",
    ),
    "authors without infix": (
        "blocks.3.self_attn.q.lora_{}.weight",
        "blocks.3.ffn.2.lora_{}.weight",
        "AB",
    ),
    "comfy": (
        "diffusion_model.blocks.3.self_attn.q.lora_{}.weight",
        "diffusion_model.blocks.3.ffn.2.lora_{}.weight",
        "AB",
    ),
    "comfy down and up": (
        "diffusion_model.blocks.3.self_attn.q.lora_{}.weight",
        "diffusion_model.blocks.3.ffn.2.lora_{}.weight",
        ("down", "up"),
    ),
    "musubi": (
        "lora_unet_blocks_3_self_attn_q.lora_{}.weight",
        "lora_unet_blocks_3_ffn_2.lora_{}.weight",
        ("down", "up"),
    ),
}


def example(naming):
    """Two modules of weights (12, 8) and (8, 32), as a file in one of the namings has them."""
    query, feed_forward, (down, up) = NAMES[naming]
    return {
        query.format(down): torch.ones(RANK, 8),
        query.format(up): torch.ones(12, RANK),
        feed_forward.format(down): torch.ones(RANK, 32),
        feed_forward.format(up): torch.ones(8, RANK),
    }


@pytest.fixture
def save(tmp_path):
    def call(tensors, **metadata):
        save_file(tensors, tmp_path / "lora.safetensors", metadata)
        return tmp_path / "lora.safetensors"

    return call


# Names


def test_every_tensor_of_wan_has_its_original_name(new_transformer):
    """Renamed to the original, diffusers' converter gives each name back."""
    names = list(new_transformer().state_dict())
    renamed = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        whole = to_wan(name)
        renamed[whole or f"{to_wan(module)}.{kind}"] = torch.tensor(names.index(name))
    converted = convert_wan_transformer_to_diffusers(dict(renamed))
    assert {n: int(t) for n, t in converted.items()} == {n: i for i, n in enumerate(names)}


def test_names_go_both_ways():
    for name in ("blocks.11.attn2.to_out.0", "blocks.0.norm2", "proj_out", "scale_shift_table"):
        assert from_wan(to_wan(name)) == name
    assert to_wan("blocks.11.attn2.to_out.0") == "blocks.11.cross_attn.o"
    assert to_wan("blocks.0.attn3.to_q") is None
    assert from_wan("blocks.x.self_attn.q") is None


# Formats


@pytest.mark.parametrize("naming", NAMES)
def test_format_is_told_by_the_names(save, naming):
    lora = open_lora(save(example(naming)))
    assert lora.format == naming.split()[0]
    assert lora.rank == RANK
    assert {n: (m.rank, m.alpha, m.shape) for n, m in lora.modules.items()} == {
        "blocks.3.attn1.to_q": (RANK, RANK, (12, 8)),
        "blocks.3.ffn.net.2": (RANK, RANK, (8, 32)),
    }
    assert lora.tensor(lora.modules["blocks.3.ffn.net.2"].down).shape == (RANK, 32)


@pytest.mark.parametrize("naming", ["comfy down and up", "musubi"])
@pytest.mark.parametrize("alpha", [RANK, 2])
def test_modules_and_effect_are_those_of_diffusers(save, naming, alpha):
    """Every linear of two blocks, read by us and by diffusers."""
    torch.manual_seed(0)
    tensors = {}
    for block in range(2):
        parts = [f"{a}_attn.{p}" for a in ("self", "cross") for p in "qkvo"] + ["ffn.0", "ffn.2"]
        for part in parts:
            name = f"blocks.{block}.{part}"
            musubi = "lora_unet_" + name.replace(".", "_")
            name = musubi if naming == "musubi" else f"diffusion_model.{name}"
            tensors[f"{name}.lora_down.weight"] = torch.randn(RANK, 8)
            tensors[f"{name}.lora_up.weight"] = torch.randn(8, RANK)
            tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
    file = save(tensors)
    theirs = WanPipeline.lora_state_dict(str(file))
    ours = open_lora(file)
    assert len(theirs) == 2 * len(ours.modules) == 40
    for name, module in ours.modules.items():
        delta = module.alpha / module.rank * ours.tensor(module.up) @ ours.tensor(module.down)
        up, down = (theirs[f"transformer.{name}.lora_{side}.weight"] for side in "BA")
        torch.testing.assert_close(delta, up @ down)


def test_alpha_of_each_module(save):
    tensors = example("comfy")
    tensors["diffusion_model.blocks.3.ffn.2.alpha"] = torch.tensor(2.0, dtype=torch.bfloat16)
    modules = open_lora(save(tensors)).modules
    assert {n: m.alpha for n, m in modules.items()} == {
        "blocks.3.attn1.to_q": RANK,
        "blocks.3.ffn.net.2": 2,
    }


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_alpha_in_the_metadata_of_diffusers(save, prefix):
    config = {"r": RANK, "lora_alpha": 8, "alpha_pattern": {"ffn.net.2": 2}}
    metadata = json.dumps({prefix + key: value for key, value in config.items()})
    modules = open_lora(save(example("diffusers"), lora_adapter_metadata=metadata)).modules
    assert [m.alpha for m in modules.values()] == [8, 2]


def test_ranks_may_differ_between_modules(save):
    tensors = example("authors")
    tensors["blocks.3.ffn.2.lora_A.default.weight"] = torch.ones(6, 32)
    tensors["blocks.3.ffn.2.lora_B.default.weight"] = torch.ones(8, 6)
    lora = open_lora(save(tensors))
    assert [m.rank for m in lora.modules.values()] == [RANK, 6]
    assert lora.rank == 6


# Refusals


def change(naming, removed=None, **added):
    tensors = example(naming)
    if removed:
        del tensors[removed]
    return tensors | {name.replace("__", "."): tensor for name, tensor in added.items()}


Q = "blocks__3__self_attn__q"
REFUSED = {
    "unknown name": (
        change("comfy", diffusion_model__head=torch.ones(1)),
        "tensor diffusion_model.head is not of",
    ),
    "a checkpoint": (
        {"blocks.0.attn1.to_q.weight": torch.ones(2, 2)},
        "blocks.0.attn1.to_q.weight is not of",
    ),
    "unknown module": (
        change("authors", blocks__3__attn__q__lora_A__weight=torch.ones(2, 2)),
        "blocks.3.attn.q.lora_A.weight is not of a LoRA in a known format",
    ),
    "a bias": (
        change("comfy", **{f"diffusion_model__{Q}__diff_b": torch.ones(2)}),
        "diff_b is not of",
    ),
    "alpha among the authors'": (
        change("authors", **{f"{Q}__alpha": torch.ones(1)}),
        "q.alpha is not of",
    ),
    "mixed": (
        example("authors") | example("comfy"),
        "tensor diffusion_model.blocks.3.ffn.2.lora_A.weight does not fit the authors format",
    ),
    "prefix for some": (
        example("diffusers") | {"blocks.4.attn1.to_q.lora_A.weight": torch.ones(2, 2)},
        "does not fit",
    ),
    "named twice": (
        example("authors") | example("authors without infix"),
        "are for the same module",
    ),
    "only A": (
        change("authors", "blocks.3.self_attn.q.lora_B.default.weight"),
        "blocks.3.self_attn.q.lora_A.default.weight has no lora_B beside it",
    ),
    "only B": (
        change("musubi", "lora_unet_blocks_3_ffn_2.lora_down.weight"),
        "ffn_2.lora_up.weight has no lora_A beside it",
    ),
    "only alpha": (
        change("comfy", diffusion_model__blocks__3__ffn__0__alpha=torch.ones(1)),
        "blocks.3.ffn.0.alpha has no lora_A beside it",
    ),
    "two ranks": (
        example("authors") | {"blocks.3.ffn.2.lora_A.default.weight": torch.ones(5, 32)},
        r"module blocks.3.ffn.net.2 has rank 5 in lora_A \[5, 32\] but 4 in lora_B \[8, 4\]",
    ),
    "a convolution": (
        example("authors") | {"blocks.3.ffn.2.lora_A.default.weight": torch.ones(4, 32, 1)},
        r"shape \[4, 32, 1\] .* expected two dimensions",
    ),
    "integers": (
        example("authors") | {"blocks.3.ffn.2.lora_A.default.weight": torch.ones(4, 32).char()},
        "type torch.int8, expected .* floating-point",
    ),
    "two alphas": (
        change("comfy", diffusion_model__blocks__3__ffn__2__alpha=torch.ones(2)),
        "module blocks.3.ffn.net.2 has alpha nan, expected one finite number",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(save, case):
    tensors, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        open_lora(save(tensors))
    assert "lora.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "is not PEFT's config as JSON"),
        ("[]", "is not PEFT's config as JSON"),
        ('{"transformer.alpha_pattern": [1]}', "is not PEFT's config as JSON"),
        ('{"transformer.alpha_pattern": {"(": 1}}', r"alpha_pattern has '\(', expected a module's"),
        ('{"transformer.alpha_pattern": {"(a+)+b": 1}}', r"alpha_pattern has '\(a\+\)\+b', exp"),
        ("[" * 100_000, "is not PEFT's config as JSON"),
        ('{"transformer.use_dora": true}', "use_dora, expected one without"),
        ('{"transformer.use_rslora": true}', "use_rslora, expected one without"),
        ('{"transformer.lora_alpha": "16"}', "has alpha 16, expected one finite number"),
    ],
)
def test_metadata_of_diffusers_is_refused(save, metadata, message):
    with pytest.raises(ValueError, match=message):
        open_lora(save(example("diffusers"), lora_adapter_metadata=metadata))


# PyTorch's files


def test_pt_file_is_read_as_safetensors_are(save, tmp_path):
    tensors = {name: torch.randn(t.shape).bfloat16() for name, t in example("authors").items()}
    torch.save(tensors, tmp_path / "lora.pt")
    ours, other = open_lora(tmp_path / "lora.pt"), open_lora(save(tensors))
    assert (ours.format, ours.modules, ours.layout) == (other.format, other.modules, other.layout)
    assert all(torch.equal(ours.tensor(name), tensor) for name, tensor in tensors.items())


class Payload:
    """What only a full unpickling would make."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Payload()}, "holds more than tensors"),
        ({"epoch": 3, "state_dict": {}}, "does not hold tensors by name"),
        ([torch.ones(2)], "does not hold tensors by name"),
        ({}, "holds no tensors"),
    ],
)
def test_pt_file_of_something_else_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "lora.pt")
    with pytest.raises(ValueError, match=rf"lora\.pt {message}") as error:
        open_lora(tmp_path / "lora.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [0, 10, 500, -10])
def test_cut_pt_file_is_refused(tmp_path, kept):
    torch.save(example("authors"), tmp_path / "lora.pt")
    (tmp_path / "lora.pt").write_bytes((tmp_path / "lora.pt").read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"lora\.pt is damaged, or not of torch\.save's"):
        open_lora(tmp_path / "lora.pt")


def test_a_block_of_an_absurd_number(save):
    """It is refused at once, and not after counting up to it."""
    tensors = example("diffusers")
    absurd = {n.replace("blocks.3.", "blocks.99999999."): t for n, t in tensors.items()}
    assert absurd.keys() != tensors.keys()
    with pytest.raises(ValueError, match=r"lacks \d+ of \d+ modules, such as blocks\."):
        require_whole(open_lora(save(absurd)))
