"""Figures of a report: each function returns one as a `Picture`, for a page or for a file of its own.

On a page colours are CSS variables, so that one picture serves light and dark, and text stays text, so that
it can be searched and read aloud.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fluxvit.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE, PAPER = "#1f2430", "#687080", "#d8dce3", "#fdfdfe"
PLAIN, OPTIMISED = "#1f66a8", "#d2620c"  # Blue and orange: told apart by every kind of colour blindness.
BASELINES = ("#84660a", "#0c7489", "#8a3f9e", "#0f7a5a")
CSS_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    PAPER: "--paper",
    PLAIN: "--plain",
    OPTIMISED: "--optimised",
    **{colour: f"--baseline-{number}" for number, colour in enumerate(BASELINES, start=1)},
}
"""The CSS variable that stands for each colour in the SVG; its light value is the colour itself."""

WIDTH = 9.0  # Inches of a full-width figure.
_PIXELS_PER_INCH = 104  # On a page with room for it: 10-point text is then 14.4 pixels high.
_LEAST_PIXELS_PER_INCH = 64  # On a narrow one, which then scrolls sideways: 10-point text is 9 pixels high.
_DOTS_PER_INCH = 200  # Of a PNG file.
_ACROSS = 3  # Panels beside each other.
_CURVE_POINTS = 300  # More points a line would only make the page larger.

# What XML 1.0 does not allow anywhere.
_NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")

Row = Mapping[str, Any]


def require_matplotlib() -> None:
    """Fail early, before hours of training whose report could not be written.

    Raises:
        ValueError: Matplotlib, or the Pillow it brings along, is missing.
    """
    try:
        import matplotlib  # noqa: F401
        import PIL  # noqa: F401
    except ImportError as error:
        raise ValueError("a report needs Matplotlib: pip install 'fluxvit[report]'") from error


@dataclass(frozen=True)
class Picture:
    """A figure that is yet to be drawn.

    Args:
        draw: Draws on an empty figure.
        height: Inches.
        label: Alternative text; no two pictures of a page have the same.
        width: Inches.
    """

    draw: Callable[[Figure], None]
    height: float
    label: str
    width: float = WIDTH

    def inline(self) -> str:
        """An ``<svg>`` element to put into HTML."""
        buffer = io.StringIO()
        self._save(buffer, "svg", fonts="none", transparent=True)
        return _inline(buffer.getvalue(), self.width, self.height, self.label)

    def write(self, path: Path) -> None:
        """A file of its own on white, atomically; its suffix says which, ``.svg`` or ``.png``.

        Letters of an SVG are outlines: it looks the same wherever it is put.
        """
        with atomic_path(path) as partial:
            self._save(partial, path.suffix[1:], fonts="path", facecolor="white", dpi=_DOTS_PER_INCH)

    def _save(self, file: Path | io.StringIO, kind: str, *, fonts: str, **options: Any) -> None:
        import matplotlib
        from matplotlib.figure import Figure

        # The salt keeps the ids of figures on one page apart, and the same from run to run. Any: the names
        # that Matplotlib's types allow differ between its versions.
        style: Any = {**_STYLE, "svg.hashsalt": self.label, "svg.fonttype": fonts}
        if kind == "svg":
            options["metadata"] = {"Date": None}
        with matplotlib.rc_context(style):
            figure = Figure(figsize=(self.width, self.height), layout="constrained")
            self.draw(figure)
            if kind != "svg":
                figure.savefig(file, format=kind, **options)
                return
            document = io.StringIO()
            figure.savefig(document, format=kind, **options)
        # Matplotlib escapes what has a meaning in XML, but not what is no part of it at all.
        whole = _NO_XML.sub("\ufffd", document.getvalue())
        if isinstance(file, Path):
            file.write_text(whole, encoding="utf-8")
        else:
            file.write(whole)


def accuracy_figure(curve: Sequence[Row], controls: Sequence[Row], chance: float | None) -> Picture:
    """Accuracy against token budget, plain and token-optimised; the controls stand in a panel beside it."""

    def draw(figure: Figure) -> None:
        widths = [8, 0.6 + len(controls)] if controls else [1]
        panels = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0]
        _draw_curves(panels[0], curve)
        if controls:
            _draw_controls(panels[1], controls)
        for axes in panels:
            chance_line(axes, chance)
            percent_axis(axes)
        if chance is not None:
            panels[0].annotate(
                f"chance {100 * chance:.3g} %", (0, 100 * chance), (6, 3), xycoords=("axes fraction", "data"),
                textcoords="offset points", color=MUTED,
            )  # fmt: skip
        highest = max(row[kind]["high"] for row in curve for kind in ("plain", "optimised"))
        panels[0].set_ylim(0, min(100.0, 100 * highest + 12))
        panels[0].set_ylabel("accuracy (%)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)

    return Picture(draw, height=4.3, label="Accuracy against token budget, plain and token-optimised")


def trials_figure(trials: Sequence[Row], curve: Sequence[Row]) -> Picture:
    """Accuracy of every grid that was tried: a heat map over frames and size for each budget.

    The grids that ``curve`` reports, a row for each budget, are outlined: orange the ``optimised`` one, blue
    the ``plain`` one.
    """
    budgets = sorted({row["budget"] for row in trials}, reverse=True)
    frames = sorted({row["frames"] for row in trials})
    sizes = sorted({_size(row) for row in trials}, key=lambda size: (size[0] * size[-1], size))
    most = max(1, min(_ACROSS, int(WIDTH / (0.5 + 0.55 * len(sizes)))))  # So that cells hold their numbers.
    down, across = _layout(len(budgets), most)
    reported = {row["budget"]: row for row in curve}
    lowest = min(row["accuracy"] for row in trials)
    span = max(row["accuracy"] for row in trials) - lowest or 1.0

    def draw(figure: Figure) -> None:
        for axes, budget in zip(_panels(figure, len(budgets), most), budgets, strict=True):
            for row in (row for row in trials if row["budget"] == budget):
                place = (sizes.index(_size(row)), frames.index(row["frames"]))
                shade = (row["accuracy"] - lowest) / span
                _draw_cell(axes, place, row["accuracy"], shade, _outline(row, reported.get(budget)))
            axes.set_title(f"{budget} tokens")
            axes.set_xlim(-0.55, len(sizes) - 0.45)
            axes.set_ylim(-0.55, len(frames) - 0.45)
            axes.set_xticks(range(len(sizes)), ["x".join(map(str, size)) for size in sizes])
            axes.set_yticks(range(len(frames)), [str(count) for count in frames])
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.grid(False)
        figure.supxlabel("frame size (pixels)", fontsize=10, color=MUTED)
        figure.supylabel("frames", fontsize=10, color=MUTED)

    width = min(WIDTH, 1.2 + across * max(1.9, 0.68 * len(sizes)))
    height = 0.6 + down * (0.5 + 0.4 * len(frames))
    return Picture(draw, width=width, height=height, label="Validation accuracy of the sampling grids tried")


def factors_figure(factors: Row) -> Picture:
    """Accuracy of each binary factor at each budget: plain and optimised as two dots joined by a line."""
    names, rows = factors["names"], factors["rows"]
    down, across = _layout(len(rows))
    lowest = min(min(*row["plain"], *row["optimised"], 0.5) for row in rows)

    def draw(figure: Figure) -> None:
        panels = _panels(figure, len(rows))
        for axes, row in zip(panels, rows, strict=True):
            heights = np.arange(len(names))
            plain, optimised = 100 * np.asarray(row["plain"]), 100 * np.asarray(row["optimised"])
            axes.hlines(heights, plain, optimised, color=RULE, linewidth=4)
            axes.plot(plain, heights, "o", color=PLAIN, label="plain")
            axes.plot(optimised, heights, "D", color=OPTIMISED, markersize=5.5, label="token-optimised")
            axes.axvline(50, color=MUTED, linestyle="--", linewidth=1)
            axes.set_yticks(heights, names)
            axes.set_xlim(100 * lowest - 4, 102)
            axes.set_title(f"{row['budget']} tokens")
            axes.grid(False, axis="y")
        panels[0].set_ylim(len(names) - 0.5, -0.5)  # The first factor on top.
        figure.supxlabel("accuracy (%); dashed: chance", fontsize=10, color=MUTED)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)

    width = min(WIDTH, 1.2 + 2.6 * across)
    height = 1.0 + down * (0.5 + 0.3 * len(names))
    return Picture(draw, width=width, height=height, label="Accuracy of each binary factor of the label")


def training_figure(training: Sequence[Row], chance: float | None) -> Picture:
    """Loss, and accuracy at each budget, against the training step; smoothed."""
    accuracies = sorted(
        {key for row in training for key in row if key.startswith("accuracy@")},
        key=lambda key: int(key.partition("@")[2]),
        reverse=True,
    )

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 2 if accuracies else 1, squeeze=False)[0]
        steps, values = _series(training, "loss")
        panels[0].plot(*_thin(steps, values), color=RULE, linewidth=1)
        panels[0].plot(*_thin(steps, _smooth(values)), color=INK)
        panels[0].set_title("loss")
        for axes in panels:
            axes.set_xlabel("training step")
            axes.margins(x=0.01)
        if accuracies:
            chance_line(panels[1], chance)
            for key, colour in zip(accuracies, _sequence(len(accuracies)), strict=True):
                steps, values = _series(training, key)
                label = f"{key.partition('@')[2]} tokens"
                panels[1].plot(*_thin(steps, 100 * _smooth(values)), color=colour, label=label)
            panels[1].set_title("accuracy while training (%)")
            panels[1].set_ylim(bottom=0)
            panels[1].legend(loc="best")

    return Picture(draw, height=2.9, label="Training loss and accuracy against training step")


def _size(trial: Row) -> tuple[int, ...]:
    """Height and width of a trial's frames; of square ones their side alone."""
    return tuple(map(int, str(trial["grid"]).split("x")[1:]))


