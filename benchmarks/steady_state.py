"""Whether a served network stays as it is: memory, compilations and latency over random requests.

    python benchmarks/steady_state.py --model fluxvit_small --requests 1000

A request is a batch of one random grid and budget, or a pack of clips of different ones, of random pixels.
After each comes the same small request, which is timed. A row is a tenth of the requests; memory is the
resident set of the process.
"""

from __future__ import annotations

import argparse
import random
import time

import numpy as np
import psutil
import torch

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.fluxvit import FluxViT, create_model
from fluxvit.models.inference import form
from fluxvit.utils.system import environment


def resident_mb() -> float:
    """Memory of this process."""
    return float(psutil.Process().memory_info().rss) / 2**20


def random_clips(model: FluxViT, rng: random.Random, count: int) -> torch.Tensor:
    """Clips of random pixels on a random grid of 4 to 16 frames and 4 to 8 patches a side."""
    config = model.config
    frames = config.tubelet_size * rng.randint(1, max(1, 16 // config.tubelet_size))
    height, width = (config.patch_size * rng.randint(4, 8) for _ in range(2))
    return torch.randn(count, 3, frames, height, width)


@torch.inference_mode()
def request(model: FluxViT, rng: random.Random) -> None:
    """A batch of 1, 2, 4 or 8 clips, or a pack of two to four different ones, with random budgets."""
    if rng.random() < 0.25:
        videos = [random_clips(model, rng, 1)[0] for _ in range(rng.randint(2, 4))]
        model.forward_packed(videos, [rng.randint(16, 200) for _ in videos])
    else:
        model(random_clips(model, rng, rng.choice((1, 2, 4, 8))), rng.randint(16, 200))


def compilations() -> int:
    """Graphs that torch.compile has made in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def run(model: FluxViT, requests: int, seed: int = 0) -> list[tuple[int, float, int, list[float]]]:
    """After every tenth part of the requests: their number, memory in MB, compilations, and the milliseconds
    of the repeated request."""
    rng, rows, times = random.Random(seed), list[tuple[int, float, int, list[float]]](), list[float]()
    grid = SamplingGrid(
        4 * model.config.tubelet_size, 6 * model.config.patch_size, 6 * model.config.patch_size
    )
    video = torch.randn(1, 3, grid.frames, grid.height, grid.width)
    for number in range(1, requests + 1):
        request(model, rng)
        start = time.perf_counter()
        with torch.inference_mode():
            model(video, 64)
        times.append(1000 * (time.perf_counter() - start))
        if number % max(1, requests // 10) == 0:
            rows.append((number, resident_mb(), compilations(), times))
            times = []
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="fluxvit_small")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--backends", default="torch,openvino")
    args = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in environment("cpu").items()))
    torch.manual_seed(0)
    checkpoint = Checkpoint(create_model(args.model).eval())
    for backend in args.backends.split(","):
        model = checkpoint.prepared(args.precision, backend).model
        print(f"{args.model}, {form(model)}: {resident_mb():.0f} MB before the first request")
        for number, memory, graphs, times in run(model, args.requests):
            p50, p99 = np.percentile(times, (50, 99))
            print(
                f"  {number:5} requests  {memory:6.0f} MB  {graphs} compilations  the repeated one: "
                f"p50 {p50:.1f} ms, p99 {p99:.1f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
