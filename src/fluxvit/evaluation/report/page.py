"""The page of a report: its content is prepared here, and its layout is in ``templates/``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxvit.evaluation.report import figures
from fluxvit.evaluation.report.figures import Row
from fluxvit.evaluation.report.filmstrips import Filmstrip, encode
from fluxvit.utils.drawing import CSS_VARIABLES, inline_svg, svg
from fluxvit.utils.files import atomic_path
from fluxvit.utils.terminal import printable

PAGE = "report.html"
_FIGURES = (*(f"accuracy_{cost}" for cost in figures.COSTS), "search")
_ENDS = 15  # Classes with the largest gains, and with the smallest, that are shown.
_CONFUSIONS = 20  # Confusions that are listed.


@dataclass(frozen=True)
class Section:
    """A section that a caller adds to the ordinary ones. All text is plain and is escaped.

    Args:
        title: Its heading.
        text: A paragraph below the heading.
        columns: Headings of a table.
        rows: Cells of the table; the first of each row is its heading.
    """

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()


def require_report_packages() -> None:
    """Fail before hours of work whose report could not be written.

    Raises:
        ValueError: Jinja2, Matplotlib, or the Pillow that comes with Matplotlib is missing.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
        import PIL  # noqa: F401
    except ImportError as error:
        raise ValueError("a report needs Matplotlib and Jinja2: pip install 'fluxvit[report]'") from error


def write_report(
    folder: str | Path,
    results: Mapping[str, Any],
    filmstrips: Sequence[Filmstrip] = (),
    sections: Sequence[Section] = (),
) -> Path:
    """Write ``report.html``, and each of its figures as an SVG file.

    The page needs no other file and no network. Parts without data are left out, and their figures from an
    earlier report are removed.

    Args:
        folder: Where to write; it is made if it is missing.
        results: The content of the ``results.json`` of ``fluxvit evaluate``. A further key ``kinds`` maps
            kinds of points that are not selectors to a sentence.
        filmstrips: Clips to show.
        sections: More sections, shown after the ordinary figures.

    Returns:
        The path of the page.

    Raises:
        ValueError: Jinja2 or Matplotlib is missing.
    """
    require_report_packages()
    folder, points = Path(folder), results["points"]
    drawn = {
        f"accuracy_{cost}": figures.accuracy_figure(points, cost, results["chance"])
        for cost in figures.COSTS
        if any(figures.cost_of(point, cost) for point in points)
    }
    if results["trials"]:
        drawn["search"] = figures.search_figure(results["trials"], points)
    for name in _FIGURES:
        path = folder / f"{name}.svg"
        if name in drawn:
            with atomic_path(path) as partial:
                partial.write_text(svg(drawn[name], facecolor="white"), encoding="utf-8")
        else:
            path.unlink(missing_ok=True)
    with atomic_path(folder / PAGE) as partial:
        partial.write_text(_render(results, drawn, filmstrips, sections), encoding="utf-8")
    return folder / PAGE


def _class_gains(results: Mapping[str, Any]) -> tuple[int, list[tuple[str, float, float]]]:
    """The smallest budget with a plain and an optimised point, and the name, plain and optimised accuracy of
    each class that has clips, the largest gain first."""
    plain, optimised = (
        {point["budget"]: point["per_class"] for point in results["points"] if point["kind"] == kind}
        for kind in ("plain", "optimised")
    )
    budget = min(plain.keys() & optimised.keys(), default=0)
    rows = zip(results["classes"], plain[budget], optimised[budget], strict=True) if budget else ()
    return budget, sorted((row for row in rows if None not in row), key=lambda row: row[1] - row[2])


def _confusions(confused: Row, classes: Sequence[str]) -> list[tuple[str, str, int, str]]:
    """True class, predicted class, clips and share of the class's clips of the commonest confusions."""
    rows = [
        (classes[i], classes[j], clips, f"{100 * clips / sum(row):.0f} % of {sum(row)}")
        for i, row in enumerate(confused["confusion"])
        for j, clips in enumerate(row)
        if i != j and clips
    ]
    return sorted(rows, key=lambda row: -row[2])[:_CONFUSIONS]


def _render(
    results: Mapping[str, Any],
    drawn: Mapping[str, Any],
    filmstrips: Sequence[Filmstrip],
    sections: Sequence[Section],
) -> str:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fluxvit.evaluation.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(value, keep="\n"),
    )
    environment.filters |= {"percent": _percent, "digits": _digits, "signed": _signed}
    environment.globals["svg"] = lambda figure: Markup(inline_svg(figure))
    points = results["points"]
    kinds = figures.kinds_of(points)
    # Settings are columns where they differ, and are named once where they do not.
    settings = {
        name: {str(point[name]) for point in points if point[name] != point["kind"]}
        for name in ("selector", "head", "views")
    }
    latencies = [point["latency_ms"] for point in points if point["latency_ms"]]
    budget, gains = _class_gains(results)
    confused = min(
        (point for point in points if "confusion" in point), key=lambda point: point["kind"] != "optimised"
    )
    return environment.get_template("report.html").render(
        results={"kinds": {}, **results},
        points=sorted(points, key=lambda point: kinds.index(point["kind"])),
        kinds=kinds,
        baselines=[kind for kind in kinds if kind not in ("plain", "optimised", *results.get("kinds", ()))],
        plain={point["budget"]: point["top1"] for point in points if point["kind"] == "plain"},
        shared={name: next(iter(values)) for name, values in settings.items() if len(values) == 1},
        differing=[name for name, values in settings.items() if len(values) > 1],
        devices=sorted({latency["device"] for latency in latencies}),
        gains=gains,
        shown_gains=gains if len(gains) <= 2 * _ENDS else gains[:_ENDS] + gains[-_ENDS:],
        better=sum(optimised > plain for _, plain, optimised in gains),
        worse=sum(optimised < plain for _, plain, optimised in gains),
        gained=budget,
        confused=confused,
        confusions=_confusions(confused, results["classes"]),
        figures=drawn,
        css_variables=CSS_VARIABLES,
        filmstrips=list(zip(filmstrips, encode(filmstrips), strict=True)),
        sections=sections,
        ends=_ENDS,
    )


def _percent(fraction: float | None) -> str:
    return "" if fraction is None or not math.isfinite(fraction) else f"{100 * fraction:.1f}"


def _digits(value: float) -> str:
    """Three digits of a number."""
    if not math.isfinite(value):
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _signed(fraction: float) -> str:
    return f"{100 * fraction:+.1f}".replace("-", "−")
