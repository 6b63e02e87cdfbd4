"""VTA against the base model, against diffusers' per-token route, and against the formula."""

import json

import accelerate
import pytest
import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig

from pusa.transformer import VTAWanTransformer3DModel, add_vta

BATCH, FRAMES, TOKENS = 2, 3, 4  # tokens per latent frame
#: Float32 sums of 24 and 48 terms in another order differ by about 1e-6 of outputs of order 1.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]


@pytest.fixture
def base(new_transformer):
    return new_transformer().eval()


@pytest.fixture
def vta(base):
    model = VTAWanTransformer3DModel.from_config(base.config)
    model.load_state_dict(base.state_dict())
    return model.eval()


@pytest.fixture
def latents():
    return torch.randn(BATCH, 16, FRAMES, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def text():
    return torch.randn(BATCH, 5, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def timestep():
    """Arbitrary per-frame timesteps, with the two ends among them."""
    return torch.tensor([[0.0, 250.5, 998.39], [1000.0, 7.25, 640.0]])


def per_token(timestep):
    """diffusers' own route: one timestep for every token."""
    return timestep.repeat_interleave(TOKENS, 1)


def run(model, *inputs):
    with torch.no_grad():
        return model(*inputs, return_dict=False)[0]


def test_one_timestep_equals_base(base, vta, latents, text):
    t = torch.tensor([300.0, 871.5])
    torch.testing.assert_close(run(vta, latents, t, text), run(base, latents, t, text), **TOLERANCE)


def test_equal_timesteps_equal_base(base, vta, latents, text):
    t = torch.tensor([300.0, 871.5])
    ours = run(vta, latents, t[:, None].expand(-1, FRAMES), text)
    torch.testing.assert_close(ours, run(base, latents, t, text), **TOLERANCE)


def test_arbitrary_timesteps_equal_the_per_token_route(base, vta, latents, text, timestep):
    ours = run(vta, latents, timestep, text)
    theirs = run(base, latents, per_token(timestep), text)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    # The test means something only if each frame's own timestep shows in the output.
    for frame in range(FRAMES):
        other = timestep.clone()
        other[:, frame] += 200
        assert (run(vta, latents, other, text) - ours).abs().max() > 1e-2


def test_frames_are_not_exchanged(vta, latents, text, timestep):
    """With attention off, a frame's timestep reaches that frame's output alone."""
    with torch.no_grad():
        for block in vta.blocks:
            block.attn1.to_out[0].weight.zero_()
    before = run(vta, latents, timestep, text)
    changed = timestep.clone()
    changed[0, 1] += 300
    after = run(vta, latents, changed, text)
    same = [[torch.equal(before[b, :, f], after[b, :, f]) for f in range(3)] for b in range(2)]
    assert same == [[True, False, True], [True, True, True]]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_gradients_equal_the_per_token_route(
    base, vta, latents, text, timestep, checkpointing, lora
):
    results = []
    for model, t in ((vta, timestep), (base, per_token(timestep))):
        if lora:
            model.requires_grad_(False)
            add_lora(model, zero=False)
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.train()
        x, prompt = latents.clone().requires_grad_(), text.clone().requires_grad_()
        output = model(x, t, prompt, return_dict=False)[0]
        output.square().mean().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        results.append((output.detach(), x.grad, prompt.grad, grads))
    ours, theirs = results
    for a, b in zip(ours[:3], theirs[:3], strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)
    assert ours[3].keys() == theirs[3].keys()
    assert len(ours[3]) == (2 * 2 * 10 if lora else len(vta.state_dict()))
    for name, grad in ours[3].items():
        torch.testing.assert_close(grad, theirs[3][name], **TOLERANCE, msg=name)
        # A key's bias shifts all of a row's attention logits alike: its gradient is rounding.
        assert name.endswith("to_k.bias") or grad.abs().max() > 1e-6, name


def add_lora(model, *, zero):
    torch.manual_seed(3)
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=TARGETS, bias="none"))
    if not zero:
        generator = torch.Generator().manual_seed(4)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)


def test_zero_lora_equals_base(vta, latents, text, timestep):
    before = run(vta, latents, timestep, text)
    add_lora(vta, zero=True)
    assert torch.equal(run(vta, latents, timestep, text), before)


def test_lora_changes_the_output(vta, latents, text, timestep):
    before = run(vta, latents, timestep, text)
    add_lora(vta, zero=False)
    assert (run(vta, latents, timestep, text) - before).abs().max() > 1e-2


def test_state_dict_is_the_base_one(base, vta):
    ours = {name: tensor.shape for name, tensor in vta.state_dict().items()}
    assert ours == {name: tensor.shape for name, tensor in base.state_dict().items()}


def test_reads_a_base_folder(tmp_path, base, latents, text):
    base.save_pretrained(tmp_path)
    loaded = VTAWanTransformer3DModel.from_pretrained(tmp_path)
    t = torch.tensor([10.0, 900.0])
    torch.testing.assert_close(
        run(loaded, latents, t, text), run(base, latents, t, text), **TOLERANCE
    )


def test_the_base_reads_our_folder(tmp_path, vta, base, latents, text):
    vta.save_pretrained(tmp_path)
    loaded = WanTransformer3DModel.from_pretrained(tmp_path)
    t = torch.tensor([10.0, 900.0])
    assert torch.equal(run(loaded, latents, t, text), run(base, latents, t, text))
    assert json.loads((tmp_path / "config.json").read_text())["num_layers"] == 2


