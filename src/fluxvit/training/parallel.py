"""Training in several processes: wrapping a model, and tensors that are shared out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fluxvit.training.tasks.base import Task
from fluxvit.utils.distributed import World


def parallelize(
    task: Task,
    world: World,
    *,
    checkpoint_blocks: bool,
    compile_blocks: bool,
    shard: bool = False,
) -> nn.Module:
    """Prepare a task for training in ``world``.

    The order matters and is fixed here: activation checkpointing, then compilation of each block, then
    wrapping, so that compiled code never contains communication.

    Args:
        shard: Share parameters, gradients and optimiser state out between the processes (FSDP2) instead of
            copying the model to each. It replaces the model's parameters: make the optimiser afterwards. A
            world of one has nothing to share out.

    Raises:
        ValueError: This PyTorch cannot shard on the CPU.
    """
    if checkpoint_blocks:
        task.model.set_grad_checkpointing()
    if compile_blocks:
        for block in task.model.blocks:
            block.compile()
    if world.size == 1:
        return task
    if shard:
        if world.device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
            raise ValueError("shard: on the CPU it needs PyTorch 2.7 or newer; leave it out, or update")
        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in task.model.blocks:
            fully_shard(block, mesh=mesh)
        # The root is the task, not the model: tasks call methods of the model one by one, and only within a
        # call of the root are the parameters outside of blocks complete.
        fully_shard(task, mesh=mesh)
        return task
    devices = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(task, device_ids=devices)


def accumulating(step: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Around forward and backward pass of a part of a batch: gradients travel once, with the last part.

    Not so when sharded: there they travel with every part, for to keep them until the last each process would
    have to hold all of them.
    """
    return step.no_sync() if isinstance(step, DistributedDataParallel) and not last else nullcontext()


def forget_step(step: nn.Module) -> None:
    """After a forward pass whose backward pass is left out."""
    if isinstance(step, FSDPModule):
        step.reshard()  # Otherwise the backward pass does.


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be shared out between processes; then they must all call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that may be shared out between processes, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
