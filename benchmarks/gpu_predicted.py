"""Predicts what `gpu.py` would measure on an H200, operation by operation; no GPU is needed.

    python benchmarks/gpu_predicted.py > benchmarks/results/gpu_predicted.txt

The network runs on PyTorch's meta device, which records its operations. An operation that launches a kernel
takes the longest of

    FLOP / (GEMM rate of its type x efficiency)      products and attention
    bytes read and written / (4.8 TB/s x efficiency)
    the shortest time of a kernel

A graph takes the sum. An eager pass takes the longer of the sum and `launches x time of a launch in Python`.
In compiled blocks each chain of operations between products is one kernel, which reads what comes from
outside the chain and writes what is used after it; a block costs Python one call. The four rates and times
are fitted to a table that was measured once (H200, torch 2.11, commit 43c3f49: bf16 eager and compiled
blocks); the errors of the formula on that table are printed first. All else is a prediction.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fluxvit.flux.cost import grid_cost, joint_macs
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.fluxvit import FluxViT, create_model
from fluxvit.models.inference import prepare

# FLOP/s of products; that of bf16 was measured, that of fp32 is the data sheet's.
RATES = {torch.bfloat16: 780e12, torch.float32: 60e12}
BANDWIDTH, KERNEL = 4.8e12, 2.5e-6
FREE = {
    *("view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "split", "unsqueeze"),
    *("squeeze", "detach", "alias", "split_with_sizes", "empty", "empty_like", "empty_strided", "as_strided"),
}
SMALL, LARGE = SamplingGrid(8, 224, 224), SamplingGrid(16, 224, 224)
# Model, tokens, batch; ms of eager passes in bf16, and with compiled blocks.
MEASURED = [
    ("fluxvit_small", 512, 1, 16.5, 12.0),
    ("fluxvit_small", 512, 32, 23.1, 13.4),
    ("fluxvit_small", 2048, 1, 21.6, 9.3),
    ("fluxvit_small", 2048, 8, 29.8, 8.6),
    ("fluxvit_small", 2048, 32, 42.8, 21.1),
    ("fluxvit_base", 512, 1, 21.8, 11.9),
    ("fluxvit_base", 512, 32, 24.1, 12.2),
    ("fluxvit_base", 2048, 8, 24.5, 13.6),
    ("fluxvit_base", 2048, 32, 85.6, 46.0),
]
# A step of base without its 502 ms of positions, which are products now: eager, compiled.
MEASURED_STEP = 934 - 502, 742 - 502


@dataclass
class Operation:
    """A kernel: its floating-point operations, their largest rate, and what it reads and writes."""

    flop: float
    rate: float
    reads: list[Tensor]
    writes: list[Tensor]
    attention: bool = False

    def __post_init__(self) -> None:
        self.bytes = sum(map(size, self.reads)) + sum(map(size, self.writes))


@dataclass(frozen=True)
class Constants:
    """Efficiencies of products, attention, memory; seconds of a launch in Python and of a compiled block."""

    products: float
    attention: float
    memory: float
    launch: float = 0.0
    call: float = 0.0

    def seconds(self, operations: list[Operation]) -> float:
        return sum(
            max(
                KERNEL,
                op.flop / (op.rate * (self.attention if op.attention else self.products)),
                op.bytes / (BANDWIDTH * self.memory),
            )
            for op in operations
        )


def size(x: Tensor) -> int:
    """Bytes of a tensor; an expanded one is no larger than its storage."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


