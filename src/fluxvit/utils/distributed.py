"""The processes of a run: joining them, exchanging values, and failing together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fluxvit.utils.files import lock_folder
from fluxvit.utils.system import usable_device

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of a run, of which this one is number ``rank`` of ``size``, on ``device``.

    All processes must call the methods, except ``is_main``, in the same order.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes, without gradients."""
        return self._reduce(value.detach().clone(), dist.ReduceOp.SUM) / self.size

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process; all get the same answer."""
        # Between the hosts, whatever the device is: it would have to be waited for.
        return bool(self._reduce(torch.tensor(float(flag)), dist.ReduceOp.MAX))

    def gather(self, value: T) -> list[T]:
        """The values of all processes by rank; they must be picklable."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def main_value(self, value: T) -> T:
        """The value of the main process, in all processes."""
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
    """Join the processes that ``torchrun`` started, or make a world of one process.

    Args:
        device: Such as ``cpu`` or ``cuda``; None: the accelerator if there is one. With several processes on
            CUDA each takes the device of its local rank.

    Raises:
        ValueError: There is no such device, or there are fewer CUDA devices than processes.
    """
    own = usable_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World(0, 1, own)
    if own.type == "cuda" and own.index is None:
        own = usable_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(own)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo")
    return World(dist.get_rank(), dist.get_world_size(), own)


def fail_together(trouble: Exception | None, world: World, what: str) -> None:
    """Raise in all processes if one has failed, for which the others would wait for ever; all must call this.

    Args:
        trouble: The error of this process, None if there is none.
        what: The step that failed, for the message in the other processes.

    Raises:
        Exception: ``trouble``.
        ValueError: Another process failed; the message gives its rank and its error.
    """
    messages = world.gather(None if trouble is None else f"{trouble}" or repr(trouble))
    if trouble is not None:
        raise trouble
    for rank, text in enumerate(messages):
        if text is not None:
            raise ValueError(f"{what} failed in process {rank}: {text}")


@contextmanager
def lock_run(folder: str | Path, world: World) -> Iterator[None]:
    """Lock the folder of a run in its main process; all processes must call this.

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
