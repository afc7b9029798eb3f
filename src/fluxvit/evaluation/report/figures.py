"""Figures of an evaluation report.

Each function returns a Matplotlib figure whose label states its content. :mod:`fluxvit.utils.drawing`
turns it into SVG. A point is an element of ``points`` in the ``results.json`` of ``fluxvit evaluate``, and a
trial is an element of ``trials``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fluxvit.utils.drawing import BASELINES, MUTED, OPTIMISED, PLAIN, WIDTH, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

COSTS = {
    "tokens": "tokens that the encoder sees (log scale)",
    "gmacs": "GMACs of one view (log scale)",
    "milliseconds": "median milliseconds of one view (log scale)",
}
_MAIN = {"plain": (PLAIN, "o"), "optimised": (OPTIMISED, "D")}
_LABELLED_BUDGETS = 8  # With more budgets than this, their labels would overlap.


def kinds_of(points: Sequence[Row]) -> list[str]:
    """The kinds of points: plain, optimised, then the others in their order."""
    kinds = dict.fromkeys(point["kind"] for point in points)
    return [*(kind for kind in _MAIN if kind in kinds), *(kind for kind in kinds if kind not in _MAIN)]


def cost_of(point: Row, cost: str) -> float:
    """The cost of a point by its name in :data:`COSTS`; 0 if it was not measured."""
    if cost == "milliseconds":
        return float((point["latency_ms"] or {"p50": 0})["p50"])
    return float(point["keep" if cost == "tokens" else cost])


@style()
def accuracy_figure(points: Sequence[Row], cost: str, chance: float) -> Figure:
    """Top-1 accuracy of each kind of points against a cost, with 95 % intervals."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    label = f"Top-1 accuracy against {COSTS[cost].removesuffix(' (log scale)')}, by kind of sampling"
    figure = new_figure(label, 4.3)
    axes = figure.subplots()
    shown = [point for point in points if cost_of(point, cost)]
    costs = [cost_of(point, cost) for point in shown]
    least, most = min(costs), max(costs)
    margin = 1.05 * (most / least) ** 0.06  # A single cost has a margin, too.
    axes.set(xscale="log", xlabel=COSTS[cost], ylabel="top-1 accuracy (%)")
    axes.set_xlim(least / margin, most * margin)
    for number, kind in enumerate(kinds_of(shown)):
        line = sorted((point for point in shown if point["kind"] == kind), key=lambda point: point["budget"])
        baseline = BASELINES[number % len(BASELINES)], "s^vPXph<>"[number % 9]
        colour, marker = _MAIN.get(kind, baseline)
        shift = 0 if kind in _MAIN else 0.01 * number  # Bars at the same cost would hide each other.
        x = np.array([cost_of(point, cost) for point in line]) * (1 + shift)
        top1, low, high = (100 * np.array([point[key] for point in line]) for key in ("top1", "low", "high"))
        axes.vlines(x, low, high, color=colour, linewidth=1.1)
        axes.plot(x, top1, marker + ("-" if kind in _MAIN else "--"), color=colour, label=kind)
        if kind in _MAIN:
            axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.margins(y=0.12)
    if min(point["low"] for point in shown) < 0.4:
        text = f"chance ({100 * chance:.3g} %)"
        axes.axhline(100 * chance, color=MUTED, linestyle=":", linewidth=1.2, label=text)
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if most > 10 * least else MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    budgets = sorted({point["keep"] for point in shown})
    if cost == "tokens" and len(budgets) <= _LABELLED_BUDGETS:
        axes.set_xticks(budgets)
    figure.legend(loc="outside upper left", ncols=5)
    return figure


@style()
def search_figure(trials: Sequence[Row], points: Sequence[Row]) -> Figure:
    """A heat map of frames and frame sizes for each budget, with the accuracy of the best trial of each grid.

    Grids of plain points are outlined in blue, grids of optimised points in orange.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    best = {(row["budget"], row["grid"]): row for row in sorted(trials, key=lambda row: row["accuracy"])}
    budgets = sorted({budget for budget, _ in best}, reverse=True)
    frames = sorted({row["frames"] for row in trials})
    sizes = sorted({_frame_size(row) for row in trials}, key=lambda size: (math.prod(size), size))
    across = min(len(budgets), max(1, min(3, 16 // len(sizes))))
    down = -(-len(budgets) // across)
    across = -(-len(budgets) // down)  # The same number of rows, filled evenly.
    size = 0.6 + down * (0.5 + 0.4 * len(frames)), min(WIDTH, 1.2 + across * max(1.9, 0.68 * len(sizes)))
    figure = new_figure("Validation accuracy of the sampling grids that were tried", *size)
    grey = LinearSegmentedColormap.from_list("grey", ["#e8ebf0", "#545d70"])  # Leaves colours to outlines.
    accuracies = [row["accuracy"] for row in best.values()]
    low, span = min(accuracies), max(accuracies) - min(accuracies) or 1.0
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat
    for axes in panels[len(budgets) :]:
        axes.set_axis_off()
    for axes, budget in zip(panels, budgets, strict=False):
        kinds = {row["kind"]: row["grid"] for row in points if row["budget"] == budget}
        outlines = {kinds.get(kind): colour for kind, (colour, _) in _MAIN.items()}
        for row in (row for row in best.values() if row["budget"] == budget):
            x, y = sizes.index(_frame_size(row)), frames.index(row["frames"])
            shade, outline = (row["accuracy"] - low) / span, outlines.get(row["grid"])
            cell = Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, facecolor=grey(shade), linewidth=3)
            axes.add_patch(cell).set(edgecolor=outline or "none", zorder=3 if outline else 2)
            # Cells look the same on a dark page, and so does their text.
            colour, text = "#11151d" if shade < 0.55 else "#f7f8fa", f"{100 * row['accuracy']:.1f}"
            axes.text(x, y, text, ha="center", va="center", color=colour, zorder=4)
        axes.set(xlim=(-0.55, len(sizes) - 0.45), ylim=(-0.55, len(frames) - 0.45))
        axes.set_title(f"{budget} tokens")
        axes.set_xticks(range(len(sizes)), ["x".join(map(str, size)) for size in sizes])
        axes.set_yticks(range(len(frames)), map(str, frames))
        axes.tick_params(length=0, labelbottom=True)
        axes.spines[:].set_visible(False)
        axes.grid(False)
    figure.supxlabel("frame size (pixels)", fontsize=10, color=MUTED)
    figure.supylabel("frames", fontsize=10, color=MUTED)
    return figure


def _frame_size(trial: Row) -> tuple[int, ...]:
    """Height and width of a trial's frames; for square frames only their side."""
    return tuple(map(int, trial["grid"].split("x")[1:]))
