"""Vectorized timestep adaptation (VTA): Wan's transformer with one timestep per latent frame.

Two changes and no new weight (paper, section 4.1): the timestep embedding takes a vector,
and each block's shift, scale and gate, and the output head's, come from its own frame's
embedding. diffusers can do this with one timestep per *token*; here an embedding is computed
per *frame* and broadcast over that frame's tokens, which at 832x480x81 means 21 rows instead
of 32,760.
"""

from typing import Any, ClassVar

import torch
from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from diffusers.utils import apply_lora_scale


class VTAWanTransformerBlock(WanTransformerBlock):
    """A Wan block whose modulation differs from frame to frame."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        rotary_emb: torch.Tensor,
    ) -> torch.Tensor:
        """Apply the block.

        Args:
            hidden_states: ``(batch, frames * tokens, dim)``.
            encoder_hidden_states: ``(batch, text_tokens, dim)``.
            temb: projected timestep embedding, ``(batch, frames, 6, dim)``; ``frames`` may
                be 1, for one timestep per clip.
        """
        # Six of (batch, frames, 1, dim): they broadcast over a frame's tokens.
        shift_msa, scale_msa, gate_msa, c_shift_msa, c_scale_msa, c_gate_msa = (
            self.scale_shift_table + temb.float()
        ).chunk(6, dim=2)

        # 1. Self-attention
        norm_hidden_states = modulate(self.norm1(hidden_states.float()), scale_msa, shift_msa)
        attn_output = self.attn1(norm_hidden_states.type_as(hidden_states), None, None, rotary_emb)
        hidden_states = (hidden_states.float() + gate(attn_output, gate_msa)).type_as(hidden_states)

        # 2. Cross-attention, not modulated
        norm_hidden_states = self.norm2(hidden_states.float()).type_as(hidden_states)
        hidden_states = hidden_states + self.attn2(
            norm_hidden_states, encoder_hidden_states, None, None
        )

        # 3. Feed-forward
        norm_hidden_states = modulate(self.norm3(hidden_states.float()), c_scale_msa, c_shift_msa)
        ff_output = self.ffn(norm_hidden_states.type_as(hidden_states))
        return (hidden_states.float() + gate(ff_output.float(), c_gate_msa)).type_as(hidden_states)


def modulate(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """``x * (1 + scale) + shift`` on ``(batch, frames * tokens, dim)``, per frame.

    ``scale`` and ``shift`` are ``(batch, frames, 1, dim)``.
    """
    return (x.unflatten(1, (scale.shape[1], -1)) * (1 + scale) + shift).flatten(1, 2)


def gate(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """``x * factor`` on ``(batch, frames * tokens, dim)``; factor ``(batch, frames, 1, dim)``."""
    return (x.unflatten(1, (factor.shape[1], -1)) * factor).flatten(1, 2)


class VTAWanTransformer3DModel(WanTransformer3DModel):
    """`WanTransformer3DModel` that takes a timestep per latent frame (eq. 5).

    Parameters and their names are the base's, so `from_pretrained` reads any Wan checkpoint
    and LoRA tooling works unchanged. With equal timesteps it computes what the base computes.
    """

    _no_split_modules: ClassVar = ["VTAWanTransformerBlock"]
    _repeated_blocks: ClassVar = ["VTAWanTransformerBlock"]
    _cp_plan: ClassVar = None  # the base's plan splits a timestep per token, which this is not

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, ...] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
    ) -> None:
        if patch_size[0] != 1:
            raise ValueError(
                "a timestep per latent frame needs a temporal patch size of 1, "
                f"found patch_size={tuple(patch_size)}"
            )
        super().__init__(
            patch_size=patch_size,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            cross_attn_norm=cross_attn_norm,
            qk_norm=qk_norm,
            eps=eps,
            image_dim=image_dim,
            added_kv_proj_dim=added_kv_proj_dim,
            rope_max_seq_len=rope_max_seq_len,
            pos_embed_seq_len=pos_embed_seq_len,
        )
        # The blocks have nothing to add but another `forward`, so they are turned into ours
        # where they stand: building 14B parameters a second time would cost minutes.
        for block in self.blocks:
            block.__class__ = VTAWanTransformerBlock

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
            ValueError: if ``timestep`` has another shape.
        """
        batch, _, frames, height, width = hidden_states.shape
        if timestep.shape not in {(batch,), (batch, frames)}:
            raise ValueError(
                f"timestep must have shape (batch,) = ({batch},) or (batch, latent_frames) = "
                f"({batch}, {frames}), found {tuple(timestep.shape)}"
            )
        _, p_h, p_w = self.config.patch_size
        timestep = timestep.reshape(batch, -1)  # (batch, frames or 1)

        rotary_emb = self.rope(hidden_states)
        hidden_states = self.patch_embedding(hidden_states)  # (batch, dim, frames, rows, columns)
        hidden_states = hidden_states.flatten(2).transpose(1, 2).contiguous()

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
        hidden_states = modulate(self.norm_out(hidden_states.float()), scale, shift).type_as(
            hidden_states
        )
        hidden_states = self.proj_out(hidden_states)  # (batch, tokens, p_h * p_w * channels)

        # Unpatchify
        hidden_states = hidden_states.reshape(
            batch, frames, height // p_h, width // p_w, p_h, p_w, -1
        )
        hidden_states = hidden_states.permute(0, 6, 1, 2, 4, 3, 5)  # b c f rows p_h columns p_w
        output = hidden_states.flatten(5, 6).flatten(3, 4)
        if not return_dict:
            return (output,)
        return Transformer2DModelOutput(sample=output)
