"""Training in several processes: wrapping a task, and tensors that are sharded."""

from __future__ import annotations

import importlib.util
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fluxvit.training.tasks.base import Task
from fluxvit.utils.distributed import World


def parallelize(
    task: Task,
    world: World,
    *,
    steps: int = 0,
    checkpoint_blocks: bool,
    compile_blocks: bool | Literal["auto"],
    shard: bool = False,
) -> nn.Module:
    """Prepare a task for training in ``world``.

    The order matters and is fixed here: activation checkpointing, then compilation of each block, then
    wrapping, so that compiled code never contains communication.

    Args:
        steps: Steps of the run, for ``compile_blocks="auto"``.
        shard: Shard parameters, gradients and optimiser state over the processes (FSDP2) instead of copying
            the model to each. It replaces the parameters: make the optimiser afterwards. A world of one
            process has nothing to shard.

    Raises:
        ValueError: This PyTorch cannot shard on the CPU.
    """
    if checkpoint_blocks:
        task.model.set_grad_checkpointing()
    if compile_blocks is True or (compile_blocks == "auto" and _compiling_pays(world.device, steps)):
        for block in task.blocks():
            # One compilation serves all numbers of clips and tokens. (A batch of one clip needs another.)
            block.compile(dynamic=True)
    if world.size == 1:
        return task
    if shard:
        if world.device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
            raise ValueError("shard: on the CPU it needs PyTorch 2.7 or newer; leave it out, or update")
        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in task.model.blocks:
            fully_shard(block, mesh=mesh)
        # The root is the task, not the model: tasks call methods of the model one by one, and the parameters
        # outside of blocks are complete only within a call of the root.
        fully_shard(task, mesh=mesh)
        return task
    devices = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(task, device_ids=devices)


def _compiling_pays(device: torch.device, steps: int) -> bool:
    """Whether compiled blocks save a run more time than their compilation takes.

    On a CPU they save little (see benchmarks/training_step.py).
    """
    return (
        steps >= 1000
        and device.type == "cuda"
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= (7, 0)  # Triton supports no older ones,
        and any(map(shutil.which, (os.environ.get("CC", "gcc"), "clang")))  # and compiles its launchers.
    )


def accumulating(step: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Context of the forward and backward pass of a part of a batch: gradients are exchanged once, with the
    last part.

    Sharded gradients are exchanged with every part, because each process would otherwise have to hold all of
    them until the last part.
    """
    return step.no_sync() if isinstance(step, DistributedDataParallel) and not last else nullcontext()


def full(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded over the processes, which must all call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that may be sharded over the processes, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
