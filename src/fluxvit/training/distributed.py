"""Several processes as one: joining them, splitting work, and wrapping a model for training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fluxvit.files import lock_folder
from fluxvit.machine import usable_device
from fluxvit.models.fluxvit import FluxViT

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of a run and this one's place: ``rank`` of ``size``, on ``device``.

    All methods but ``is_main`` must be called by all processes, in the same order.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes; gradients do not pass."""
        return self._reduce(value.detach().clone(), dist.ReduceOp.SUM) / self.size

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process; all get the same answer."""
        return bool(self._reduce(torch.tensor(float(flag), device=self.device), dist.ReduceOp.MAX))

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank; any that can be pickled."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def main_value(self, value: T) -> T:
        """The main process's value, in all."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def _reduce(self, value: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
        if self.size > 1:
            dist.all_reduce(value, how)
        return value


ALONE = World(0, 1, torch.device("cpu"))
"""One process on the CPU."""


def join_world(device: str | None = None) -> World:
    """This process's world: that of ``torchrun`` if it started the process, else a world of one.

    Args:
        device: Such as ``cpu`` or ``cuda``; None: the accelerator if there is one. With several processes on
            CUDA each takes the device of its local rank.

    Raises:
        ValueError: There is no such device, or there are fewer CUDA devices than processes.
    """
    place = usable_device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World(0, 1, place)
    if place.type == "cuda" and place.index is None:
        place = usable_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    return World(dist.get_rank(), dist.get_world_size(), place)


def fail_together(trouble: Exception | None, world: World, what: str) -> None:
    """Raise in all processes what happened in any, or they wait for it for ever; all must call this.

    Args:
        trouble: What happened in this process.
        what: What failed, for the others' message.

    Raises:
        Exception: ``trouble``.
        ValueError: Something happened in another process; the message says what, and in which.
    """
    told = world.gather(None if trouble is None else f"{trouble}" or repr(trouble))
    if trouble is not None:
        raise trouble
    for rank, text in enumerate(told):
        if text is not None:
            raise ValueError(f"{what} failed in process {rank}: {text}")


@contextmanager
def lock_run(folder: str | Path, world: World) -> Iterator[None]:
    """Lock the folder that a run writes, in its main process; all must call this.

    Raises:
        ValueError: Another run holds the lock; raised in all processes.
    """
    with ExitStack() as stack:
        trouble: Exception | None = None
        if world.is_main:
            try:
                stack.enter_context(lock_folder(folder))
            except (ValueError, OSError) as error:
                trouble = error
        fail_together(trouble, world, "the run")
        yield


def leave_world(world: World) -> None:
    """Close what :func:`join_world` opened."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def parallelize(
    step: nn.Module,
    model: FluxViT,
    world: World,
    *,
    checkpoint_blocks: bool,
    compile_blocks: bool,
    shard: bool = False,
) -> nn.Module:
    """Prepare a module that computes a loss with ``model`` for training in ``world``.

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
        model.set_grad_checkpointing()
    if compile_blocks:
        for block in model.blocks:
            block.compile()
    if world.size == 1:
        return step
    if shard:
        if world.device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
            raise ValueError("shard: on the CPU it needs PyTorch 2.7 or newer; leave it out, or update")
        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        # The root is the step, not the model: tasks call methods of the model one by one, and only within a
        # call of the root are the parameters outside of blocks there as a whole.
        fully_shard(step, mesh=mesh)
        return step
    devices = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(step, device_ids=devices)


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
