"""What does the search for the best sampling cost and miss, compared with trying all candidates on all clips?

For each seed the clips are drawn and ordered again. Both searches run on the same clips; the plan that the
fast search finds is scored by the accuracy that the exhaustive search measured for it. Among many candidates
of about equal accuracy, one is always lucky on these clips, and the exhaustive search finds it. So with
``--fresh`` the plans of both are also compared on other videos.

    python benchmarks/search_cost.py fluxvit_nano_motionworld data/held/val.jsonl --clips 400 \\
        --seeds 0,1,2,3 --fresh data/test.jsonl
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import read_manifest
from fluxvit.evaluation.classification import predict_plans
from fluxvit.flux.plan import Plan
from fluxvit.optimization.config import OptimizeConfig
from fluxvit.optimization.halving import paired_interval
from fluxvit.optimization.optimize import OptimizeResult, run_optimize
from fluxvit.utils.system import environment


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def accuracies(exhaustive: OptimizeResult, budget: int) -> dict[tuple, float]:
    """The accuracy of the best head of each sampling, in per cent."""
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
    add("--fresh", help="manifest of other videos, on which the plans of both searches are compared")
    add("--workers", type=int, default=0)
    add("--device", default="cpu")
    args = parser.parse_args()

    print("python benchmarks/search_cost.py", *sys.argv[1:])
    print(environment(args.device))
    lost, shares, times = [], [], []
    gaps: list[np.ndarray] = []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:

            def run(name: str, exhaustive: bool, seed: int = seed, folder: str = folder) -> OptimizeResult:
                config = OptimizeConfig(
                    args.checkpoint,
                    args.data,
                    args.budgets,
                    selectors=tuple(args.selectors.split(",")),
                    videos=args.clips,
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
            plans = [found.plan, exhaustive.best[budget].plan]
            gaps += [_right(args, plans[0]) - _right(args, plans[1])] if args.fresh else []
            print(
                f"  {budget:>5} tokens, {len(known)} candidates: "
                f"found {found.plan.grid} {found.plan.selector} {reached:.2f} %, "
                f"best {best[0]} {best[1]} {known[best]:.2f} %, lost {lost[-1]:.2f}"
                + (f"; on other videos lost {-100 * gaps[-1].mean():.2f}" if gaps else ""),
                flush=True,
            )
    within = sum(points <= 0.5 + 1e-9 for points in lost)
    print(
        f"lost {statistics.mean(lost):.2f} points of accuracy on average, {max(lost):.2f} at most, "
        f"{within} of {len(lost)} within 0.5; cost {statistics.mean(shares):.1f} % of the GMACs "
        f"(at most {max(shares):.1f} %) and {statistics.mean(times):.1f} % of the seconds"
    )
    if gaps:
        means = [-100 * float(gap.mean()) for gap in gaps]
        low, high = paired_interval(-np.concatenate(gaps), np.zeros(sum(map(len, gaps))), z=1.959964)
        print(
            f"on other videos: lost {statistics.mean(means):.2f} points on average "
            f"({100 * low:.2f} to {100 * high:.2f}), {max(means):.2f} at most, "
            f"{sum(points <= 0.5 + 1e-9 for points in means)} of {len(means)} within 0.5"
        )


@cache
def _predictor(checkpoint: str, fresh: str, device: str) -> Callable[[Plan], np.ndarray]:
    info = Checkpoint.load(checkpoint, device)
    dataset = ClipDataset(read_manifest(fresh))

    @cache
    def right(plan: Plan) -> np.ndarray:
        (result,) = predict_plans(info, dataset, [plan])
        return (result.logits.argmax(-1) == result.labels).double().numpy()

    return right


def _right(args: argparse.Namespace, plan: Plan) -> np.ndarray:
    """Whether a plan's answers on the other videos are right, float64 ``[N]``."""
    return _predictor(args.checkpoint, args.fresh, args.device)(plan)


if __name__ == "__main__":
    main()
