"""One self-contained HTML page about an experiment: figures, tables, and what the model looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxvit.evaluation import figures, page
from fluxvit.evaluation.page import Strip


def write_report(path: str | Path, results: Mapping[str, Any], strips: Sequence[Strip]) -> None:
    """Write a page that needs no other file and no network.

    Every part whose key is absent from ``results``, or empty, is left out.

    Args:
        path: The HTML file.
        results: What ``fluxvit demo`` saves as ``results.json``: ``title``, ``headline``, ``notes``,
            ``chance``, ``conditions``, ``curve``, ``trials``, ``controls``, ``factors``, ``training``.
        strips: Clips to show.

    Raises:
        ValueError: Matplotlib is missing.
    """
    figures.require_matplotlib()
    title = results.get("title", "fluxvit report")
    parts = (
        page.header(title, results.get("headline"), results.get("notes", ())),
        _accuracy(results),
        page.kept_tokens(strips),
        _search(results),
        _controls(results),
        _factors(results),
        _training(results),
        page.facts("Conditions", results.get("conditions")),
        _reading(results),
    )
    page.write_page(path, title, parts)


def _accuracy(results: Mapping[str, Any]) -> str:
    curve = results.get("curve")
    if not curve:
        return ""
    figure = page.figure(
        figures.accuracy_figure(curve, results.get("controls", ()), results.get("chance")),
        "Accuracy on the test split against the number of tokens the encoder sees, with 95 % intervals. Each "
        "point is labelled with its sampling grid: 16x40 is 16 frames of 40x40 pixels. At one budget both "
        "lines pay for the same number of tokens; token optimisation draws them from a denser grid and keeps "
        "those that change most.",
    )
    columns = ("Budget", "Sampling", "Grid", "Tokens kept", "Accuracy (95 % interval)", "GMACs", "Gain")
    rows = [cells for point in curve for cells in _curve_rows(point)]
    return page.section("Accuracy at each token budget", figure, page.table(columns, rows, css="pairs"))


def _curve_rows(point: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    """The two table rows of a budget: plain, then optimised with its gain."""
    gain = 100 * (point["optimised"]["accuracy"] - point["plain"]["accuracy"])
    for name, kind in (("plain", "plain"), ("token-optimised", "optimised")):
        side = point[kind]
        yield (
            f"<b>{page.text(point['budget'])}</b>" if kind == "plain" else "",
            f'<span class="{kind}">{name}</span>',
            page.text(side["grid"]),
            f"{min(point['budget'], side['pool'])} of {page.text(side['pool'])}",
            page.accuracy_cell(side),
            page.three_digits(side["gmacs"]),
            f"<b>{page.signed(gain)}</b>&nbsp;points" if kind == "optimised" else "",
        )


def _search(results: Mapping[str, Any]) -> str:
    trials = results.get("trials")
    if not trials:
        return ""
    totals = sorted({row["total"] for row in trials if "total" in row})
    clips = f" ({' or '.join(map(str, totals))} clips)" if totals else ""
    outlined = (
        'Outlined: <span class="optimised">the grid chosen for the budget</span> and '
        '<span class="plain">the plain grid</span>. '
    )
    figure = page.figure(
        figures.trials_figure(trials, results.get("curve", ())),
        f"Accuracy in % on the validation split{clips}, which is not the data of the results above. "
        f"{outlined if results.get('curve') else ''}"
        "Cells are missing where a grid was not tried, as where it has fewer tokens than the budget.",
    )
    return page.section("How the grid of each budget was chosen", figure)


def _controls(results: Mapping[str, Any]) -> str:
    controls = results.get("controls")
    if not controls:
        return ""
    chance = results.get("chance")
    guessing = "" if chance is None else f" ({100 * chance:.3g}&nbsp;%)"
    intro = (
        "<p>The classes are meant to differ in nothing but the order of events. If so, a model that cannot "
        f"see order can do no better than guess{guessing}. The controls are such models: if one of them did "
        "better, the data would give the label away by other means, and the accuracies above would say less "
        "about motion.</p>"
    )
    rows = [
        (
            f"<b>{page.text(row['name'])}</b>",
            page.text(row.get("detail", "")),
            page.accuracy_cell(row),
            "" if chance is None else _verdict(row, chance),
        )
        for row in controls
    ]
    columns = ("Control", "What it is", "Accuracy (95 % interval)", "Verdict")
    return page.section("Controls: does the task need time?", intro, page.table(columns, rows, css="prose"))


def _verdict(control: Mapping[str, Any], chance: float) -> str:
    if control["low"] > chance:
        return "better than guessing"
    if control["high"] < chance:
        return "worse than guessing"
    return "no better than guessing"


def _factors(results: Mapping[str, Any]) -> str:
    factors = results.get("factors")
    if not factors or not factors.get("rows"):
        return ""
    figure = page.figure(
        figures.factors_figure(factors),
        "A class is a combination of binary factors. How often each of them is right shows which motion a "
        "small budget loses first. Guessing gets 50 %.",
    )
    return page.section("Accuracy of each factor of the motion", figure)


def _training(results: Mapping[str, Any]) -> str:
    training = results.get("training")
    if not training:
        return ""
    figure = page.figure(
        figures.training_figure(training, results.get("chance")),
        "One model is trained at all budgets at once. Moving averages; faint: the loss of single steps.",
    )
    return page.section("Training", figure)


def _reading(results: Mapping[str, Any]) -> str:
    curve = results.get("curve")
    budget = min((point["budget"] for point in curve), default=50) if curve else 50
    return page.section(
        "How to read this, and what next",
        "<ul>"
        "<li>The <b>budget</b> is the number of tokens the encoder sees. It sets what a clip costs; one "
        "set of weights serves every budget.</li>"
        "<li>Intervals are 95 % intervals for the clips that were tested. They do not cover what another "
        "training run would give.</li>"
        "<li>Where the intervals of two points overlap widely, their difference may be chance.</li>"
        "<li><b>GMACs</b> are billions of multiply-accumulates for one clip.</li>"
        "</ul>"
        "<p>Ask the model about a clip of your own, and see which patches it looked at:</p>"
        f"<pre>fluxvit predict CLIP --checkpoint DIR --budget {page.text(budget)} --explain out.mp4</pre>",
    )
