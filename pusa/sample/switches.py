"""What diffusers has to save memory or time. `pusa.config` says what each does to a video."""

import os
from typing import TYPE_CHECKING

import torch
from diffusers import ContextParallelConfig
from diffusers.models.attention_dispatch import attention_backend

from pusa.config import Switches

if TYPE_CHECKING:  # seconds, which a job whose videos are all there can save
    from diffusers import WanImageToVideoPipeline, WanPipeline


def check_switches(switches: Switches, device: str) -> None:
    """Check that switches can be used here, before weights are loaded.

    Raises:
        ValueError: that names the one that cannot, and why.
    """
    if switches.offload != "none" and device == "cpu":
        raise ValueError(
            f"--offload {switches.offload} moves weights to a GPU, but there is none here"
        )
    if switches.context_parallel and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "--context-parallel needs several processes, expected a start by "
            "`torchrun --nproc-per-node N -m pusa generate`"
        )
    name = switches.attention_backend
    if name is None:
        return
    try:
        with attention_backend(name):
            pass
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"--attention-backend {name} cannot be used: {error}") from None


def use_switches(
    pipeline: "WanPipeline | WanImageToVideoPipeline", switches: Switches, device: str
) -> None:
    """Turn on what is asked for; a pipeline that is to be offloaded lies on the CPU."""
    if switches.vae_tiling:
        pipeline.vae.enable_tiling()
    for transformer in filter(None, (pipeline.transformer, pipeline.transformer_2)):
        if switches.attention_backend:
            transformer.set_attention_backend(switches.attention_backend)
        if switches.context_parallel:
            processes = torch.distributed.get_world_size()
            transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=processes))
        if switches.compile:
            transformer.compile_repeated_blocks()
    if switches.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif switches.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    elif switches.offload == "group":
        pipeline.enable_group_offload(
            torch.device(device), offload_type="leaf_level", use_stream=True
        )
