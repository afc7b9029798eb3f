"""The page of a report: what it shows is prepared here; how it looks is written in ``templates/``."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxvit.evaluation.report import figures
from fluxvit.evaluation.report.figures import Row
from fluxvit.evaluation.report.filmstrips import Filmstrip, encode
from fluxvit.utils.files import atomic_path
from fluxvit.utils.terminal import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE, TABLE = "report.html", "points.csv"
_FIGURES = (*(f"accuracy_{cost}" for cost in figures.COSTS), "search", "class_gains", "confusion")
_ENDS = 15  # Classes with the largest gains, and with the smallest, that are shown.
_MATRIX = 50  # With more classes than this, the commonest confusions are listed instead of a matrix.
_CONFUSIONS = 20  # Confusions that are listed.
_OPTIONAL: dict[str, Any] = {
    "checkpoint": "", "conditions": {}, "protocol": {}, "unreadable": (), "trials": (), "kinds": {},
}  # fmt: skip


@dataclass(frozen=True)
class Section:
    """A section that a caller adds to the ordinary ones. All text is plain and is escaped.

    Args:
        title: Its heading.
        text: A paragraph below the heading.
        figure: A Matplotlib figure; its label is the alternative text.
        caption: Text below the figure.
        columns: Headings of a table.
        rows: Cells of the table; the first of each row is its heading.
    """

    title: str
    text: str = ""
    figure: Figure | None = None
    caption: str = ""
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
    """Write ``report.html``, ``points.csv``, and each figure as a PNG and an SVG file.

    The page needs no other file and no network. Parts without data are left out, and their figures from an
    earlier report are removed.

    Args:
        folder: Where to write; it is made if it is missing.
        results: What ``fluxvit evaluate`` saves as ``results.json``. ``title``, ``headline``, ``chance`` and
            ``points`` are required. ``checkpoint``, ``trials``, ``conditions``, ``protocol`` and
            ``unreadable`` are optional, and so is ``classes`` if no point has ``per_class`` or ``confusion``.
            A point needs ``kind``, ``budget``, ``grid``, ``pool``, ``keep``, ``top1``, ``low``, ``high``,
            ``total`` and ``gmacs``. ``kinds`` maps kinds of points that are not selectors to a sentence.
        filmstrips: Clips to show.
        sections: More sections, shown after the ordinary figures.

    Returns:
        The path of the page.

    Raises:
        ValueError: Jinja2 or Matplotlib is missing.
    """
    require_report_packages()
    folder = Path(folder)
    drawn = _draw(results)
    for name in _FIGURES:
        for path in (folder / f"{name}.png", folder / f"{name}.svg"):
            if name in drawn:
                figures.save(drawn[name], path)
            else:
                path.unlink(missing_ok=True)
    _write_table(folder / TABLE, results["points"])
    with atomic_path(folder / PAGE) as partial:
        partial.write_text(_render(results, drawn, filmstrips, sections), encoding="utf-8")
    return folder / PAGE


def _draw(results: Mapping[str, Any]) -> dict[str, Figure]:
    """The figures that there is data for, by the names of their files."""
    points, drawn = results["points"], {}
    costs = [cost for cost in figures.COSTS if any(figures.cost_of(point, cost) for point in points)]
    for cost in costs:
        half = len(costs) == 3 and cost != "tokens"  # Two figures stand beside each other.
        width = figures.WIDTH / 2 if half else figures.WIDTH
        drawn[f"accuracy_{cost}"] = figures.accuracy_figure(points, cost, results["chance"], width)
    if results.get("trials"):
        drawn["search"] = figures.search_figure(results["trials"], points)
    _, gains = _class_gains(results)
    if gains:
        panels = {"": gains}
        if len(gains) > 2 * _ENDS:
            panels = {"Largest gains": gains[:_ENDS], "Smallest gains": gains[-_ENDS:]}
        drawn["class_gains"] = figures.gains_figure(panels, "Accuracy of classes, plain and optimised")
    confused = _confused(points)
    if confused and len(results["classes"]) <= _MATRIX:
        drawn["confusion"] = figures.confusion_figure(results["classes"], confused["confusion"])
    return drawn


def _class_gains(results: Mapping[str, Any]) -> tuple[int, list[tuple[str, float, float]]]:
    """The smallest budget with a plain and an optimised point, and the name, plain and optimised accuracy of
    each class that has clips, the largest gain first."""
    plain, optimised = (
        {
            point["budget"]: point["per_class"]
            for point in results["points"]
            if point["kind"] == kind and "per_class" in point
        }
        for kind in ("plain", "optimised")
    )
    budget = min(plain.keys() & optimised.keys(), default=0)
    rows = zip(results["classes"], plain[budget], optimised[budget], strict=True) if budget else ()
    return budget, sorted((row for row in rows if None not in row), key=lambda row: row[1] - row[2])


def _confused(points: Sequence[Row]) -> Row | None:
    """The point whose confusions are shown: an optimised one if possible."""
    confused = [point for point in points if point.get("confusion")]
    return min(confused, key=lambda point: point["kind"] != "optimised", default=None)


def _confusions(results: Mapping[str, Any]) -> list[tuple[str, str, int, str]]:
    """True class, predicted class, clips and share of the class's clips of the commonest confusions."""
    point, classes = _confused(results["points"]), results.get("classes", ())
    rows = [
        (classes[i], classes[j], clips, f"{100 * clips / sum(row):.0f} % of {sum(row)}")
        for i, row in enumerate(point["confusion"] if point else ())
        for j, clips in enumerate(row)
        if i != j and clips
    ]
    return sorted(rows, key=lambda row: -row[2])[:_CONFUSIONS]


