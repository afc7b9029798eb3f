"""How fast a FluxViT classifies on this CPU: the inference form against plainer readings of the same network.

    python benchmarks/inference_speed.py --models fluxvit_small --budgets 512,1024,2048,3072 --batches 1,8

A row is a model, a budget and a batch. `unfused` is the usual research code: fp32, attention by two matrix
products and a softmax. `eager` is the FluxViT as it is trained, in fp32. The others are its inference form.
`share` is the part of this machine's own GEMM rate, of the same type and measured in the same run, that the
multiply-accumulates of the network make up. All are timed in turns; the medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.fluxvit import FluxViT, create_model
from fluxvit.models.inference import PackedLinear, can_pack, prepare
from fluxvit.utils.system import environment

GRIDS = {"fluxvit_small": SamplingGrid(16, 224, 224), "fluxvit_base": SamplingGrid(16, 224, 224)}


def unfused_attention(q: Tensor, k: Tensor, v: Tensor, packing: None = None, **_: bool) -> Tensor:
    return ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(-1) @ v


def unfused(model: FluxViT, video: Tensor, budget: int) -> object:
    with (
        mock.patch("fluxvit.models.attention.attention", unfused_attention),
        mock.patch("fluxvit.models.layers.attention", unfused_attention),
    ):
        return model(video, budget)


def in_turns(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median seconds of each work."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(spent) for name, spent in times.items()}


def gemm(dtype: torch.dtype) -> Callable[[], object]:
    """A product of 2048 x 2048 matrices by the faster of PyTorch's matmul and a packed layer."""
    x, weight = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048)
    if not can_pack(dtype):
        return lambda: x @ x
    layer = PackedLinear(weight, None, dtype, None)
    return lambda: layer(x)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="fluxvit_small")
    parser.add_argument("--budgets", default="512,1024,2048,3072")
    parser.add_argument("--batches", default="1")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in environment("cpu").items()))
    missing = [str(kind) for kind in (torch.float32, torch.bfloat16) if not can_pack(kind)]
    print(f"matrices that cannot be packed here: {', '.join(missing) or 'none'}")
    for name in args.models.split(","):
        model = create_model(name).eval()
        grid = GRIDS.get(name, SamplingGrid(16, 64, 64))
        forms = {"fp32": prepare(model), "bf16": prepare(model, torch.bfloat16)}
        for batch in map(int, args.batches.split(",")):
            video = torch.randn(batch, 3, grid.frames, grid.height, grid.width)
            for budget in map(int, args.budgets.split(",")):
                works: dict[str, Callable[[], object]] = {
                    "unfused": partial(unfused, model, video, budget),
                    "eager": partial(model, video, budget),
                    **{kind: partial(form, video, budget) for kind, form in forms.items()},
                    "gemm fp32": gemm(torch.float32),
                    "gemm bf16": gemm(torch.bfloat16),
                }
                seconds = in_turns(works, args.repeats)
                flop = 2 * batch * grid_cost(model.config.size, grid, budget).total
                rates = {kind: 2 * 2048**3 / seconds[f"gemm {kind}"] for kind in ("fp32", "bf16")}
                cells = []
                for kind in ("unfused", "eager", "fp32", "bf16"):
                    rate = rates["bf16" if kind == "bf16" else "fp32"]
                    cells.append(
                        f"{kind} {1000 * seconds[kind]:.0f} ms ({100 * flop / seconds[kind] / rate:.0f} %, "
                        f"{seconds['unfused'] / seconds[kind]:.2f}x)"
                    )
                print(f"{name} {budget} of {grid}, batch {batch}: {'; '.join(cells)}")
                print(
                    f"    GEMM {rates['fp32'] / 1e9:.0f} GFLOP/s fp32, {rates['bf16'] / 1e9:.0f} bf16",
                    flush=True,
                )


if __name__ == "__main__":
    main()
