"""What the search for the best sampling costs and misses, beside trying every candidate on every clip.

For each seed the clips are drawn and ordered anew. Both ways run on the same clips; the plan that the search
finds is scored by what the exhaustive search measured of it.

    python benchmarks/search_cost.py fluxvit_nano_motionworld data/held/val.jsonl --clips 400 --seeds 0,1,2,3
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from fluxvit.demo import environment
from fluxvit.evaluation.optimize import OptimizeConfig, OptimizeResult, run_optimize


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def accuracies(exhaustive: OptimizeResult, budget: int) -> dict[tuple, float]:
    """Of every sampling the accuracy of its best head, in per cent."""
    return {
        (tried.plan.grid, tried.plan.selector): 100 * tried.score.accuracy
        for tried in exhaustive.tried[budget]
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint")
    add("data", help="manifest of held-out videos")
    add("--budgets", type=numbers, default=(), help="default: those of training")
    add("--selectors", default="group_dynamic,dynamic")
    add("--clips", type=int, default=400)
    add("--seeds", type=numbers, default=(0, 1, 2))
    add("--workers", type=int, default=0)
    add("--device", default="cpu")
    args = parser.parse_args()

    print("python benchmarks/search_cost.py", *sys.argv[1:])
    print(", ".join(environment().values()))
    lost, shares, times = [], [], []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:

            def run(name: str, exhaustive: bool, seed: int = seed, folder: str = folder) -> OptimizeResult:
                config = OptimizeConfig(
                    args.checkpoint,
                    args.data,
                    args.budgets,
                    selectors=tuple(args.selectors.split(",")),
                    clips=args.clips,
                    seed=seed,
                    exhaustive=exhaustive,
                    to=str(Path(folder) / name),
                    out=str(Path(folder) / f"{name}-log"),
                    workers=args.workers,
                    device=args.device,
                )
                return run_optimize(config)

            search, exhaustive = run("search", False), run("exhaustive", True)
        shares.append(100 * search.spent.share)
        times.append(100 * search.spent.seconds / exhaustive.spent.seconds)
        print(
            f"seed {seed}: {search.spent.gmacs:.4g} of {exhaustive.spent.gmacs:.4g} GMACs "
            f"({shares[-1]:.1f} %), {search.spent.seconds:.0f} of {exhaustive.spent.seconds:.0f} s "
            f"({times[-1]:.1f} %)"
        )
        for budget, found in search.best.items():
            known = accuracies(exhaustive, budget)
            best = max(known, key=lambda key: known[key])
            reached = 100 * found.score.accuracy
            lost.append(known[best] - reached)
            print(
                f"  {budget:>5} tokens, {len(known)} candidates: "
                f"found {found.plan.grid} {found.plan.selector} {reached:.2f} %, "
                f"best {best[0]} {best[1]} {known[best]:.2f} %, lost {lost[-1]:.2f}",
                flush=True,
            )
    within = sum(points <= 0.5 + 1e-9 for points in lost)
    print(
        f"lost {statistics.mean(lost):.2f} points of accuracy on average, {max(lost):.2f} at most, "
        f"{within} of {len(lost)} within 0.5; cost {statistics.mean(shares):.1f} % of the GMACs "
        f"(at most {max(shares):.1f} %) and {statistics.mean(times):.1f} % of the seconds"
    )


if __name__ == "__main__":
    main()