@pytest.mark.parametrize("hooked", [False, True])
def test_vta_is_added_where_a_model_stands(base, vta, latents, text, timestep, hooked):
    """With hooks of accelerate in front of it, as a device map puts them there, too."""
    if hooked:
        accelerate.cpu_offload(base, torch.device("cpu"))
    add_vta(base)
    assert isinstance(base, VTAWanTransformer3DModel)
    expected = run(vta, latents, timestep, text)
    assert torch.equal(run(base, latents, timestep, text), expected)


@pytest.mark.parametrize("columns", [None, FRAMES])
def test_timesteps_are_embedded_per_frame(vta, latents, text, columns):
    rows = {}
    embedder = vta.condition_embedder
    for name in ("time_embedder", "time_proj"):

        def count(_, inputs, output, name=name):
            rows[name] = (inputs[0].numel() // inputs[0].shape[-1], len(output.flatten(0, -2)))

        getattr(embedder, name).register_forward_hook(count)
    shape = (BATCH,) if columns is None else (BATCH, columns)
    run(vta, latents, torch.full(shape, 500.0), text)
    expected = BATCH * (columns or 1)
    assert rows == {"time_embedder": (expected,) * 2, "time_proj": (expected,) * 2}


@pytest.mark.parametrize(
    "shape",
    [(), (1,), (3,), (BATCH, 1), (BATCH, 4), (BATCH, FRAMES * TOKENS), (1, FRAMES), (2, 3, 1)],
)
def test_wrong_timestep_shape_names_both(vta, latents, text, shape):
    with pytest.raises(ValueError, match="timestep must have shape") as error:
        run(vta, latents, torch.zeros(shape), text)
    message = str(error.value)
    assert f"({BATCH},)" in message
    assert f"({BATCH}, {FRAMES})" in message
    assert f"found {shape}" in message


def test_temporal_patches_are_refused():
    with pytest.raises(ValueError, match=r"temporal patch size of 1, found patch_size=\(2, 2, 2\)"):
        VTAWanTransformer3DModel(patch_size=(2, 2, 2), num_layers=0)


def test_block_is_the_authors_formula(vta, latents, text, timestep):
    """Modulation of one block written out frame by frame, x * (1 + scale) + shift and x + y * gate.

    The attention and feed-forward modules are the block's own; what is checked is which
    frame's embedding modulates which tokens.
    """
    block, dim = vta.blocks[0], 24
    seen = {}
    block.register_forward_hook(lambda _, inputs, output: seen.update(inputs=inputs, output=output))
    run(vta, latents, timestep, text)
    x, context, _, rotary = seen["inputs"]

    def norm(tokens):
        return torch.nn.functional.layer_norm(tokens, (dim,), eps=1e-6)

    embedder = vta.condition_embedder
    with torch.no_grad():
        table = [[None] * FRAMES for _ in range(BATCH)]
        for b in range(BATCH):
            for f in range(FRAMES):
                # Sinusoids with the cosines first, as Wan has them.
                rates = 10000 ** (-torch.arange(16, dtype=torch.float32) / 16)
                angle = timestep[b, f] * rates
                wave = torch.cat([angle.cos(), angle.sin()])
                embedding = embedder.time_embedder(wave[None])
                projected = embedder.time_proj(torch.nn.functional.silu(embedding))[0]
                table[b][f] = block.scale_shift_table[0] + projected.reshape(6, dim)

        def each_frame(function, *tensors):
            out = torch.empty_like(tensors[0])
            for b in range(BATCH):
                for f in range(FRAMES):
                    out[b, f] = function(table[b][f], *(t[b, f] for t in tensors))
            return out

        h = each_frame(lambda m, t: norm(t) * (1 + m[1]) + m[0], x)
        h = block.attn1(h.reshape(BATCH, -1, dim), None, None, rotary).reshape(x.shape)
        y = each_frame(lambda m, t, a: t + a * m[2], x, h)
        h = block.attn2(block.norm2(y).reshape(BATCH, -1, dim), context, None, None)
        y = y + h.reshape(x.shape)
        h = block.ffn(each_frame(lambda m, t: norm(t) * (1 + m[4]) + m[3], y))
        expected = each_frame(lambda m, t, a: t + a * m[5], y, h)
    torch.testing.assert_close(seen["output"], expected, **TOLERANCE)


def test_output_head_is_the_authors_formula(vta, latents, text, timestep):
    seen = {}
    vta.blocks[-1].register_forward_hook(lambda _, i, output: seen.update(blocks=output))
    vta.condition_embedder.time_embedder.register_forward_hook(
        lambda _, i, output: seen.update(embedding=output.reshape(BATCH, FRAMES, -1))
    )
    output = run(vta, latents, timestep, text)
    with torch.no_grad():
        for b in range(BATCH):
            for f in range(FRAMES):
                tokens = seen["blocks"][b, f]
                shift, scale = vta.scale_shift_table[0] + seen["embedding"][b, f]
                tokens = torch.nn.functional.layer_norm(tokens, (24,), eps=1e-6)
                patches = vta.proj_out(tokens * (1 + scale) + shift).reshape(2, 2, 2, 2, 16)
                for row in range(4):
                    for column in range(4):
                        patch = patches[row // 2, column // 2, row % 2, column % 2]
                        torch.testing.assert_close(output[b, :, f, row, column], patch, **TOLERANCE)
