"""The look of all figures, and figures as SVG."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fluxvit.utils.terminal import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, RULE, PAPER = "#1f2430", "#687080", "#d8dce3", "#fdfdfe"
PLAIN, OPTIMISED = "#1f66a8", "#d2620c"  # Blue and orange differ for every kind of colour blindness.
BASELINES = ("#84660a", "#0c7489", "#8a3f9e", "#0f7a5a")
CSS_VARIABLES = {
    **{INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"},
    **{PLAIN: "--plain", OPTIMISED: "--optimised"},
    **{colour: f"--baseline-{number}" for number, colour in enumerate(BASELINES, start=1)},
}
"""The CSS variable that replaces each colour on a page, so that one drawing serves light and dark screens."""

WIDTH = 9.0  # Inches.


@contextmanager
def style(**settings: Any) -> Iterator[None]:
    """Draw in this look; also a decorator. The settings are Matplotlib's."""
    import matplotlib

    style: Any = {
        "axes.axisbelow": True,
        "axes.edgecolor": MUTED,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.labelcolor": MUTED,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": INK,
        "axes.titlesize": 10.5,
        "font.size": 9.5,
        "grid.color": RULE,
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "lines.linewidth": 1.9,
        "lines.markersize": 5.5,
        "svg.fonttype": "none",  # Text stays text, which can be searched.
        "text.color": INK,
        "text.parse_math": False,  # A name may contain "$".
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        **settings,
    }
    with matplotlib.rc_context(style):
        yield


def new_figure(label: str, height: float, width: float = WIDTH) -> Figure:
    """An empty figure of a size in inches; its label states its content."""
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    figure.set_label(label)
    return figure


def svg(figure: Figure, **options: Any) -> str:
    """A figure as an SVG document."""
    document = io.StringIO()
    # The salt keeps ids apart from those of other figures on a page, and equal from run to run.
    with style(**{"svg.hashsalt": figure.get_label()}):
        figure.savefig(document, format="svg", metadata={"Date": None}, **options)
    return printable(document.getvalue(), keep="\n\t")  # Matplotlib writes characters that XML forbids.


def inline_svg(figure: Figure) -> str:
    """A figure as an ``<svg>`` element in the page's colours."""
    width, height = figure.get_size_inches()
    # At 104 pixels an inch, 10-point text is 14 pixels high. Narrow screens scroll below 64 pixels an inch.
    opening = (
        f'<svg role="img" aria-label="{html.escape(str(figure.get_label()))}" '
        f'viewBox="0 0 {72 * width:g} {72 * height:g}" '
        f'style="max-width: {104 * width:.0f}px; min-width: {64 * width:.0f}px">'
    )
    _, _, body = svg(figure, transparent=True).partition("<svg")
    # Group ids such as "axes_1" would repeat from figure to figure.
    body = re.sub(r'<metadata>.*?</metadata>|(?<=<g) id="[^"]*"', "", body, flags=re.DOTALL)
    for colour, variable in CSS_VARIABLES.items():
        body = body.replace(colour, f"var({variable}, {colour})")
    return opening + body.partition(">")[2].strip()