def _render(
    results: Mapping[str, Any],
    drawn: Mapping[str, Figure],
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
    environment.globals["svg"] = lambda figure: Markup(figures.inline_svg(figure))
    points = results["points"]
    kinds = figures.kinds_of(points)
    # Settings are columns where they differ, and are named once where they do not.
    settings = {
        name: {str(point[name]) for point in points if point.get(name, point["kind"]) != point["kind"]}
        for name in ("selector", "head", "views")
    }
    scores = {"top5": "Top-5 %", "mean_class": "Class mean", "nll": "NLL", "ece": "ECE %"}
    latencies = [point["latency_ms"] for point in points if point.get("latency_ms")]
    gained, gains = _class_gains(results)
    return environment.get_template("report.html").render(
        results={**_OPTIONAL, **results},
        points=sorted(points, key=lambda point: kinds.index(point["kind"])),
        kinds=kinds,
        baselines=[kind for kind in kinds if kind not in ("plain", "optimised", *results.get("kinds", ()))],
        plain={point["budget"]: point["top1"] for point in points if point["kind"] == "plain"},
        shared={name: next(iter(values)) for name, values in settings.items() if len(values) == 1},
        differing=[name for name, values in settings.items() if len(values) > 1],
        scores={
            key: title for key, title in scores.items() if any(point.get(key) is not None for point in points)
        },
        timed=bool(latencies),
        devices=sorted({latency["device"] for latency in latencies}),
        gains=gains,
        better=sum(optimised > plain for _, plain, optimised in gains),
        worse=sum(optimised < plain for _, plain, optimised in gains),
        gained=gained,
        confused=_confused(points),
        confusions=_confusions(results),
        figures=drawn,
        css_variables=figures.CSS_VARIABLES,
        filmstrips=list(zip(filmstrips, encode(filmstrips), strict=True)),
        sections=sections,
        ends=_ENDS,
        table_file=TABLE,
    )


def _percent(fraction: float | None) -> str:
    return "" if fraction is None or not math.isfinite(fraction) else f"{100 * fraction:.1f}"


def _digits(value: float | None) -> str:
    """Three digits of a number."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _signed(fraction: float) -> str:
    return f"{100 * fraction:+.1f}".replace("-", "−")


def _write_table(path: Path, points: Sequence[Row]) -> None:
    """Write everything that is one value of each point."""
    rows = []
    for point in points:
        row = {key: value for key, value in point.items() if not isinstance(value, (list, tuple, Mapping))}
        latency = point.get("latency_ms") or dict.fromkeys(("p10", "p50", "p90", "device"))
        times = {f"latency_{name}_ms": latency[name] for name in ("p10", "p50", "p90")}
        rows.append({**row, **times, "device": latency["device"]})
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "latency_ms"]
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
