"""Several processes on one machine, over gloo: the same as one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {here!r}]
import torch
torch.set_num_threads(1)
from test_training import *
from fluxvit.training.distributed import join_world, leave_world
world = join_world("cpu")
run = trainer(Path({folder!r}), steps=5, world=world, accumulate={accumulate})
run.run(progress=False)
if world.is_main:
    torch.save(weights(run), Path({folder!r}) / "weights.pt")
leave_world(world)
"""


def launch(folder: Path, processes: int, accumulate: int = 1) -> torch.Tensor:
    """Weights after five steps of two clips per process, four in all."""
    folder.mkdir()
    here = Path(__file__).parent
    code = WORKER.format(tests=str(here.parent), here=str(here), folder=str(folder), accumulate=accumulate)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    workers = [subprocess.Popen([sys.executable, "-c", code], env=common | place) for place in places]
    assert [worker.wait(timeout=120) for worker in workers] == [0] * processes
    return torch.load(folder / "weights.pt", weights_only=True)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_take_the_steps_of_one(tmp_path: Path, accumulate: int) -> None:
    one, two = launch(tmp_path / "one", 1), launch(tmp_path / "two", 2, accumulate)
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)
