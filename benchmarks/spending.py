"""Do cascades pay? Compares cascades with fixed plans at equal mean cost.

Cascades are tuned on one set of videos and tested on another. Each is compared with the fixed plans at the
mean cost that it has in the test: with the plan of that cost or, between two plans, with clips assigned to
either at random so that the mean cost is the same. The plans of that comparison are also chosen on the
tuning set.

Differences are paired by clip, with 95 % intervals of a bootstrap over the test clips. Costs are all GMACs of
the network, and milliseconds of one clip at a time on this device without reading the video.

    python benchmarks/spending.py runs/demo/best --tune DATA/val.jsonl --test DATA/test.jsonl --json out.json
"""

from __future__ import annotations

import argparse
import math
import platform
import tempfile
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from fluxvit import __version__
from fluxvit.checkpoints.checkpoint import DEFAULT_CHECKPOINT, Checkpoint
from fluxvit.checkpoints.latency import measure_latencies
from fluxvit.data.cache import FrameCache
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import read_manifest
from fluxvit.deploy.cascade import measure_chains, prefixes
from fluxvit.evaluation.classification import predict_plans
from fluxvit.flux.cascade import chain_gmacs, stage_answer
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Cascade, Plan
from fluxvit.models.fluxvit import FluxViT
from fluxvit.optimization.cascade import choose_cascades, tune_cascade
from fluxvit.utils.files import write_json
from fluxvit.utils.system import device_name


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", nargs="?", default=DEFAULT_CHECKPOINT)
    add("--tune", required=True, help="manifest")
    add("--test", required=True, help="manifest of other videos")
    add("--plans", help="GRID:TOKENS, such as 32x24:18,32x32:36; default: the plan table")
    add("--units", default="gmacs,ms")
    add("--max_stages", type=int, default=3)
    add("--cache", help="folder of decoded frames; default: a temporary one")
    add("--cache_frames", type=int, default=32)
    add("--cache_side", type=int, default=48)
    add("--resamples", type=int, default=2000, help="of the bootstrap")
    add("--runs", type=int, default=50, help="timed passes of each plan and cascade")
    add("--device", default="cpu")
    add("--json", metavar="OUT.json")
    args = parser.parse_args()

    info = Checkpoint.load(args.checkpoint, args.device)
    model = info.model
    plans = [_plan(text) for text in args.plans.split(",")] if args.plans else info.plans
    plans = sorted(dict.fromkeys(plans), key=lambda plan: chain_gmacs(model.config.size, [plan])[0])
    with tempfile.TemporaryDirectory() as temporary:
        sets = {}
        for name in ("tune", "test"):
            manifest = read_manifest(getattr(args, name))
            cache = FrameCache(args.cache or temporary, manifest, args.cache_frames, args.cache_side)
            sets[name] = ClipDataset(manifest, cache.build())
        rows: Rows = {}
        for name, clips in sets.items():
            results = predict_plans(info, clips, plans)
            rows[name] = [result.logits for result in results], results[0].labels
        result: dict[str, Any] = {
            "checkpoint": str(args.checkpoint),
            "settings": {
                name: value
                for name, value in vars(args).items()
                if name not in ("checkpoint", "tune", "test", "json", "cache")
            },
            "videos": {name: len(clips) for name, clips in sets.items()},
            "digests": {name: clips.manifest.digest for name, clips in sets.items()},
            "environment": {
                "fluxvit": __version__,
                "torch": torch.__version__,
                "device": device_name(next(model.parameters()).device),
                "threads": torch.get_num_threads(),
                "python": platform.python_version(),
            },
            "fixed": fixed_plans(model, plans, rows, args.runs),
        }
        _print_fixed(result["fixed"])
        result["cascades"] = []
        for unit in args.units.split(","):
            result["cascades"] += cascades(model, plans, rows, unit, args)
    if args.json:
        write_json(args.json, result)
    print({name: result[name] for name in ("checkpoint", "videos", "digests", "environment", "settings")})


def _plan(text: str) -> Plan:
    grid, _, keep = text.partition(":")
    return Plan(SamplingGrid.parse(grid), int(keep))


Rows = dict[str, tuple[list[Tensor], Tensor]]
"""For each set of videos, the logits ``[N, classes]`` of every plan and the labels ``[N]``."""


