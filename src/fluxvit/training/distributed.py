"""Several processes as one: joining them, splitting work, and wrapping a model for training."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fluxvit.models.fluxvit import FluxViT


@dataclass(frozen=True)
class World:
    """The processes of a run and this one's place: ``rank`` of ``size``, on ``device``."""

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
        device: ``cpu`` or ``cuda``; None: CUDA if there is any. With several processes on CUDA each takes
            the device of its local rank.

    Raises:
        ValueError: CUDA is asked for and not there.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {kind}: this PyTorch sees no CUDA device; use cpu")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World(0, 1, torch.device(kind))
    if kind == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    else:
        place = torch.device(kind)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    return World(dist.get_rank(), dist.get_world_size(), place)


def leave_world(world: World) -> None:
    """Close what :func:`join_world` opened."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def parallelize(
    step: nn.Module, model: FluxViT, world: World, *, checkpoint_blocks: bool, compile_blocks: bool
) -> nn.Module:
    """Prepare a module that computes a loss with ``model`` for training in ``world``.

    The order matters and is fixed here: activation checkpointing, then compilation of each block, then
    wrapping, so that compiled code never contains communication.
    """
    if checkpoint_blocks:
        model.set_grad_checkpointing()
    if compile_blocks:
        for block in model.blocks:
            block.compile()
    if world.size == 1:
        return step
    devices = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(step, device_ids=devices)
