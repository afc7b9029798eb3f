"""Is Token Optimization better than plain sampling, and than models trained on one grid (the headline)?

For each pair of checkpoints (a flexible model and one trained on a single grid with the same seed; see
`benchmarks/flux_tuning.py`) the best sampling for each budget is searched on held-out videos and tested on
others:

    whole       as many whole frames as fit into the budget
    cut         the fixed grid, selected down by group-dynamic selection
    optimised   what the search found

The fixed-grid model is also tested with all tokens of its grid. Differences are paired by test video, with
95 % intervals.

    python benchmarks/token_optimization.py --flexible runs/multi-0,runs/multi-1 \\
        --fixed runs/fixed-0,runs/fixed-1 --held held/val.jsonl --test data/test.jsonl \\
        --grid 16x24 --budgets 36,18,9,4

An interrupted command goes on where it stopped when it is repeated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from fluxvit.evaluation.config import EvaluateConfig
from fluxvit.evaluation.evaluate import run_evaluation
from fluxvit.flux.budget import Budget
from fluxvit.flux.grid import SamplingGrid
from fluxvit.optimization.config import OptimizeConfig
from fluxvit.optimization.halving import paired_interval
from fluxvit.optimization.optimize import run_optimize
from fluxvit.utils.files import write_json
from fluxvit.utils.system import environment, usable_device

Row = tuple[dict[str, Any], np.ndarray]
"""A point of an evaluation, and whether each video was right, ``[N]``."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--flexible", required=True, help="checkpoints, one of each seed")
    add("--fixed", required=True, help="checkpoints trained on one grid, in the same order")
    add("--held", required=True, help="manifest of the videos that choose")
    add("--test", required=True, help="manifest of the videos that test")
    add("--grid", type=SamplingGrid.parse, required=True, help="of the fixed models")
    add("--budgets", default="36,18,9,4", help="tokens; the first is the full one")
    add("--selectors", default="group_dynamic", help="that the search may choose from")
    add("--frames", default="", help="of the candidate grids; default: around those of training")
    add("--sizes", default="", help="likewise")
    add("--out", type=Path, default=Path("runs/token_optimization"))
    args = parser.parse_args()

    print("python benchmarks/token_optimization.py", *sys.argv[1:])
    print(environment(usable_device()))
    budgets = _numbers(args.budgets)
    runs = []
    pairs = zip(args.flexible.split(","), args.fixed.split(","), strict=True)
    for number, (flexible, fixed) in enumerate(pairs):
        folder = args.out / str(number)
        found = run_optimize(
            OptimizeConfig(
                flexible,
                args.held,
                budgets,
                frames=_numbers(args.frames),
                sizes=_numbers(args.sizes),
                selectors=tuple(args.selectors.split(",")),
                test=args.test,
                to=str(folder / "model"),
                out=str(folder / "search"),
            )
        )
        print(f"{flexible}\n{found}", flush=True)
        searched = _evaluate(str(folder / "model"), args, budgets, folder / "searched", None)
        cut = _evaluate(flexible, args, budgets, folder / "cut", args.grid)
        baseline = _evaluate(fixed, args, budgets, folder / "fixed", args.grid)
        runs.append(
            {
                "whole": searched["plain"],
                "cut": cut["group_dynamic"],
                "optimised": searched["optimised"],
                "fixed, whole": baseline["plain"],
                "fixed, cut": baseline["group_dynamic"],
            }
        )
    _print(runs, budgets)
    points = [{way: [point for point, _ in rows] for way, rows in run.items()} for run in runs]
    write_json(args.out / "token_optimization.json", points)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _evaluate(
    checkpoint: str,
    args: argparse.Namespace,
    budgets: tuple[int, ...],
    out: Path,
    grid: SamplingGrid | None,
) -> dict[str, list[Row]]:
    """For each kind of sampling, one row per budget."""
    config = EvaluateConfig(
        checkpoint,
        args.test,
        tuple(Budget(tokens=budget) for budget in budgets),
        grid=grid,
        plain_size=args.grid.height,
        latency=False,
        out=str(out),
    )
    evaluation = run_evaluation(config)
    assert evaluation is not None
    with np.load(out / "predictions.npz") as file:
        right = file["log_probabilities"].argmax(-1) == file["labels"]
        answers = dict(zip(file["requests"].tolist(), right, strict=True))
    rows: dict[str, list[Row]] = {}
    for point in evaluation.results["points"]:
        start = f"{point['grid']}, {point['keep']} tokens, {point['selector']}, "
        matching = [name for name in answers if name.startswith(start)]
        own = [name for name in matching if name.endswith(f"head {point['head']}")] or matching
        rows.setdefault(point["kind"], []).append((point, answers[own[0]]))
    return rows


def _print(runs: list[dict[str, list[Row]]], budgets: tuple[int, ...]) -> None:
    print("\naccuracy in per cent, mean (± standard deviation over the models)")
    print(f"{'tokens':14}" + "".join(f"{budget:>16}" for budget in budgets))
    for way in runs[0]:
        cells = []
        for place in range(len(budgets)):
            values = [100 * float(run[way][place][1].mean()) for run in runs]
            cells.append(f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else ""))
        print(f"{way:14}" + "".join(f"{cell:>16}" for cell in cells))
    for title, way, place, other, there in (
        *((f"optimised over cut, {b} tokens", "optimised", i, "cut", i) for i, b in enumerate(budgets)),
        *((f"optimised over fixed cut, {b}", "optimised", i, "fixed, cut", i) for i, b in enumerate(budgets)),
        *(
            (f"optimised at {b} over fixed at {budgets[0]}, all tokens", "optimised", i, "fixed, cut", 0)
            for i, b in enumerate(budgets)
            if i
        ),
    ):
        one = np.concatenate([run[way][place][1] for run in runs])
        two = np.concatenate([run[other][there][1] for run in runs])
        low, high = paired_interval(one, two, z=1.959964)
        each = ", ".join(
            f"{100 * float(run[way][place][1].mean() - run[other][there][1].mean()):+.1f}" for run in runs
        )
        gain = 100 * float(one.mean() - two.mean())
        print(f"{title}: {gain:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}); each model {each}")


if __name__ == "__main__":
    main()