def fixed_plans(model: FluxViT, plans: Sequence[Plan], rows: Rows, runs: int) -> list[dict[str, Any]]:
    latencies = measure_latencies(model, plans, runs=runs)
    return [
        {
            "grid": str(plan.grid),
            "tokens": plan.keep,
            "gmacs": chain_gmacs(model.config.size, [plan])[0],
            "ms": latency.p50,
            **{
                name: (logits[i].argmax(-1) == labels).double().mean().item()
                for name, (logits, labels) in rows.items()
            },
        }
        for i, (plan, latency) in enumerate(zip(plans, latencies, strict=True))
    ]


def _print_fixed(rows: list[dict[str, Any]]) -> None:
    print(f"{'fixed plan':12} {'GMACs':>8} {'ms':>8} {'tuning set':>11} {'test':>7}")
    for row in rows:
        name, tune, test = f"{row['grid']}:{row['tokens']}", 100 * row["tune"], 100 * row["test"]
        print(f"{name:12} {row['gmacs']:8.4f} {row['ms']:8.2f} {tune:9.1f} % {test:5.1f} %")


# Cascades --------------------------------------------------------------------------------------------------


def cascades(
    model: FluxViT, plans: Sequence[Plan], rows: Rows, unit: str, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """A cascade for the cost of each plan but the cheapest, and for one between each two."""
    size = model.config.size
    logits, labels = rows["tune"]
    costs: Callable[[Sequence[Plan]], list[float]]
    if unit == "gmacs":
        single = {plan: chain_gmacs(size, [plan])[0] for plan in plans}
        costs = lambda stages: chain_gmacs(size, stages)  # noqa: E731
    else:
        latencies = measure_latencies(model, plans, runs=args.runs)
        single = {plan: row.p50 for plan, row in zip(plans, latencies, strict=True)}
        costs = lambda stages: list(accumulate(single[plan] for plan in stages))  # noqa: E731
    prices = sorted(single.values())
    targets = sorted(prices[1:] + [math.sqrt(a * b) for a, b in pairwise(prices)])
    tuned = choose_cascades(plans, logits, labels, costs, targets, args.max_stages)
    if unit == "ms":
        tuned, costs = _retuned(model, plans, rows, single, tuned, targets, args.runs)
    hull = upper_hull([(single[plan], i, _right(rows["tune"], i)) for i, plan in enumerate(plans)])
    print(f"\nmean {unit:5} {'fixed':>8} {'cascade':>8}   difference (95 %)     at most   stages")
    found = []
    for target, cascade in zip(targets, tuned, strict=True):
        row = _tested(cascade, plans, rows["test"], costs(cascade.stages), hull, args.resamples)
        found.append({"unit": unit, "target": target, **row})
        low, high = row["interval"]
        averaged = ", averaged" if cascade.average else ""
        print(
            f"{row['mean']:10.4g} {100 * row['fixed']:6.1f} % {100 * row['cascade']:6.1f} %   "
            f"{100 * row['difference']:+5.1f} ({100 * low:+.1f} to {100 * high:+.1f})   {target:9.4g}   "
            f"{' > '.join(row['stages'])} at {cascade.threshold:.3f}{averaged}",
            flush=True,
        )
    return found


def _retuned(
    model: FluxViT,
    plans: Sequence[Plan],
    rows: Rows,
    single: dict[Plan, float],
    tuned: list[Cascade],
    targets: list[float],
    runs: int,
) -> tuple[list[Cascade], Callable[[Sequence[Plan]], list[float]]]:
    """Tune thresholds by the latency of whole cascades, measured in turns with their first stages."""
    chains = list(
        dict.fromkeys(stages for cascade in tuned for stages in map(tuple, prefixes(cascade.stages)))
    )
    whole = dict(zip(chains, measure_chains(model, chains, runs), strict=True))

    def costs(stages: Sequence[Plan]) -> list[float]:
        # Ratio of the device's speed now to that when the plans were timed alone.
        pace = single[stages[0]] / whole[(stages[0],)]
        return [pace * whole[tuple(first)] for first in prefixes(stages)]

    logits, labels = rows["tune"]
    again = []
    for cascade, target in zip(tuned, targets, strict=True):
        of_stages = [logits[plans.index(plan)] for plan in cascade.stages]
        again.append(tune_cascade(cascade.stages, of_stages, labels, costs(cascade.stages), target))
    return again, costs


def follow(cascade: Cascade, logits: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The stage at which each clip stops, and its answer, int64 ``[N]`` each.

    Args:
        logits: Logits of each stage, ``[N, classes]``.
    """
    probabilities = torch.stack(
        [
            stage_answer(logits[: n + 1], cascade.temperatures, cascade.average)
            for n in range(len(cascade.stages))
        ]
    )
    confidence, answers = probabilities.max(-1)
    sure = confidence >= cascade.threshold
    sure[-1] = True
    stop = sure.int().argmax(0)
    return stop, answers.gather(0, stop[None])[0]


def _right(rows: tuple[list[Tensor], Tensor], i: int) -> Tensor:
    return (rows[0][i].argmax(-1) == rows[1]).double()


def upper_hull(points: Sequence[tuple[float, int, Tensor]]) -> list[tuple[float, int]]:
    """Costs and numbers of the plans on the upper hull of accuracy against cost.

    Args:
        points: The cost of each plan, its number, and what it had right, ``[N]``.
    """
    hull: list[tuple[float, int, float]] = []
    for cost, i, right in sorted(points, key=lambda point: point[0]):
        accuracy = right.mean().item()
        if hull and accuracy <= hull[-1][2]:
            continue
        while len(hull) > 1 and _slope(hull[-2], (cost, i, accuracy)) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append((cost, i, accuracy))
    return [(cost, i) for cost, i, _ in hull]


def _slope(a: tuple[float, int, float], b: tuple[float, int, float]) -> float:
    return (b[2] - a[2]) / (b[0] - a[0]) if b[0] > a[0] else math.inf


def compared(
    cascade: Cascade,
    plans: Sequence[Plan],
    rows: tuple[list[Tensor], Tensor],
    costs: Sequence[float],
    hull: list[tuple[float, int]],
) -> tuple[Tensor, float, Tensor, Tensor]:
    """Compare a cascade with fixed plans at equal mean cost.

    Args:
        plans: The plans from which the stages and the hull were chosen.
        rows: Logits of every plan and labels, as in :data:`Rows`.
        costs: Cost of a clip that stops at each stage.
        hull: The fixed plans, from :func:`upper_hull`.

    Returns:
        The stage at which each clip stops, ``[N]``; the mean cost; and what the cascade and the fixed plans
        had right, float64 ``[N]`` each.
    """
    logits, labels = rows
    stop, answers = follow(cascade, [logits[plans.index(plan)] for plan in cascade.stages])
    right = (answers == labels).double()
    mean = torch.tensor(costs, dtype=torch.float64)[stop].mean().item()
    return stop, mean, right, at_cost(hull, rows, mean)


def at_cost(hull: list[tuple[float, int]], rows: tuple[list[Tensor], Tensor], mean: float) -> Tensor:
    """What fixed plans have right at a mean cost, float64 ``[N]``; see :func:`compared`."""
    below = max((n for n, (cost, _) in enumerate(hull) if cost <= mean), default=0)
    fixed = _right(rows, hull[below][1])
    if below + 1 < len(hull):
        low, high = hull[below], hull[below + 1]
        part = (mean - low[0]) / (high[0] - low[0])
        fixed = (1 - part) * fixed + part * _right(rows, high[1])
    return fixed


def _tested(
    cascade: Cascade,
    plans: Sequence[Plan],
    rows: tuple[list[Tensor], Tensor],
    costs: Sequence[float],
    hull: list[tuple[float, int]],
    resamples: int,
) -> dict[str, Any]:
    stop, mean, right, fixed = compared(cascade, plans, rows, costs, hull)
    return {
        "stages": [f"{plan.grid}:{plan.keep}" for plan in cascade.stages],
        "threshold": cascade.threshold,
        "temperatures": list(cascade.temperatures),
        "average": cascade.average,
        "reach": [(stop >= n).double().mean().item() for n in range(len(cascade.stages))],
        "mean": mean,
        "cascade": right.mean().item(),
        "fixed": fixed.mean().item(),
        "difference": (right - fixed).mean().item(),
        "interval": bootstrap(right - fixed, resamples),
    }


def bootstrap(differences: Tensor, resamples: int) -> list[float]:
    """95 % interval of the mean of paired differences ``[N]``."""
    count = len(differences)
    draw = torch.Generator().manual_seed(0)
    means = torch.stack(
        [differences[torch.randint(count, (count,), generator=draw)].mean() for _ in range(resamples)]
    )
    return means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()


if __name__ == "__main__":
    main()
