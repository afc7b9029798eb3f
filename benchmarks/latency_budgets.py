"""Does a budget in milliseconds give a plan that takes that long, and what does a quarter of the tokens save?

Budgets: five latencies are spread evenly, as ratios, between the cheapest plan of the table and the plan that
an unlimited budget gives. For each latency a plan is chosen as `Budget(latency_ms=...)` chooses it, with an
empty table of measurements. Then each of these plans is measured again, alone, as a predictor runs it:
"again" is that median, and "of asked" should lie within 95 to 100 %. "mixed" is the median when the five
plans take turns, so that the shape differs from pass to pass. The network is in its inference form.

Speed-up: the plan of the largest budget is compared with that of a quarter of it, in turns, in batches of one
and of eight clips. Beside it stand the ratios of multiply-accumulates, of everything and of the kept tokens
alone, as papers count.

A named size has random weights and four plans: all tokens of the largest budget's frames, and a half, a
quarter and an eighth of them out of grids about 2.5 times as large. A checkpoint has its plan table.

    python benchmarks/latency_budgets.py fluxvit_nano fluxvit_tiny fluxvit_small --json latency_budgets.json
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import torch

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.latency import LatencyTable, measure_latencies, plan_for
from fluxvit.evaluation.tested_plans import plain_grid
from fluxvit.flux.budget import Budget
from fluxvit.flux.cost import Cost, grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan, nearest_plan
from fluxvit.models.config import PRESETS
from fluxvit.models.fluxvit import FluxViT, create_model
from fluxvit.models.inference import Backend, Precision, form
from fluxvit.utils.files import write_json
from fluxvit.utils.system import device_name, usable_cores

POINTS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="named sizes or checkpoint folders")
    parser.add_argument("--size", type=int, help="pixels of a named size's frames; default: 224, nano 40")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--runs", type=int, default=50, help="passes of a measurement that is printed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto")
    parser.add_argument("--backend", choices=get_args(Backend), default="auto")
    parser.add_argument("--json", type=Path, metavar="OUT.json")
    args = parser.parse_args()
    device, batches = torch.device(args.device), [int(text) for text in args.batches.split(",")]
    conditions = {
        "device": device_name(device),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_before": _load(),
    }
    results = {}
    for name in args.models:
        model, plans = model_and_plans(name, args.size, device)
        model = Checkpoint(model.to(device)).prepared(args.precision, args.backend).model
        print(
            f"\n{name}, {form(model)}: plans {', '.join(_words(model, plan) for plan in plans)}", flush=True
        )
        budgets = try_budgets(model, plans, args.runs)
        speedups = [compare(model, plans, batch, args.runs) for batch in batches]
        results[name] = {"form": form(model), "budgets": budgets, "speedups": speedups}
    conditions["load_after"] = _load()
    print("\n" + "; ".join(f"{name} {value}" for name, value in conditions.items()))
    if args.json is not None:
        write_json(args.json, {"conditions": conditions, "results": results})


def model_and_plans(name: str, size: int | None, device: torch.device) -> tuple[FluxViT, list[Plan]]:
    """A model in eval mode and its plans, largest budget first."""
    if name not in PRESETS:
        info = Checkpoint.load(name, device)
        model = info.model
        plans = info.plans or info.default_plans()
        return model, sorted(plans, key=lambda plan: -plan.keep)
    torch.manual_seed(0)
    model = create_model(name).eval()
    config = model.config
    size = size or (224 if config.patch_size == 14 else 40)
    most = config.budgets[0]
    whole = plain_grid(model, most, size)
    grids = [SamplingGrid(config.tubelet_size * n, size, size) for n in range(2, 17)]
    parts = [Checkpoint(model, grids=grids).default_plans(most // n)[0] for n in (2, 4, 8)]
    return model, [Plan(whole, min(most, _pool(model, whole))), *parts]


def try_budgets(model: FluxViT, plans: list[Plan], runs: int) -> list[dict[str, Any]]:
    """Choose plans for latencies and measure them."""
    ends = min(plans, key=lambda plan: _cost(model, plan).total), plan_for(model, Budget(gflops=1e9), plans)
    cheapest, dearest = measure_latencies(model, ends)
    spread = dearest.p50 / cheapest.p50
    asked = [cheapest.p50 * spread ** ((n + 0.5) / POINTS) for n in range(POINTS)]
    chosen, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        table = LatencyTable(model, folder)
        for limit in asked:
            start = time.perf_counter()
            chosen.append(plan_for(model, Budget(latency_ms=limit), plans, table))
            seconds.append(time.perf_counter() - start)
    again = [measure_latencies(model, [plan], runs=runs)[0] for plan in chosen]
    mixed = measure_latencies(model, chosen, runs=runs)
    print(f"cheapest {cheapest.p50:.4g} ms, dearest {dearest.p50:.4g} ms ({_words(model, ends[1])})")
    print(
        f"{'asked':>9} {'chosen':>9} {'again':>9} {'p10':>9} {'p90':>9} {'of asked':>9} {'mixed':>9} "
        f"{'search':>8}  plan"
    )
    rows = []
    for limit, plan, spent, latency, turns in zip(asked, chosen, seconds, again, mixed, strict=True):
        assert plan.measured is not None
        assert plan.measured.latency_ms is not None
        row = {
            "asked_ms": limit,
            "chosen_ms": plan.measured.latency_ms,
            "again_ms": latency.p50,
            "p10_ms": latency.p10,
            "p90_ms": latency.p90,
            "ratio": latency.p50 / limit,
            "mixed_ms": turns.p50,
            "search_s": spent,
            "grid": str(plan.grid),
            "keep": plan.keep,
            "selector": plan.selector,
            "gmacs": plan.measured.gmacs,
        }
        print(
            *(f"{row[name]:>9.4g}" for name in ("asked_ms", "chosen_ms", "again_ms", "p10_ms", "p90_ms")),
            f"{100 * row['ratio']:>7.1f} % {turns.p50:>9.4g} {spent:>6.1f} s  {_words(model, plan)}",
        )
        rows.append(row)
    print(f"within 95 to 100 % when measured again: {sum(0.95 <= r['ratio'] <= 1 for r in rows)} of {POINTS}")
    return rows


def compare(model: FluxViT, plans: list[Plan], batch: int, runs: int) -> dict[str, Any]:
    """The largest budget's plan against the plan of a quarter of it."""
    full = max(plans, key=lambda plan: plan.keep)
    quarter = nearest_plan(plans, max(1, full.keep // 4))
    one, other = measure_latencies(model, [full, quarter], batch_size=batch, runs=runs)
    costs = [_cost(model, plan) for plan in (full, quarter)]
    row = {
        "batch": batch,
        "full": {"grid": str(full.grid), "keep": full.keep, "p50_ms": one.p50, "runs": one.runs},
        "quarter": {"grid": str(quarter.grid), "keep": quarter.keep, "p50_ms": other.p50, "runs": other.runs},
        "speedup": one.p50 / other.p50,
        "macs_ratio": costs[0].total / costs[1].total,
        "published_macs_ratio": costs[0].published / costs[1].published,
    }
    print(
        f"batch {batch}: {one.p50:.4g} ms for {_words(model, full)}, {other.p50:.4g} ms for "
        f"{_words(model, quarter)}: {row['speedup']:.2f} times as fast; MACs {row['macs_ratio']:.2f} times "
        f"fewer, as published {row['published_macs_ratio']:.2f}",
        flush=True,
    )
    return row


def _pool(model: FluxViT, grid: SamplingGrid) -> int:
    return grid.tokens(model.config.patch_size, model.config.tubelet_size)


def _cost(model: FluxViT, plan: Plan) -> Cost:
    return grid_cost(model.config.size, plan.grid, plan.keep, plan.selector)


def _words(model: FluxViT, plan: Plan) -> str:
    selector = "" if plan.selector == "group_dynamic" else f" by {plan.selector}"
    return f"{plan.keep} of {_pool(model, plan.grid)} tokens of {plan.grid}{selector}"


def _load() -> list[float]:
    return [round(x, 1) for x in os.getloadavg()] if hasattr(os, "getloadavg") else []


if __name__ == "__main__":
    main()
