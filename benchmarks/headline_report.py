"""The tables and the picture of ``headline.py``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxvit.flux.plan import Plan
from fluxvit.optimization.halving import paired_interval
from fluxvit.utils.drawing import BASELINES, OPTIMISED, PLAIN, new_figure, style
from fluxvit.utils.terminal import table


@dataclass
class Row:
    """The answers of a model to the test videos at a plan.

    Args:
        way, seed: The kind of the model, and its number.
        sampling: ``plain``, ``cut`` or ``optimised``.
        budget: Tokens.
        plan: What the budget is spent on.
        right: Whether the answer to each video was right, bool ``[N]``.
        gmacs, published: GMACs of a clip, everything counted, and as papers count them.
        read_ms, ms: Milliseconds until the frames are read, and until the logits are there.
    """

    way: str
    seed: int
    sampling: str
    budget: int
    plan: Plan
    right: np.ndarray
    gmacs: float
    published: float
    read_ms: float = math.nan
    ms: float = math.nan

    @property
    def record(self) -> dict[str, Any]:
        """What the result files hold of it."""
        return {
            **{"model": self.way, "seed": self.seed, "sampling": self.sampling, "budget": self.budget},
            **{"grid": str(self.plan.grid), "keep": self.plan.keep, "selector": self.plan.selector},
            **{"head": "nearest" if self.plan.head is None else self.plan.head},
            **{"correct": int(self.right.sum()), "total": len(self.right)},
            **{"gmacs": round(self.gmacs, 5), "published_gmacs": round(self.published, 5)},
            **{"read_ms": round(self.read_ms, 3), "file_to_logits_ms": round(self.ms, 3)},
        }


def report(rows: Sequence[Row], budgets: Sequence[int]) -> list[str]:
    """The accuracies, the costs and the differences."""

    def of(way: str, sampling: str, budget: int) -> list[Row]:
        return [row for row in rows if (row.way, row.sampling, row.budget) == (way, sampling, budget)]

    lines = [
        [
            "model",
            "sampling",
            "tokens",
            "accuracy",
            "each seed",
            "GMACs",
            "(papers)",
            "read, ms",
            "all, ms",
            "grids",
        ]
    ]
    for way, sampling in dict.fromkeys((row.way, row.sampling) for row in rows):
        for budget in budgets:
            if not (found := of(way, sampling, budget)):
                continue
            lines.append(
                [
                    *(way, sampling, str(budget), f"{100 * _accuracy(found):.1f} %"),
                    " ".join(f"{100 * row.right.mean():.1f}" for row in found),
                    f"{_mean(found, 'gmacs'):.3f}",
                    f"{_mean(found, 'published'):.3f}",
                    f"{_mean(found, 'read_ms'):.1f}",
                    f"{_mean(found, 'ms'):.1f}",
                    ", ".join(dict.fromkeys(_grid(row.plan) for row in found)),
                ]
            )
    full = budgets[0]
    whole = of("fixed", "plain", full) or of("fixed", "cut", full)
    pairs = [
        (f"multi, optimised at {b}, over fixed with all {full}", of("multi", "optimised", b), whole)
        for b in budgets
    ]
    pairs += [
        (f"multi, cut to {b}, over fixed with all {full}", of("multi", "cut", b), whole) for b in budgets
    ]
    pairs += [
        (f"fixed, optimised at {b}, over fixed with all {full}", of("fixed", "optimised", b), whole)
        for b in budgets
    ]
    best = of("fixed", "optimised", full)
    pairs += [
        (f"multi, optimised at {b}, over fixed, optimised at {full}", of("multi", "optimised", b), best)
        for b in budgets
    ]
    pairs += [
        (f"{way}, {sampling}, over {other}, {base}, at {b}", of(way, sampling, b), of(other, base, b))
        for way, sampling, other, base in (
            ("multi", "optimised", "fixed", "optimised"),
            ("multi", "optimised", "multi", "cut"),
            ("multi", "cut", "fixed", "cut"),
        )
        for b in budgets
    ]
    gaps = [["difference in points", "(95 %)", "each seed", "GMACs", "milliseconds from file to logits"]]
    for title, one, other in pairs:
        if not (one and other):  # Rows that were skipped.
            continue
        each = np.stack([a.right.astype(float) - b.right for a, b in zip(one, other, strict=True)])
        share = _mean(one, "ms") / _mean(other, "ms")
        low, high = paired_interval(each.mean(0), np.zeros(each.shape[1]), z=1.959964)
        gaps.append(
            [
                f"{title}: {100 * each.mean():+.1f}",
                f"({100 * low:+.1f} to {100 * high:+.1f})",
                " ".join(f"{100 * gap:+.1f}" for gap in each.mean(1)),
                f"{_mean(one, 'gmacs'):.3f} / {_mean(other, 'gmacs'):.3f}",
                f"{_mean(one, 'ms'):.1f} / {_mean(other, 'ms'):.1f} = {share:.2f}",
            ]
        )
    return ["", *table(lines), "", *table(gaps)]


def _grid(plan: Plan) -> str:
    return str(plan.grid) + ("" if plan.selector == "group_dynamic" else f" {plan.selector}")


def _mean(rows: Sequence[Row], name: str) -> float:
    return statistics.mean(getattr(row, name) for row in rows)


def _accuracy(rows: Sequence[Row]) -> float:
    return statistics.mean(float(row.right.mean()) for row in rows)


@style()
def figure(rows: Sequence[Row]) -> Any:
    """Accuracy against GMACs and against milliseconds from file to logits, means over the seeds."""
    from matplotlib.ticker import LogLocator, NullLocator

    drawing = new_figure("Accuracy against cost of fixed-grid and Flux-Multi models", 4.0)
    curves = {
        ("multi", "optimised"): (OPTIMISED, "D-"),
        ("multi", "cut"): (OPTIMISED, "o:"),
        ("fixed", "optimised"): (PLAIN, "D-"),
        ("fixed", "cut"): (PLAIN, "o:"),
        ("fixed", "plain"): (BASELINES[0], "s--"),
    }
    panels = drawing.subplots(1, 2, sharey=True)
    for axes, cost, title in zip(
        panels, ("gmacs", "ms"), ("GMACs", "milliseconds from file to logits"), strict=True
    ):
        for (way, sampling), (colour, marks) in curves.items():
            own = [row for row in rows if (row.way, row.sampling) == (way, sampling)]
            by_budget = [
                [row for row in own if row.budget == b] for b in dict.fromkeys(row.budget for row in own)
            ]
            if not own:
                continue
            points = [(_mean(each, cost), 100 * _accuracy(each)) for each in by_budget]
            axes.plot(*zip(*points, strict=True), marks, color=colour, label=f"{way}, {sampling}")
        whole = [row for row in rows if (row.way, row.sampling) == ("fixed", "cut")]
        top = [row for row in whole if row.budget == max(row.budget for row in whole)]
        axes.axhline(100 * _accuracy(top), color=PLAIN, linewidth=0.8)
        axes.set_xlabel(title)
    panels[0].set(xscale="log", xlabel="GMACs (log scale)", ylabel="top-1 accuracy (%)")
    panels[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].xaxis.set_major_formatter("{x:g}")
    panels[0].xaxis.set_minor_locator(NullLocator())
    panels[1].set_xlim(left=0)
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=5)
    return drawing
