"""The engine of a training: its processes, what is trained of a transformer, and DeepSpeed."""

import logging
import os

import deepspeed
import psutil
import torch
import torch.distributed as dist
from peft import LoraConfig

from pusa.config import TrainSettings

#: Attention and feed-forward linears of every block (the authors' targets, diffusers' names).
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")


def join_processes() -> tuple[int, int, torch.device]:
    """Return this process's number over all nodes, how many there are, and its device."""
    if "RANK" not in os.environ:
        raise ValueError("training is started by torchrun, one process per device: no RANK is set")
    deepspeed.logger.setLevel(logging.WARNING)
    # On a CPU DeepSpeed would compile a shared-memory helper on first use: half a minute, a
    # compiler, and a lock that a killed job leaves behind, for reductions that gloo does too.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if device.index >= torch.cuda.device_count():
            raise ValueError(
                f"this node has {torch.cuda.device_count()} GPUs, too few for a process number "
                f"{device.index}; set train.processes to the GPUs of a node"
            )
        torch.cuda.set_device(device)
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo")
    return dist.get_rank(), dist.get_world_size(), device


def prepare(model: torch.nn.Module, settings: TrainSettings) -> torch.nn.Module:
    """Give a transformer what is trained of it, a LoRA or all weights, and checkpointing."""
    if settings.method == "lora":
        model.requires_grad_(False)
        model.add_adapter(
            LoraConfig(
                r=settings.rank, lora_alpha=settings.rank, target_modules=list(TARGETS), bias="none"
            )
        )
        for parameter in model.parameters():
            if parameter.requires_grad:  # of either type on a base of either
                parameter.data = parameter.data.to(getattr(torch, settings.lora_dtype))
    if settings.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def start_engine(
    settings: TrainSettings, model: torch.nn.Module, world: int
) -> tuple[deepspeed.DeepSpeedEngine, torch.optim.AdamW]:
    """Wrap what `prepare` gave in DeepSpeed, with the optimizer of the weights that are trained."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    on_gpu = parameters[0].is_cuda
    if on_gpu and (settings.dtype, settings.lora_dtype) == ("bfloat16", "float32"):
        # PEFT multiplies in its weights' float32: as TF32, which has more digits than the base's
        # bfloat16 and is several times as fast.
        torch.set_float32_matmul_precision("high")
    adamw = torch.optim.AdamW(parameters, lr=settings.learning_rate, fused=on_gpu or None)
    zero = {"stage": 2 if settings.method == "lora" else 3}
    if settings.offload in ("optimizer", "both"):
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    config = {
        "train_batch_size": settings.total_batch,
        "train_micro_batch_size_per_gpu": settings.micro_batch,
        "gradient_accumulation_steps": settings.total_batch // (world * settings.micro_batch),
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if (settings.dtype if settings.method == "full" else settings.lora_dtype) == "bfloat16":
        # bfloat16 weights for the computation beside float32 ones for the optimizer.
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    # DeepSpeed then casts all weights, also those that diffusers keeps in float32.
    frozen = [(p, p.data) for p in model.parameters() if not p.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, optimizer=adamw, config=config)
    for parameter, data in frozen:
        parameter.data = data
    return engine, adamw


def stop_engine(engine: deepspeed.DeepSpeedEngine) -> None:
    """End the processes' group; the caller lets go of engine, optimizer and model right after."""
    engine.destroy()
    deepspeed.comm.destroy_process_group()


def agree(values: list[float], device: torch.device) -> list[float]:
    """The largest of each value over all processes, so that all decide alike."""
    largest = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


def peak_memory_gib() -> float:
    """Most memory allocated so far on this process's GPU, or held by it on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return psutil.Process().memory_info().rss / 2**30
