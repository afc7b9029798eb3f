"""Figures of an evaluation's report: accuracy against what it costs, gains of classes, confusions.

A point is one of ``points`` of the results that ``fluxvit evaluate`` writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fluxvit.evaluation.figures import (
    BASELINES,
    INK,
    MUTED,
    OPTIMISED,
    PAPER,
    PLAIN,
    RULE,
    WIDTH,
    Picture,
    Row,
    chance_line,
    percent_axis,
)
from fluxvit.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAIN = ("plain", "optimised")
_MARKERS = "s^vPXph<>"
_GRID_LABELS = 8  # With more budgets than this the names of the grids would lie on each other.
_NAME = 36  # Letters of a class name; longer ones end in dots.
_NUMBERED = 20  # A larger confusion matrix has no room for numbers.


@dataclass(frozen=True)
class Cost:
    """What an accuracy is drawn against.

    Args:
        name: Of the axis, in words for a file name too.
        axis: Title of the axis.
        of: The cost of a point; None if it was not measured.
    """

    name: str
    axis: str
    of: Callable[[Row], float | None]


COSTS = (
    Cost("tokens", "tokens that the encoder sees (log scale)", lambda point: point["keep"]),
    Cost("GMACs", "GMACs of a view (log scale)", lambda point: point["gmacs"]),
    Cost("milliseconds", "milliseconds a view, median (log scale)", lambda point: _median_ms(point)),
)


class Gain(NamedTuple):
    """Accuracy of a class with plain and with optimised sampling, 0 to 1."""

    name: str
    plain: float
    optimised: float


def kinds_of(points: Sequence[Row]) -> list[str]:
    """The kinds of points: plain, optimised, and the others as they come."""
    kinds = list(dict.fromkeys(point["kind"] for point in points))
    return sorted(kinds, key=lambda kind: {"plain": 0, "optimised": 1}.get(kind, 2))


def has_cost(points: Sequence[Row], cost: Cost) -> bool:
    """Whether any point tells the cost."""
    return any(_positive(cost.of(point)) for point in points)


def accuracy_against(points: Sequence[Row], cost: Cost, chance: float | None, width: float) -> Picture:
    """Accuracy of each kind of points with 95 % intervals: bands of plain and optimised, bars of others."""
    shown = [point for point in points if _positive(cost.of(point))]
    values = np.array([cost.of(point) for point in shown], dtype=float)
    lines: dict[str, list[tuple[float, Row]]] = {kind: [] for kind in kinds_of(shown)}
    for value, point in sorted(zip(values.tolist(), shown, strict=True), key=lambda pair: pair[1]["budget"]):
        lines[point["kind"]].append((value, point))
    # Of the axis, in powers of its unit; one point alone still has one.
    span = max(math.log(values.max() / values.min()), math.log(2))
    step = 0.012 * span  # Between the baselines: bars of the same cost would hide each other.
    height = 4.3 if width == WIDTH else 3.5

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        # Before anything is drawn: one cost alone has no extent of its own.
        margin = math.exp(0.07 * span)
        axes.set_xlim(values.min() / margin, values.max() * margin * math.exp(step * len(lines)))
        shift = 0.0
        for number, (kind, line) in enumerate(lines.items()):
            colour, marker = _look(kind, number)
            if kind not in _MAIN:
                shift += step
            x = np.array([value for value, _ in line]) * math.exp(shift)
            top1, low, high = (
                100 * np.array([point[key] for _, point in line]) for key in ("top1", "low", "high")
            )
            dashes: Any = "-"
            if kind in _MAIN:
                axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
            else:
                dashes = (0, (4, 1.5))
            axes.vlines(x, low, high, color=colour, linewidth=1.1)
            axes.plot(x, top1, marker=marker, color=colour, linestyle=dashes, markersize=5.5)
        ticks = _ticks(values, cost)
        axes.set_xticks(ticks, [f"{tick:.3g}" if tick < 1000 else f"{tick:.0f}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(cost.axis)
        axes.set_ylabel("top-1 accuracy (%)")
        axes.set_ylim(*_limits(shown, chance))
        percent_axis(axes)
        if chance is not None and 100 * chance >= axes.get_ylim()[0]:
            chance_line(axes, chance)
            axes.annotate(
                f"chance {100 * chance:.3g} %", (1, 100 * chance), (-2, 3), textcoords="offset points",
                xycoords=("axes fraction", "data"), ha="right", color=MUTED,
            )  # fmt: skip
        if cost.name == "tokens":
            _name_grids(axes, lines)
        ends = [(kind, line[-1][0], 100 * line[-1][1]["top1"]) for kind, line in lines.items()]
        _name_lines(axes, ends, list(lines), 62 * height)

    return Picture(draw, height, f"Top-1 accuracy against {cost.name}, by kind of sampling", width)


def gains_figure(gains: Sequence[Gain], cut: int | None, budget: int) -> Picture:
    """Plain and optimised accuracy of classes as two dots joined by a line, with the gain beside them.

    Args:
        cut: How many of them come before a gap; None: no gap.
    """
    heights = [i + (0.8 if cut is not None and i >= cut else 0) for i in range(len(gains))]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        plain = [100 * gain.plain for gain in gains]
        optimised = [100 * gain.optimised for gain in gains]
        axes.hlines(heights, plain, optimised, color=RULE, linewidth=4)
        axes.plot(plain, heights, "o", color=PLAIN, label="plain")
        axes.plot(optimised, heights, "D", color=OPTIMISED, markersize=5.5, label="optimised")
        for height, a, b in zip(heights, plain, optimised, strict=True):
            axes.annotate(
                f"{b - a:+.0f}".replace("-", "−"), (1, height), (32, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", va="center", color=OPTIMISED if b > a else INK,
            )  # fmt: skip
        axes.annotate(
            "gain", (1, 1), (32, 4), xycoords="axes fraction", textcoords="offset points", ha="right",
            color=MUTED,
        )  # fmt: skip
        axes.set_yticks(heights, [short_name(gain.name) for gain in gains])
        axes.set_xlim(-3, 103)
        axes.set_ylim(heights[-1] + 0.6, -0.6)  # The first class on top.
        axes.grid(False, axis="y")
        axes.set_xlabel(f"accuracy at {budget} tokens (%)")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)

    return Picture(draw, 1.0 + 0.24 * (heights[-1] + 1), "Accuracy of classes, plain and optimised")


def confusion_figure(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> Picture:
    """Rows are true classes, columns predicted ones, shaded by the share of the row: right answers blue,
    wrong ones orange."""
    count = len(classes)
    names = [short_name(name) for name in classes]
    cell = min(0.36, 6.4 / count)
    size = 9.5 if cell > 0.2 else 60 * cell
    side = max(cell * count, 1.2)
    width = min(WIDTH, side + 1.2 + 0.085 * max(map(len, names)) * size / 9.5)

    def draw(figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.subplots()
        for i, row in enumerate(confusion):
            for j, clips in enumerate(row):
                if clips == 0:
                    continue
                # Pale enough for ink to be read on it, on light and on dark paper.
                shade = 0.08 + 0.5 * clips / sum(row)
                colour = PLAIN if i == j else OPTIMISED
                axes.add_patch(
                    Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=colour, alpha=shade, linewidth=0)
                )
                if count <= _NUMBERED:
                    axes.text(j, i, str(clips), ha="center", va="center", color=INK, fontsize=8.5)
        edges = np.arange(count + 1) - 0.5
        axes.hlines(edges, -0.5, count - 0.5, color=RULE, linewidth=0.5)
        axes.vlines(edges, -0.5, count - 0.5, color=RULE, linewidth=0.5)
        numbers = [str(number) for number in range(1, count + 1)]
        axes.set_yticks(
            range(count), [f"{a}  {b}" for a, b in zip(names, numbers, strict=True)], fontsize=size
        )
        axes.set_xticks(range(count), numbers, fontsize=size, rotation=90 if count > 2 * _NUMBERED else 0)
        axes.tick_params(length=0)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.set_xlim(-0.5, count - 0.5)
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.spines[:].set_visible(False)
        axes.grid(False)

    return Picture(draw, side + 0.7, "Confusion matrix", width)


def short_name(name: str) -> str:
    """A class name on one line, cut where it is long."""
    name = printable(name)
    return name if len(name) <= _NAME else f"{name[: _NAME - 1].rstrip()}…"


def _median_ms(point: Row) -> float | None:
    return point["latency_ms"]["p50"] if point["latency_ms"] else None


def _positive(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _look(kind: str, number: int) -> tuple[str, str]:
    """Colour and marker of the line of a kind, ``number`` of all lines."""
    if kind in _MAIN:
        return (PLAIN, "o") if kind == "plain" else (OPTIMISED, "D")
    return BASELINES[number % len(BASELINES)], _MARKERS[number % len(_MARKERS)]


def _limits(points: Sequence[Row], chance: float | None) -> tuple[float, float]:
    """Of the accuracy axis: from 0, unless all points lie far above it."""
    low = 100 * min(point["low"] for point in points)
    high = 100 * max(point["high"] for point in points)
    bottom = 0.0 if low < 40 else 10 * math.floor((low - 8) / 10)
    return bottom, max(bottom + 10, min(102.0, high + 0.12 * (high - bottom)), 110 * (chance or 0))


def _ticks(values: np.ndarray, cost: Cost) -> list[float]:
    """Places of labels: of tokens the counts themselves; else 1, 2 and 5 of each power of ten."""
    if cost.name == "tokens":
        counts = sorted(set(values.tolist()))
        ticks = counts[-1:]
        for count in reversed(counts[:-1]):  # What lies close to a larger count goes without.
            if ticks[-1] / count > (counts[-1] / counts[0]) ** 0.06:
                ticks.append(count)
        return ticks
    powers = range(math.floor(math.log10(values.min())) - 1, math.ceil(math.log10(values.max())) + 1)
    steps = [step * 10.0**power for power in powers for step in (1, 2, 3, 5, 7)]
    ticks = [step for step in steps if 0.95 * values.min() <= step <= 1.05 * values.max()]
    return ticks if len(ticks) >= 2 else sorted({values.min(), values.max()})


def _name_grids(axes: Axes, lines: dict[str, list[tuple[float, Row]]]) -> None:
    """The grids of plain and optimised points, on the side away from the other line."""
    sides = {kind: {point["budget"]: (x, point) for x, point in lines.get(kind, [])} for kind in _MAIN}
    if max(map(len, sides.values())) > _GRID_LABELS:
        return
    paper = {"facecolor": PAPER, "alpha": 0.75, "linewidth": 0, "pad": 0.5}  # To be read across bars.
    for kind, other in (_MAIN, _MAIN[::-1]):
        for budget, (x, point) in sides[kind].items():
            rival = sides[other].get(budget)
            above = kind == "optimised"  # Of equals, too.
            if rival is not None and point["top1"] != rival[1]["top1"]:
                above = point["top1"] > rival[1]["top1"]
            axes.annotate(
                str(point["grid"]), (x, 100 * point["high" if above else "low"]), (0, 4 if above else -4),
                textcoords="offset points", ha="center", va="bottom" if above else "top",
                color=_look(kind, 0)[0], clip_on=False, bbox=paper,
            )  # fmt: skip


def _name_lines(axes: Axes, ends: list[tuple[str, float, float]], kinds: list[str], height: float) -> None:
    """Write the name of each line at the right of the axes, ``height`` points high, clear of each other."""
    bottom, top = axes.get_ylim()
    gap = 13 * (top - bottom) / height
    leader = {"arrowstyle": "-", "linewidth": 0.6, "alpha": 0.5, "shrinkA": 1, "shrinkB": 5}
    places = spread([end for _, _, end in ends], gap, bottom, top)
    for (kind, x, end), place in zip(ends, places, strict=True):
        colour, _ = _look(kind, kinds.index(kind))
        axes.annotate(
            kind, (x, end), (1.03, place), textcoords=axes.get_yaxis_transform(), ha="left", va="center",
            color=colour, annotation_clip=False, arrowprops=leader | {"color": colour},
        )  # fmt: skip


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move places apart to at least ``gap``, as little as that takes from the lowest up; within limits as
    far as they allow."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for before, i in zip([None, *order], order, strict=False):
        least = low + gap / 2 if before is None else moved[before] + gap
        moved[i] = max(places[i], least)
    most = high
    for i in reversed(order):
        moved[i] = min(moved[i], most)
        most = moved[i] - gap
    return moved