def _layout(count: int, most: int = _ACROSS) -> tuple[int, int]:
    """Rows and columns of ``count`` panels, at most so many in a row, in rows of about equal length."""
    down = math.ceil(count / most)
    return down, math.ceil(count / down)


def _panels(figure: Figure, count: int, most: int = _ACROSS) -> list[Axes]:
    """``count`` panels with the same axes."""
    panels = (
        figure.subplots(*_layout(count, most), sharex=True, sharey=True, squeeze=False).flatten().tolist()
    )
    for axes in panels[count:]:
        axes.remove()
    for axes in panels[:count]:
        axes.tick_params(labelbottom=True)  # Sharing leaves it to the last row, which may be shorter.
    return panels[:count]


def _draw_curves(axes: Axes, curve: Sequence[Row]) -> None:
    """Two lines with bands, each point labelled with its grid on the side away from the other line."""
    budgets = [row["budget"] for row in curve]
    labels = {
        "plain": "plain: a grid with as many tokens as the budget",
        "optimised": "token-optimised: a denser grid, cut to the budget",
    }
    for kind, colour, marker in (("plain", PLAIN, "o"), ("optimised", OPTIMISED, "D")):
        points = [row[kind] for row in curve]
        accuracy, low, high = (
            100 * np.array([point[key] for point in points]) for key in ("accuracy", "low", "high")
        )
        axes.fill_between(budgets, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.vlines(budgets, low, high, color=colour, linewidth=1.2)  # A single budget has no band.
        axes.plot(budgets, accuracy, marker=marker, color=colour, label=labels[kind])
    for row in curve:
        optimised_above = row["optimised"]["accuracy"] >= row["plain"]["accuracy"]
        _label_grid(axes, row["budget"], row["plain"], PLAIN, above=not optimised_above)
        _label_grid(axes, row["budget"], row["optimised"], OPTIMISED, above=optimised_above)
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.set_xticks([], minor=True)
    axes.set_xlim(min(budgets) / 2**0.3, max(budgets) * 2**0.3)
    axes.set_xlabel("token budget: tokens the encoder sees (log scale)")


def _label_grid(axes: Axes, budget: int, point: Row, colour: str, *, above: bool) -> None:
    axes.annotate(
        str(point["grid"]),
        (budget, 100 * point["high" if above else "low"]),
        (0, 4 if above else -4),
        textcoords="offset points",
        ha="center",
        va="bottom" if above else "top",
        color=colour,
    )


def _draw_controls(axes: Axes, controls: Sequence[Row]) -> None:
    places = range(len(controls))
    low, high = ([100 * row[key] for row in controls] for key in ("low", "high"))
    axes.vlines(places, low, high, color=INK, linewidth=1.2)
    axes.plot(places, [100 * row["accuracy"] for row in controls], "s", color=INK, markersize=5)
    axes.set_xticks(places, [str(row["name"]).replace(" ", "\n") for row in controls])
    axes.set_xlim(-0.6, len(controls) - 0.4)
    axes.set_title("controls", fontsize=10, color=MUTED)


def _outline(trial: Row, reported: Row | None) -> str | None:
    """The colour that marks a trial whose grid the curve reports."""
    for kind, colour in (("optimised", OPTIMISED), ("plain", PLAIN)):
        if reported and kind in reported and trial["grid"] == reported[kind]["grid"]:
            return colour
    return None


def _draw_cell(
    axes: Axes, place: tuple[int, int], accuracy: float, shade: float, outline: str | None
) -> None:
    """A square with a number in it; ``shade`` runs from 0, the lowest accuracy of the figure, to 1."""
    from matplotlib.patches import Rectangle

    light, dark = np.array([232, 235, 240]), np.array([84, 93, 112])  # Grey: no rival to the outlines.
    red, green, blue = ((light + shade * (dark - light)) / 255).tolist()
    x, y = place
    inset = 0.46
    axes.add_patch(
        Rectangle(
            (x - inset, y - inset),
            2 * inset,
            2 * inset,
            facecolor=(red, green, blue),
            edgecolor=outline or "none",
            linewidth=3,
            zorder=3 if outline else 2,
        )
    )
    text_colour = "#11151d" if shade < 0.55 else "#f7f8fa"  # Fixed: the cells are the same on a dark page.
    axes.text(x, y, f"{100 * accuracy:.1f}", ha="center", va="center", color=text_colour, zorder=4)


def chance_line(axes: Axes, chance: float | None) -> None:
    if chance is not None:
        axes.axhline(100 * chance, color=MUTED, linestyle="--", linewidth=1, zorder=1)


def percent_axis(axes: Axes) -> None:
    axes.grid(True, axis="y")
    axes.grid(False, axis="x")


def _series(rows: Sequence[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the rows that have a finite value."""
    pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None and math.isfinite(row[key])]
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over a fortieth of the series; at the ends over what there is."""
    window = np.ones(max(1, 2 * (len(values) // 80) + 1))
    if len(values) < len(window) or len(window) == 1:
        return values
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most so many points of a line, its ends among them."""
    chosen = np.linspace(0, len(steps) - 1, min(len(steps), _CURVE_POINTS)).round().astype(int)
    return steps[chosen], values[chosen]


def _sequence(count: int) -> list[str]:
    """Colours for ``count`` ordered lines, all readable on light and on dark paper."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0.32, 0.8, count))]


def _inline(document: str, width: float, height: float, label: str) -> str:
    """The ``<svg>`` of a Matplotlib document of so many inches, in the page's colours and scaled to it."""
    body = document[document.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*">', "<g>", body)  # "axes_1" would be there once for every figure.
    for colour, variable in CSS_VARIABLES.items():
        body = body.replace(colour, f"var({variable}, {colour})")
    opening = (
        f'<svg role="img" aria-label="{html.escape(label)}" viewBox="0 0 {72 * width:g} {72 * height:g}" '
        f'style="max-width: {width * _PIXELS_PER_INCH:.0f}px; '
        f'min-width: {width * _LEAST_PIXELS_PER_INCH:.0f}px">'
    )
    return opening + body[body.index(">") + 1 :].strip()


_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "font.size": 9.5,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "lines.linewidth": 1.9,
    "lines.markersize": 6,
    "text.color": INK,
    "text.parse_math": False,  # A "$" in a label is a "$".
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}
