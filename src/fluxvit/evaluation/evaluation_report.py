"""The report of ``fluxvit evaluate``: a page, its figures as files, and its points as a table."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxvit.evaluation import evaluation_figures as drawings
from fluxvit.evaluation import figures, page
from fluxvit.evaluation.figures import Picture, Row
from fluxvit.evaluation.page import Strip
from fluxvit.files import atomic_path

PAGE, TABLE = "report.html", "points.csv"
_COLUMNS = (
    "kind", "budget", "grid", "frames", "height", "width", "pool", "keep", "head", "selector", "views",
    "top1", "low", "high", "correct", "total", "top5", "mean_class", "nll", "ece", "gmacs",
)  # fmt: skip
_LATENCY = ("p10", "p50", "p90")
_ENDS = 15  # Classes at each end of the gains, where there are more than both ends hold.
_MATRIX = 50  # More classes than this are told by their commonest confusions alone.
_PAIRS = 20  # Confusions that are listed.
_NAMED = 200  # Unreadable files that are named.


def write_evaluation_report(folder: str | Path, results: Mapping[str, Any], strips: Sequence[Strip]) -> Path:
    """Write ``report.html``, which needs no other file and no network, ``points.csv``, and each figure as a
    PNG and an SVG file.

    What there is no data for is left out; a figure that an earlier report left there is then removed.

    Args:
        folder: Where to write; made if it is missing.
        results: What ``fluxvit evaluate`` saves as ``results.json``: ``title``, ``checkpoint``, ``headline``,
            ``chance``, ``conditions``, ``protocol``, ``classes``, ``unreadable``, ``points``, ``trials``.
        strips: Clips to show.

    Returns:
        The page.

    Raises:
        ValueError: Matplotlib is missing.
    """
    figures.require_matplotlib()
    folder = Path(folder)
    points = results["points"]
    pictures = _pictures(results)
    for name in _FIGURES:
        for suffix in (".png", ".svg"):
            if name in pictures:
                pictures[name].write(folder / f"{name}{suffix}")
            else:
                (folder / f"{name}{suffix}").unlink(missing_ok=True)
    _write_table(folder / TABLE, points)
    parts = (
        page.header(results["title"], results["headline"], [f"Checkpoint: {results['checkpoint']}"]),
        _accuracy(points, pictures),
        _points(points),
        page.kept_tokens(strips),
        _search(results, pictures),
        _gains(results, pictures),
        _confusion(results, pictures),
        _unreadable(results["unreadable"]),
        page.facts("Conditions", results["conditions"]),
        page.facts("Protocol", {name: _plainly(value) for name, value in results["protocol"].items()}),
        _reading(points),
    )
    page.write_page(folder / PAGE, results["title"], parts)
    return folder / PAGE


# Figures -------------------------------------------------------------------------------------------------

_FIGURES = (
    *(f"accuracy_{cost.name.lower()}" for cost in drawings.COSTS),
    "search",
    "class_gains",
    "confusion",
)  # fmt: skip


def _pictures(results: Mapping[str, Any]) -> dict[str, Picture]:
    """The figures that there is data for, by the names of their files."""
    points, trials = results["points"], results["trials"]
    pictures = {}
    costs = [cost for cost in drawings.COSTS if drawings.has_cost(points, cost)]
    for cost in costs:
        # Tokens take the whole width; the others share the next row.
        whole = cost.name == "tokens" or len(costs) == 2
        width = figures.WIDTH if whole else figures.WIDTH / 2
        name = f"accuracy_{cost.name.lower()}"
        pictures[name] = drawings.accuracy_against(points, cost, results["chance"], width)
    if trials:
        pictures["search"] = figures.trials_figure(_best_of_grids(trials), _chosen(points))
    compared = _compared(points)
    if compared:
        rows, cut = _ends(_class_gains(results["classes"], *compared))
        if rows:
            pictures["class_gains"] = drawings.gains_figure(rows, cut, compared[0]["budget"])
    confused = _confused(points)
    if confused and len(results["classes"]) <= _MATRIX:
        pictures["confusion"] = drawings.confusion_figure(results["classes"], confused["confusion"])
    return pictures


def _best_of_grids(trials: Sequence[Row]) -> list[Row]:
    """Of the trials of a budget on a grid, the best of all heads and selectors."""
    best: dict[tuple[int, str], Row] = {}
    for trial in trials:
        key = trial["budget"], trial["grid"]
        if key not in best or trial["accuracy"] > best[key]["accuracy"]:
            best[key] = trial
    return list(best.values())


def _chosen(points: Sequence[Row]) -> list[dict[str, Any]]:
    """For each budget its plain and its optimised point, as far as there are."""
    rows: dict[int, dict[str, Any]] = {}
    for point in points:
        rows.setdefault(point["budget"], {"budget": point["budget"]}).setdefault(point["kind"], point)
    return list(rows.values())


def _compared(points: Sequence[Row]) -> tuple[Row, Row] | None:
    """The plain and the optimised point of the smallest budget that has both."""
    both = [row for row in _chosen(points) if "plain" in row and "optimised" in row]
    if not both:
        return None
    least = min(both, key=lambda row: row["budget"])
    return least["plain"], least["optimised"]


def _class_gains(classes: Sequence[str], plain: Row, optimised: Row) -> list[drawings.Gain]:
    """Of the classes that have clips, the largest gain first."""
    rows = [
        drawings.Gain(name, before, after)
        for name, before, after in zip(classes, plain["per_class"], optimised["per_class"], strict=True)
        if before is not None and after is not None
    ]
    return sorted(rows, key=lambda gain: gain.plain - gain.optimised)


def _ends(gains: list[drawings.Gain]) -> tuple[list[drawings.Gain], int | None]:
    """The classes to show, and how many of them come before those left out; None: none are."""
    if len(gains) <= 2 * _ENDS:
        return gains, None
    return gains[:_ENDS] + gains[-_ENDS:], _ENDS


def _confused(points: Sequence[Row]) -> Row | None:
    """The point whose confusions are shown: of those that tell them the optimised one, else the first."""
    telling = [point for point in points if point.get("confusion")]
    return next((point for point in telling if point["kind"] == "optimised"), telling[0] if telling else None)


# Sections ------------------------------------------------------------------------------------------------


def _accuracy(points: Sequence[Row], pictures: Mapping[str, Picture]) -> str:
    captions = {
        "accuracy_tokens": (
            "Top-1 accuracy against the number of tokens that the encoder sees. Bands and bars are 95 % "
            f"intervals. {_kinds(points)}"
        ),
        "accuracy_gmacs": (
            "The same against what a view costs in multiply-accumulates, everything counted: denser grids "
            "pay for embedding more patches."
        ),
        "accuracy_milliseconds": f"The same against the time that a view takes, {_devices(points)}.",
    }
    shown = {name: page.figure(pictures[name], text) for name, text in captions.items() if name in pictures}
    if not shown:
        return ""
    first, *others = shown.values()
    beside = f'<div class="beside">{"".join(others)}</div>' if len(others) > 1 else "".join(others)
    return page.section("Accuracy against cost", first, beside)


def _kinds(points: Sequence[Row]) -> str:
    """HTML that says what the lines are."""
    kinds = drawings.kinds_of(points)
    said = []
    if "plain" in kinds:
        said.append('<span class="plain">Plain</span>: as many whole frames as the budget pays for.')
    if "optimised" in kinds:
        said.append(
            '<span class="optimised">Optimised</span>: the plan that a search on other data chose, usually a '
            "denser grid of which the most telling tokens are kept."
        )
    others = [page.text(kind) for kind in kinds if kind not in ("plain", "optimised")]
    if others:
        same = "the optimised plan's grid" if "optimised" in kinds else "a given grid"
        said.append(f"{', '.join(others)}: {same}, with the tokens that this selector keeps.")
    if "plain" in kinds or "optimised" in kinds:
        said.append("Labels at points are sampling grids: 16x40 is 16 frames of 40x40 pixels.")
    return " ".join(said)


def _devices(points: Sequence[Row]) -> str:
    devices = {point["latency_ms"]["device"] for point in points if point["latency_ms"]}
    return f"measured on {page.text(' and '.join(sorted(devices)))}"


def _points(points: Sequence[Row]) -> str:
    """The table of all points. Columns that would say the same in every row are said once, above it."""
    if not points:
        return ""
    ordered = sorted(
        points, key=lambda point: (-point["budget"], drawings.kinds_of(points).index(point["kind"]))
    )
    # The fullest first.
    facts = sorted(map(_facts, points), key=len, reverse=True)
    same = {
        name: text for name, text in facts[0].items() if all(row.get(name, text) == text for row in facts)
    }
    own = [name for name in facts[0] if name not in same]
    top5 = any(point["top5"] is not None for point in points)
    timed = any(point["latency_ms"] for point in points)
    plain = {row["budget"]: row["plain"] for row in _chosen(points) if "plain" in row}
    columns = [
        "Budget", "Sampling", "Grid", "Kept of pool",
        *(name.capitalize() for name in own), "Top-1 % (95 %)", "Gain", "GMACs",
        *(["ms (10th to 90th)"] if timed else []), *(["Top-5 %"] if top5 else []),
        "Class mean", "NLL", "ECE %",
    ]  # fmt: skip
    rows: list[list[str]] = []
    budget = None
    for point in ordered:
        base = plain.get(point["budget"])
        gain = "" if base in (None, point) else page.signed(100 * (point["top1"] - base["top1"]))
        rows.append([
            f"<b>{point['budget']}</b>" if point["budget"] != budget else "",
            f'<span class="{point["kind"]}">{page.text(point["kind"])}</span>'
            if point["kind"] in ("plain", "optimised") else page.text(point["kind"]),
            page.text(point["grid"]),
            f"{point['keep']} of {point['pool']}",
            *(page.text(_facts(point).get(name, "")) for name in own),
            f"{page.percent(point['top1'])} <small>({page.percent(point['low'])} to "
            f"{page.percent(point['high'])})</small>",
            gain,
            page.three_digits(point["gmacs"]),
            *([_milliseconds(point["latency_ms"])] if timed else []),
            *([_number(point["top5"], 100, 1)] if top5 else []),
            _number(point["mean_class"], 100, 1),
            _number(point["nll"], 1, 3),
            _number(point["ece"], 100, 1),
        ])  # fmt: skip
        budget = point["budget"]
    clips = " or ".join(str(total) for total in sorted({point["total"] for point in points}))
    unless = " unless the row names another" if len({len(row) for row in facts}) > 1 else ""
    said = "".join(
        f"; {key} {page.text(text)}{unless if key == 'selector' else ''}" for key, text in same.items()
    )
    intro = f"<p>{clips} clips{said}. Gain is in points over plain sampling at the same budget.</p>"
    return page.section("All points", intro, page.table(columns, rows, css="points"))


def _facts(point: Row) -> dict[str, str]:
    """How a point was read; the selector only where the kind does not say it."""
    facts = {"head": "nearest" if point["head"] is None else str(point["head"]), "views": str(point["views"])}
    return facts if point["selector"] == point["kind"] else {"selector": str(point["selector"]), **facts}


def _milliseconds(latency: Mapping[str, float] | None) -> str:
    if not latency:
        return ""
    low, middle, high = (page.three_digits(latency[name]) for name in _LATENCY)
    return f"{middle} <small>({low} to {high})</small>"


def _search(results: Mapping[str, Any], pictures: Mapping[str, Picture]) -> str:
    if "search" not in pictures:
        return ""
    clips = sorted({trial["total"] for trial in results["trials"]})
    count = f"{clips[0]} to {clips[-1]}" if len(clips) > 1 else str(clips[0])
    caption = (
        f"Accuracy in % of the grids that the search tried, on {count} clips: frames against frame size, for "
        "each budget; of several heads or selectors the best. Cells are missing where a grid was not tried. "
        'Outlined: <span class="optimised">the grid of the optimised plan</span> and, if it was tried, '
        '<span class="plain">the plain grid</span>.'
    )
    if len(clips) > 1:
        caption += " The search gives up weak grids early: cells of few clips are less certain."
    return page.section("How the grids were chosen", page.figure(pictures["search"], caption))


def _gains(results: Mapping[str, Any], pictures: Mapping[str, Picture]) -> str:
    compared = _compared(results["points"])
    if "class_gains" not in pictures or not compared:
        return ""
    gains = _class_gains(results["classes"], *compared)
    better = sum(gain.optimised > gain.plain for gain in gains)
    worse = sum(gain.optimised < gain.plain for gain in gains)
    caption = (
        f"At {compared[0]['budget']} tokens, optimised sampling is better than plain sampling in {better} of "
        f"{len(gains)} classes and worse in {worse}; gains in points."
    )
    if len(gains) > 2 * _ENDS:
        caption += f" Shown: the {_ENDS} largest gains and the {_ENDS} smallest."
    counts = [sum(row) for row in (_confused(results["points"]) or {}).get("confusion", ()) if sum(row)]
    if counts:
        each = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(counts[0])
        caption += f" A class has {each} clips: read single classes with care."
    return page.section("What each class gains", page.figure(pictures["class_gains"], caption))


def _confusion(results: Mapping[str, Any], pictures: Mapping[str, Picture]) -> str:
    point = _confused(results["points"])
    if point is None:
        return ""
    classes, confusion = results["classes"], point["confusion"]
    what = f"{page.text(point['kind'])} sampling at {point['budget']} tokens ({page.text(point['grid'])})"
    if "confusion" in pictures:
        caption = (
            f"Clips of each true class by what was predicted, {what}; columns are "
            "numbered as the rows. The stronger the shade, the larger the "
            'share of the row: <span class="plain">right</span> or <span class="optimised">wrong</span>.'
        )
        return page.section("Confusions", page.figure(pictures["confusion"], caption))
    pairs = sorted(
        (
            (-clips, i, j)
            for i, row in enumerate(confusion)
            for j, clips in enumerate(row)
            if i != j and clips
        ),
    )[:_PAIRS]
    if not pairs:
        return ""
    rows = [
        (
            page.text(classes[i]),
            page.text(classes[j]),
            str(-clips),
            f"{100 * -clips / sum(confusion[i]):.0f} % of {sum(confusion[i])}",
        )
        for clips, i, j in pairs
    ]
    columns = ("True class", "Predicted", "Clips", "Of its clips")
    intro = f"<p>The commonest mistakes of {what}.</p>"
    return page.section("Confusions", intro, page.table(columns, rows, css="prose"))


def _unreadable(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return ""
    named = [f"<li><code>{page.text(row['path'])}</code>: {page.text(row['error'])}</li>" for row in rows]
    if len(rows) > _NAMED:
        named[_NAMED:] = [f"<li>and {len(rows) - _NAMED} more</li>"]
    count = "One file" if len(rows) == 1 else f"{len(rows)} files"
    intro = f"<p>{count} could not be read. Each counts as a wrong answer at every point.</p>"
    return page.section("Unreadable files", intro, f'<ul class="files">{"".join(named)}</ul>')


def _reading(points: Sequence[Row]) -> str:
    latency = (
        "<li><b>ms</b> is the median time of a forward pass of one view, without decoding, with its 10th and "
        "90th percentile. It holds for that device only.</li>"
        if any(point["latency_ms"] for point in points)
        else ""
    )
    return page.section(
        "How to read this",
        "<ul>"
        "<li>The <b>budget</b> is the number of tokens that may enter the encoder, <b>kept of pool</b> how "
        "many of the sampled ones do. One set of weights serves every budget.</li>"
        "<li><b>Intervals</b> are Wilson's 95 % intervals for the clips that were tested. They do not cover "
        "what another training run would give. All points share their clips, so a difference between two of "
        "them can be surer than overlapping intervals suggest.</li>"
        "<li><b>Class mean</b> weighs every class alike. <b>NLL</b> is the mean negative log-likelihood of "
        "the true class, <b>ECE</b> the expected calibration error: how far confidence lies from accuracy. "
        "Less is better.</li>"
        "<li><b>GMACs</b> are billions of multiply-accumulates of one view: embedding of the whole pool, "
        "selection, encoder and head.</li>"
        f"{latency}"
        f"</ul><p>Beside this page lie {TABLE}, with all points, and the figures as PNG and SVG files.</p>",
    )


def _plainly(value: object) -> str:
    """A value of the protocol for people."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plainly(item)}" for name, item in value.items())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(_plainly, value))
    return str(value)


def _number(value: float | None, scale: float, digits: int) -> str:
    if value is None or not math.isfinite(value):
        return ""
    return f"{scale * value:.{digits}f}"


def _write_table(path: Path, points: Sequence[Row]) -> None:
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out)
        table.writerow([*_COLUMNS, *(f"latency_{name}_ms" for name in _LATENCY), "device"])
        for point in points:
            latency = point["latency_ms"] or {}
            table.writerow(
                [*(point[name] for name in _COLUMNS), *(latency.get(name) for name in (*_LATENCY, "device"))]
            )