class Trace(TorchDispatchMode):
    """Records the operations that launch kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet.__name__ not in FREE:
            reads = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            writes = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
            flop = 0
            if packet in flop_registry:
                flop = flop_registry[packet](*args, **(kwargs or {}), out_val=out)
            rate = RATES.get(reads[-1].dtype, 1e15) if flop else 1.0
            self.operations.append(Operation(flop, rate, reads, writes, "attention" in packet.__name__))
        return out


def flash(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


def trace(work: Callable[[], Any]) -> tuple[list[Operation], Any]:
    """The operations of a function, and its result."""
    with Trace() as recorded, mock.patch.object(F, "scaled_dot_product_attention", flash):
        result = work()
    return recorded.operations, result


def key(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def fused(operations: list[Operation]) -> list[Operation]:
    """The operations with each chain between products as one kernel."""
    last_use = {key(x): i for i, op in enumerate(operations) for x in op.reads}
    result: list[Operation] = []
    chain: list[tuple[int, Operation]] = []

    def close() -> None:
        if not chain:
            return
        reads = {key(x): x for _, op in chain for x in op.reads}
        writes = {key(x): x for _, op in chain for x in op.writes}
        end = chain[-1][0]
        outside = [x for name, x in reads.items() if name not in writes]
        used = [x for name, x in writes.items() if last_use.get(name, end + 1) > end]
        result.append(Operation(0.0, 1.0, outside, used))
        chain.clear()

    for i, op in enumerate(operations):
        if op.flop:
            close()
            result.append(op)
        else:
            chain.append((i, op))
    close()
    return result


@dataclass
class Pass:
    """The operations of a forward pass: in the blocks, the same fused, and outside of the blocks."""

    blocks: list[Operation]
    fused: list[Operation]
    outside: list[Operation]
    depth: int

    def eager(self, c: Constants) -> float:
        operations = self.blocks + self.outside
        return max(c.seconds(operations), len(operations) * c.launch)

    def compiled(self, c: Constants) -> float:
        launching = len(self.outside) * c.launch + self.depth * c.call
        return max(self.both(c), launching)

    def captured(self, c: Constants) -> float:
        return c.seconds(self.blocks + self.outside)

    def both(self, c: Constants) -> float:
        return c.seconds(self.fused + self.outside)


@torch.no_grad()
def forward_pass(model: FluxViT, grid: SamplingGrid, keep: int, batch: int) -> Pass:
    shape = batch, 3, grid.frames, grid.height, grid.width
    video = torch.empty(shape, dtype=model.cls_token.dtype, device="meta")
    before, (((tokens, _),), _) = trace(lambda: model.select_tokens(video, [keep]))
    blocks, tokens = trace(lambda: model.encode(tokens))
    after, _ = trace(lambda: model.head_output(tokens, None))
    return Pass(blocks, fused(blocks), before + after, len(model.blocks))


def step_operations(model: FluxViT, budgets: tuple[int, ...]) -> tuple[list[Operation], int]:
    """The operations of a Flux-Multi step at batch 16, and the bytes that are kept for the backward pass."""
    video = torch.empty(16, 3, 16, 224, 224, dtype=torch.bfloat16, device="meta")
    saved: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        saved[key(x)] = x.untyped_storage().nbytes()
        return x

    def step() -> None:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = sum(output.logits.float().sum() for output in model(video, list(budgets)))
        assert isinstance(loss, Tensor)
        loss.backward()

    operations, _ = trace(step)
    weights = sum(parameter.numel() for parameter in model.parameters())
    state = torch.empty(
        7 * weights, device="meta"
    )  # AdamW reads and writes fp32 weights, moments, gradients.
    return [*operations, Operation(0.0, 1.0, [state], [])], sum(saved.values())


def fit(passes: list[Pass]) -> Constants:
    """The constants with the smallest mean error, in logarithms."""

    def error(c: Constants) -> float:
        spent = [
            (work.eager(c), eager, work.compiled(c), compiled)
            for work, (*_, eager, compiled) in zip(passes, MEASURED, strict=True)
        ]
        return sum(abs(math.log(1e3 * a / b)) + abs(math.log(1e3 * x / y)) for a, b, x, y in spent)

    rates = itertools.product((0.6, 0.75, 0.9), (0.3, 0.45, 0.6), (0.4, 0.55, 0.7, 0.85))
    # The speed of the host follows from the passes at batch 1, which wait for it.
    alone = [(work, row) for work, row in zip(passes, MEASURED, strict=True) if row[2] == 1]
    launch = statistics.median(row[3] / 1e3 / len(work.blocks + work.outside) for work, row in alone)
    calls = [(row[4] / 1e3 - len(work.outside) * launch) / work.depth for work, row in alone]
    call = max(0.0, statistics.median(calls))
    return min((Constants(*values, launch, call) for values in rates), key=error)


def on_meta(name: str, **settings: Any) -> FluxViT:
    with torch.device("meta"):
        return create_model(name, num_classes=400, **settings).eval()


def share(macs: float, seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms ({200 * macs / seconds / RATES[torch.bfloat16]:.0f} %)"


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(f"{__doc__}\nThe formula on what was measured (H200; ms, formula / measured)\n")
    passes = []
    for name, keep, batch, *_ in MEASURED:
        grid = SMALL if keep <= 1024 else LARGE
        passes.append(forward_pass(on_meta(name).bfloat16(), grid, keep, batch))
    c = fit(passes)
    errors = []
    for work, (name, keep, batch, eager, compiled) in zip(passes, MEASURED, strict=True):
        ours = 1e3 * work.eager(c), 1e3 * work.compiled(c)
        errors += [abs(ours[0] / eager - 1), abs(ours[1] / compiled - 1)]
        print(
            f"{name}, {keep} tokens, batch {batch}: eager {ours[0]:.1f} / {eager}, "
            f"compiled blocks {ours[1]:.1f} / {compiled}"
        )
    budgets = 3072, 2048, 1024
    base = on_meta("fluxvit_base", budgets=budgets).bfloat16()
    operations, kept = step_operations(base, budgets)
    steps = c.seconds(operations), c.seconds(fused(operations))
    print(
        f"Flux-Multi step of base, positions apart: eager {1e3 * steps[0]:.0f} / {MEASURED_STEP[0]}, "
        f"compiled blocks {1e3 * steps[1]:.0f} / {MEASURED_STEP[1]} (not fitted)"
    )
    print(
        f"error of the forward passes: median {100 * statistics.median(errors):.0f} %, "
        f"largest {100 * max(errors):.0f} %"
    )
    print(
        f"fitted: products {100 * c.products:.0f} % of the GEMM rate, attention {100 * c.attention:.0f} %, "
        f"memory {100 * c.memory:.0f} % of 4.8 TB/s, {1e6 * c.launch:.0f} us a launch, "
        f"{1e6 * c.call:.0f} us a compiled block; set: {1e6 * KERNEL:.1f} us the shortest kernel"
    )
    print("\nPREDICTED, not measured: the inference form in bf16 (ms, share of the GEMM rate)\n")
    others = [("fluxvit_base", 2048, 1), ("fluxvit_small", 512, 8)]
    for name, keep, batch in [*(row[:3] for row in MEASURED), *others]:
        grid = SMALL if keep <= 1024 else LARGE
        model = prepare(on_meta(name), torch.bfloat16, backend="torch")
        work = forward_pass(model, grid, keep, batch)
        macs = batch * grid_cost(model.config.size, grid, keep).total
        cells = ", ".join(
            f"{kind} {share(macs, getattr(work, kind)(c))}"
            for kind in ("eager", "compiled", "captured", "both")
        )
        print(f"{name}, {keep} tokens, batch {batch}: {cells}")
    small = prepare(on_meta("fluxvit_small"), torch.bfloat16, backend="torch")
    plans = [(SamplingGrid(frames, 224, 224), keep) for frames in (8, 12) for keep in (256, 512, 768, 1024)]
    alone = [forward_pass(small, grid, keep, 1) for grid, keep in plans]
    grouped = [forward_pass(small, grid, keep, 4) for grid, keep in plans]
    macs = sum(4 * grid_cost(small.config.size, grid, keep).total for grid, keep in plans)
    total = sum(4 * (keep + 1) for _, keep in plans)
    pack = forward_pass(small, LARGE, 640, round(total * 1.17 / 641))
    outside = sum(c.seconds(work.outside) for work in grouped)
    print(
        f"32 mixed requests of small, 8 plans: eager one by one "
        f"{share(macs, sum(4 * work.eager(c) for work in alone))}, captured one by one "
        f"{share(macs, sum(4 * work.captured(c) for work in alone))}, packed and captured "
        f"{share(macs, outside + c.seconds(pack.blocks))}, compiled too "
        f"{share(macs, outside + c.seconds(pack.fused))}"
    )
    macs = 3 * 16 * joint_macs(base.config.size, LARGE, budgets)
    print(
        f"Flux-Multi step of base, batch 16, {budgets}: eager {share(macs, steps[0])}, "
        f"compiled blocks {share(macs, steps[1])}; tensors kept for the backward pass, eager: "
        f"{kept / 2**30:.0f} GiB"
    )


if __name__ == "__main__":
    main()
