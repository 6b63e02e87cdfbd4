"""Trained weights as files: a LoRA, or a transformer's folder."""

import json
import os
import shutil
from pathlib import Path

import deepspeed
import torch.distributed as dist
from peft import get_peft_model_state_dict

from pusa.config import TrainSettings
from pusa.models.folder import weight_files
from pusa.models.lora import METADATA_KEY, LoraInfo, save_lora
from pusa.models.stream import TensorLayout, read_header, write_tensors
from pusa.train.checkpoint import together
from pusa.train.engine import TARGETS


def weights_of(folder: Path, settings: TrainSettings, iteration: int) -> Path:
    """Where an iteration's weights lie, a LoRA's file or a transformer's folder."""
    suffix = ".safetensors" if settings.method == "lora" else ""
    return folder / f"iteration_{iteration}{suffix}"


def save_weights(
    engine,
    folder: Path,
    settings: TrainSettings,
    transformer: str | Path,
    base: str,
    iteration: int,
) -> None:
    """Write an iteration's weights, all processes together.

    Args:
        base: digest of ``transformer``, which was trained from.
    """
    out = weights_of(folder, settings, iteration)
    info = {
        "base": base,
        "iteration": iteration,
        "objective": settings.objective,
        "p_async": settings.p_async,
        "vectorized": settings.p_async > 0,
    }
    if settings.method == "full":
        _save_transformer(engine, transformer, out, info)
        return
    with together():
        if dist.get_rank() == 0:
            tensors = get_peft_model_state_dict(engine.module, adapter_name="default")
            rank = settings.rank
            save_lora(out, tensors, LoraInfo(rank=rank, lora_alpha=rank, targets=TARGETS, **info))


def _save_transformer(engine, base: str | Path, out: Path, info: dict) -> None:
    """Write a transformer folder with the base's configuration and shards.

    The weights have the type they are computed with. They are gathered one at a time, and
    process 0 holds a shard of them.
    """
    partial = out.with_name(f".partial-{out.name}")
    parameters = dict(engine.module.named_parameters())
    first = dist.get_rank() == 0
    with together():
        if first:
            for leftover in (out, partial):
                shutil.rmtree(leftover, ignore_errors=True)
            partial.mkdir()
            for file in Path(base).glob("*.json"):
                shutil.copyfile(file, partial / file.name)
    for file in weight_files(base):
        tensors = {}
        for name in read_header(file)[0]:
            with deepspeed.zero.GatheredParameters([parameters[name]]):
                if first:
                    tensors[name] = parameters[name].detach().to("cpu", copy=True)
        with together():
            if first:
                layout = {n: TensorLayout(t.dtype, tuple(t.shape)) for n, t in tensors.items()}
                metadata = {"format": "pt", METADATA_KEY: json.dumps(info)}
                write_tensors(partial / file.name, layout, tensors.__getitem__, metadata)
    with together():
        if first:
            os.replace(partial, out)
