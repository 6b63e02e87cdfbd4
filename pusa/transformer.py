"""Vectorized timestep adaptation (VTA): Wan's transformer with one timestep per latent frame.

Two changes and no new weight (paper, section 4.1): the timestep embedding takes a vector,
and each block's shift, scale and gate, and the output head's, come from its own frame's
embedding. diffusers can do this with one timestep per *token*; here an embedding is computed
per *frame* and broadcast over that frame's tokens, which at 832x480x81 means 21 rows instead
of 32,760.
"""

from functools import wraps
from typing import Any, ClassVar

import torch
from diffusers import (
    ContextParallelConfig,
    ParallelConfig,
    TensorParallelConfig,
    WanTransformer3DModel,
)
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformerBlock
from diffusers.utils import apply_lora_scale
from torch.distributed.device_mesh import init_device_mesh


class FrameRotaryPosEmbed(WanRotaryPosEmbed):
    """Wan's rotary embedding with the frames apart: context parallelism splits within a frame."""

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, each ``(1, frames, tokens, 1, head_dim)``, of latents."""
        cos, sin = super().forward(hidden_states)
        frames = hidden_states.shape[2]
        return cos.unflatten(1, (frames, -1)), sin.unflatten(1, (frames, -1))


class VTAWanTransformerBlock(WanTransformerBlock):
    """A Wan block whose modulation differs from frame to frame."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Apply the block.

        Args:
            hidden_states: ``(batch, frames, tokens, dim)``, tokens of a frame.
            encoder_hidden_states: ``(batch, text_tokens, dim)``.
            temb: projected timestep embedding, ``(batch, frames, 6, dim)``; ``frames`` may
                be 1, for one timestep per clip.
            rotary_emb: cosines and sines, each ``(1, frames * tokens, 1, head_dim)``.
        """
        frames_tokens = hidden_states.shape[1:3]
        # Six of (batch, frames, 1, dim): they broadcast over a frame's tokens.
        shift_msa, scale_msa, gate_msa, c_shift_msa, c_scale_msa, c_gate_msa = (
            self.scale_shift_table + temb.float()
        ).chunk(6, dim=2)

        # 1. Self-attention, of every token to those of all frames
        norm_hidden_states = self.norm1(hidden_states.float()) * (1 + scale_msa) + shift_msa
        norm_hidden_states = norm_hidden_states.type_as(hidden_states).flatten(1, 2)
        attn_output = self.attn1(norm_hidden_states, None, None, rotary_emb)
        attn_output = attn_output.unflatten(1, frames_tokens)
        hidden_states = (hidden_states.float() + attn_output * gate_msa).type_as(hidden_states)

        # 2. Cross-attention, not modulated
        norm_hidden_states = self.norm2(hidden_states.float()).type_as(hidden_states)
        attn_output = self.attn2(
            norm_hidden_states.flatten(1, 2), encoder_hidden_states, None, None
        )
        hidden_states = hidden_states + attn_output.unflatten(1, frames_tokens)

        # 3. Feed-forward
        norm_hidden_states = self.norm3(hidden_states.float()) * (1 + c_scale_msa) + c_shift_msa
        ff_output = self.ffn(norm_hidden_states.type_as(hidden_states))
        return (hidden_states.float() + ff_output.float() * c_gate_msa).type_as(hidden_states)


# What diffusers' caches, such as FirstBlockCache, want to know of a block.
TransformerBlockRegistry.register(
    VTAWanTransformerBlock,
    TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
)


class VTAWanTransformer3DModel(WanTransformer3DModel):
    """`WanTransformer3DModel` that takes a timestep per latent frame (eq. 5).

    Parameters and their names are the base's, so `from_pretrained` reads any Wan checkpoint
    and LoRA tooling works unchanged. With equal timesteps it computes what the base computes.
    """

    _no_split_modules: ClassVar = ["VTAWanTransformerBlock"]
    _repeated_blocks: ClassVar = ["VTAWanTransformerBlock"]
    # Context parallelism gives each process its share of *every* frame's tokens, so that all of
    # them need all rows of the modulation. Attention does not mind in which order tokens come.
    _cp_plan: ClassVar = {
        "rope": {
            0: ContextParallelInput(split_dim=2, expected_dims=5, split_output=True),
            1: ContextParallelInput(split_dim=2, expected_dims=5, split_output=True),
        },
        "blocks.0": {"hidden_states": ContextParallelInput(split_dim=2, expected_dims=4)},
        "proj_out": ContextParallelOutput(gather_dim=2, expected_dims=4),
    }

    @wraps(WanTransformer3DModel.__init__)  # whose parameters diffusers reads a config by
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        add_vta(self)

    def _resolve_parallel_config(
        self, config: ParallelConfig | ContextParallelConfig | TensorParallelConfig
    ) -> ParallelConfig:
        """What `enable_parallelism` of diffusers does first; with a check, and for CPUs too.

        Raises:
            ValueError: if the heads cannot be shared equally (Ulysses' method).
        """
        if isinstance(config, ContextParallelConfig):
            config = ParallelConfig(context_parallel_config=config)
        context = getattr(config, "context_parallel_config", None)
        if context is None:
            return super()._resolve_parallel_config(config)
        heads = self.config.num_attention_heads
        if heads % context.ulysses_degree and not context.ulysses_anything:
            raise ValueError(
                f"context parallelism with ulysses_degree={context.ulysses_degree} shares the "
                f"{heads} attention heads equally, expected a degree that divides them"
            )
        if torch.accelerator.is_available() or not torch.distributed.is_initialized():
            return super()._resolve_parallel_config(config)
        # diffusers takes the rank modulo the number of accelerators, of which there are none.
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        mesh = context.mesh or init_device_mesh(
            "cpu", context.mesh_shape, mesh_dim_names=context.mesh_dim_names
        )
        config.setup(rank, world_size, torch.device("cpu"), mesh=mesh)
        self._parallel_config = config
        return config

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_image: torch.Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the velocity.

        Args:
            hidden_states: noisy latents, ``(batch, channels, frames, height, width)``.
            timestep: ``1000 * sigma``, ``(batch,)`` or ``(batch, frames)``.
            encoder_hidden_states: prompt embedding, ``(batch, text_tokens, text_dim)``.

        Returns:
            The velocity in the shape of ``hidden_states``.

        Raises:
            ValueError: if ``timestep`` has another shape, or context parallelism cannot share
                a frame's tokens equally.
        """
        batch, _, frames, height, width = hidden_states.shape
        if timestep.shape not in {(batch,), (batch, frames)}:
            raise ValueError(
                f"timestep must have shape (batch,) = ({batch},) or (batch, latent_frames) = "
                f"({batch}, {frames}), found {tuple(timestep.shape)}"
            )
        _, p_h, p_w = self.config.patch_size
        timestep = timestep.reshape(batch, -1)  # (batch, frames or 1)
        self._check_shares((height // p_h) * (width // p_w))

        # Each of (1, frames * tokens, 1, head_dim); with context parallelism a process's share.
        rotary_emb = tuple(part.flatten(1, 2) for part in self.rope(hidden_states))
        hidden_states = self.patch_embedding(hidden_states)  # (batch, dim, frames, rows, columns)
        hidden_states = hidden_states.flatten(3).permute(0, 2, 3, 1).contiguous()

        # temb (batch, frames or 1, dim); timestep_proj (batch, frames or 1, 6, dim)
        temb, timestep_proj, encoder_hidden_states, encoder_hidden_states_image = (
            self.condition_embedder(
                timestep.flatten(),
                encoder_hidden_states,
                encoder_hidden_states_image,
                timestep_seq_len=timestep.shape[1],
            )
        )
        timestep_proj = timestep_proj.unflatten(2, (6, -1))
        if encoder_hidden_states_image is not None:
            encoder_hidden_states = torch.cat(
                [encoder_hidden_states_image, encoder_hidden_states], dim=1
            )

        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(
                    block, hidden_states, encoder_hidden_states, timestep_proj, rotary_emb
                )
            else:
                hidden_states = block(
                    hidden_states, encoder_hidden_states, timestep_proj, rotary_emb
                )

        # Output head; shift and scale are (batch, frames or 1, 1, dim)
        shift, scale = (self.scale_shift_table.to(temb.device) + temb.unsqueeze(2)).chunk(2, dim=2)
        shift, scale = shift.to(hidden_states.device), scale.to(hidden_states.device)
        norm_hidden_states = self.norm_out(hidden_states.float()) * (1 + scale) + shift
        hidden_states = self.proj_out(norm_hidden_states.type_as(hidden_states))

        # Unpatchify (batch, frames, tokens, p_h * p_w * channels)
        hidden_states = hidden_states.reshape(
            batch, frames, height // p_h, width // p_w, p_h, p_w, -1
        )
        hidden_states = hidden_states.permute(0, 6, 1, 2, 4, 3, 5)  # b c f rows p_h columns p_w
        output = hidden_states.flatten(5, 6).flatten(3, 4)
        if not return_dict:
            return (output,)
        return Transformer2DModelOutput(sample=output)

    def _check_shares(self, tokens: int) -> None:
        """Refuse tokens per frame that context parallelism cannot share equally."""
        context = self._parallel_config and self._parallel_config.context_parallel_config
        if not context or context.ulysses_anything or context.ring_anything:
            return
        processes = context.ring_degree * context.ulysses_degree
        if tokens % processes:
            raise ValueError(
                f"context parallelism shares each frame's {tokens} tokens equally among "
                f"{processes} processes, expected a number that divides them"
            )


def add_vta(transformer: WanTransformer3DModel) -> None:
    """Turn a Wan transformer into a `VTAWanTransformer3DModel`, where it stands.

    It keeps its weights, LoRAs and hooks of accelerate, and no weight is made a second time, which
    would cost minutes with 14B parameters.

    Raises:
        ValueError: if its patches hold more than one latent frame.
    """
    patch_size = transformer.config.patch_size
    if patch_size[0] != 1:
        raise ValueError(
            "a timestep per latent frame needs a temporal patch size of 1, "
            f"found patch_size={tuple(patch_size)}"
        )
    # The parts have nothing to add but another `forward`.
    transformer.__class__ = VTAWanTransformer3DModel
    transformer.rope.__class__ = FrameRotaryPosEmbed
    for block in transformer.blocks:
        block.__class__ = VTAWanTransformerBlock
    for module in (transformer, transformer.rope, *transformer.blocks):
        if "_old_forward" in vars(module):  # what a hook of accelerate calls
            module._old_forward = type(module).forward.__get__(module)
