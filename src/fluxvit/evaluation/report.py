"""One self-contained HTML page about an experiment: figures, tables, and what the model looked at."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fluxvit.evaluation import figures
from fluxvit.files import atomic_path

_FRAMES_A_ROW = 12
_IMAGE_BYTES = 2_000_000  # What all film strips together may weigh, to keep the page easy to mail.
_ENCODINGS = ((160, 90), (112, 88), (80, 82), (56, 70), (40, 55))
"""Longest side in pixels and JPEG quality of a frame, from what looks best to what weighs least."""


@dataclass(frozen=True)
class Strip:
    """A clip as film strips, and what the model said about it.

    Attributes:
        title: Name of the clip.
        truth: Its label.
        answers: (budget, predicted label, its probability, whether it is right), one for each budget.
        rows: (row title, frames uint8 ``[T, H, W, 3]``); rows cover the same time, so their frames line up.
    """

    title: str
    truth: str
    answers: Sequence[tuple[int, str, float, bool]]
    rows: Sequence[tuple[str, np.ndarray]]

    def __post_init__(self) -> None:
        for title, frames in self.rows:
            if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
                raise ValueError(
                    f"row {title!r} of {self.title!r} is {frames.dtype} {list(frames.shape)}; "
                    "expected uint8 [T, H, W, 3]"
                )


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
    parts = (
        _header(results),
        _accuracy(results),
        _kept_tokens(strips),
        _search(results),
        _controls(results),
        _factors(results),
        _training(results),
        _conditions(results),
        _reading(results),
    )
    page = _PAGE.format(
        title=_text(results.get("title", "fluxvit report")), style=_STYLE, body="\n".join(filter(None, parts))
    )
    with atomic_path(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _header(results: Mapping[str, Any]) -> str:
    headline = results.get("headline")
    paragraphs = [f'<p class="headline">{_text(headline)}</p>'] if headline else []
    paragraphs += [f"<p>{_text(note)}</p>" for note in results.get("notes", ())]
    title = _text(results.get("title", "fluxvit report"))
    return f"<header><h1>{title}</h1>{''.join(paragraphs)}</header>"


def _accuracy(results: Mapping[str, Any]) -> str:
    curve = results.get("curve")
    if not curve:
        return ""
    figure = _figure(
        figures.accuracy_figure(curve, results.get("controls", ()), results.get("chance")),
        "Accuracy on the test split against the number of tokens the encoder sees, with 95 % intervals. Each "
        "point is labelled with its sampling grid: 16x40 is 16 frames of 40x40 pixels. At one budget both "
        "lines pay for the same number of tokens; token optimisation draws them from a denser grid and keeps "
        "those that change most.",
    )
    columns = ("Budget", "Sampling", "Grid", "Tokens kept", "Accuracy (95 % interval)", "GMACs", "Gain")
    rows = [cells for point in curve for cells in _curve_rows(point)]
    return _section("Accuracy at each token budget", figure, _table(columns, rows, css="pairs"))


def _curve_rows(point: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    """The two table rows of a budget: plain, then optimised with its gain."""
    gain = 100 * (point["optimised"]["accuracy"] - point["plain"]["accuracy"])
    for name, kind in (("plain", "plain"), ("token-optimised", "optimised")):
        side = point[kind]
        yield (
            f"<b>{_text(point['budget'])}</b>" if kind == "plain" else "",
            f'<span class="{kind}">{name}</span>',
            _text(side["grid"]),
            f"{min(point['budget'], side['pool'])} of {_text(side['pool'])}",
            _accuracy_cell(side),
            _three_digits(side["gmacs"]),
            f"<b>{_signed(gain)}</b>&nbsp;points" if kind == "optimised" else "",
        )


def _kept_tokens(strips: Sequence[Strip]) -> str:
    if not strips:
        return ""
    encoded = iter(_encode_within([frames for strip in strips for _, frames in strip.rows], _IMAGE_BYTES))
    films = [_film(strip, [next(encoded) for _ in strip.rows]) for strip in strips]
    intro = (
        "<p>Time runs from left to right. The first row of a clip is what was sampled; in the rows below, "
        "patches whose tokens were dropped are dimmed.</p>"
    )
    return _section("What the selector keeps", intro, *films)


def _film(strip: Strip, images: Sequence[Sequence[str]]) -> str:
    """The strips of a clip; ``images`` are the frames of each row as data URIs."""
    columns = max(map(len, images), default=1)
    rows = []
    for (title, _), row in zip(strip.rows, images, strict=True):
        cells = "".join(f'<img src="{uri}" alt="">' for uri in row)
        rows.append(
            f'<div class="row"><span>{_text(title)}</span>'
            f'<div role="img" aria-label="{len(row)} frames: {_text(title)}" style="--columns: {columns}">'
            f"{cells}</div></div>"
        )
    return (
        f'<article class="film"><h3>{_text(strip.title)} <span class="truth">{_text(strip.truth)}</span></h3>'
        f'<ul class="answers">{"".join(map(_answer, strip.answers))}</ul>{"".join(rows)}</article>'
    )


def _answer(answer: tuple[int, str, float, bool]) -> str:
    budget, predicted, probability, correct = answer
    css, mark, word = ("right", "✓", "right") if correct else ("wrong", "✗", "wrong")
    return (
        f'<li class="{css}"><span role="img" aria-label="{word}">{mark}</span> {budget} tokens: '
        f"<b>{_text(predicted)}</b> {100 * probability:.0f}&nbsp;%</li>"
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
    figure = _figure(
        figures.trials_figure(trials, results.get("curve", ())),
        f"Accuracy in % on the validation split{clips}, which is not the data of the results above. "
        f"{outlined if results.get('curve') else ''}"
        "Cells are missing where a grid was not tried, as where it has fewer tokens than the budget.",
    )
    return _section("How the grid of each budget was chosen", figure)


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
            f"<b>{_text(row['name'])}</b>",
            _text(row.get("detail", "")),
            _accuracy_cell(row),
            "" if chance is None else _verdict(row, chance),
        )
        for row in controls
    ]
    columns = ("Control", "What it is", "Accuracy (95 % interval)", "Verdict")
    return _section("Controls: does the task need time?", intro, _table(columns, rows, css="prose"))


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
    figure = _figure(
        figures.factors_figure(factors),
        "A class is a combination of binary factors. How often each of them is right shows which motion a "
        "small budget loses first. Guessing gets 50 %.",
    )
    return _section("Accuracy of each factor of the motion", figure)


def _training(results: Mapping[str, Any]) -> str:
    training = results.get("training")
    if not training:
        return ""
    figure = _figure(
        figures.training_figure(training, results.get("chance")),
        "One model is trained at all budgets at once. Moving averages; faint: the loss of single steps.",
    )
    return _section("Training", figure)


def _conditions(results: Mapping[str, Any]) -> str:
    conditions = results.get("conditions")
    if not conditions:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>'
        for name, value in conditions.items()
    )
    return _section("Conditions", f'<div class="wide"><table class="prose">{rows}</table></div>')


def _reading(results: Mapping[str, Any]) -> str:
    curve = results.get("curve")
    budget = min((point["budget"] for point in curve), default=50) if curve else 50
    return _section(
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
        f"<pre>fluxvit predict CLIP --checkpoint DIR --budget {_text(budget)} --explain out.mp4</pre>",
    )


def _section(title: str, *content: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{''.join(content)}</section>"


def _figure(svg: str, caption: str) -> str:
    """``caption`` is HTML."""
    return f'<figure><div class="wide">{svg}</div><figcaption>{caption}</figcaption></figure>'


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, css: str) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table class="{css}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _accuracy_cell(score: Mapping[str, Any]) -> str:
    """``81.0 % (77.0 to 84.0)``, and of how many clips."""
    clips = f"{score['correct']} of {score['total']}" if "correct" in score else f"{score['total']}"
    interval = f"{_percent(score['low'])} to {_percent(score['high'])}"
    return f"{_percent(score['accuracy'])}&nbsp;% <small>({interval}; {clips}&nbsp;clips)</small>"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _text(value: object) -> str:
    return html.escape(str(value))


def _encode_within(rows: Sequence[np.ndarray], limit: int) -> list[list[str]]:
    """Frames of each row as data URIs, in the finest encoding that keeps all of them to ``limit`` bytes."""
    sampled = [_subsample(frames) for frames in rows]
    for side, quality in _ENCODINGS:
        encoded = [[_jpeg_uri(frame, side, quality) for frame in frames] for frames in sampled]
        if sum(len(uri) for row in encoded for uri in row) <= limit:
            break
    return encoded


def _subsample(frames: np.ndarray) -> np.ndarray:
    """At most a row of frames, evenly spaced, first and last among them."""
    return frames[np.linspace(0, len(frames) - 1, min(len(frames), _FRAMES_A_ROW)).round().astype(int)]


def _jpeg_uri(frame: np.ndarray, side: int, quality: int) -> str:
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    # Full-resolution colour: the outlines around kept patches are thin and saturated.
    image.save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_LIGHT = "; ".join(f"{variable}: {colour}" for colour, variable in figures.CSS_VARIABLES.items())
_STYLE = (
    f":root {{ color-scheme: light dark; {_LIGHT}; --panel: #f3f5f8; --right: #146c54; --wrong: #a3262f }}"
    """
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e7ec; --muted: #9aa3b2; --rule: #39404d; --paper: #14171d; --panel: #1d222b;
    --plain: #6cb0ee; --optimised: #f39a4c; --right: #5cc7a4; --wrong: #f08a8a;
  }
}
* { box-sizing: border-box }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 980px; margin: 0 auto; padding: 40px 20px 64px }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 12px }
h2 { font-size: 21px; line-height: 1.3; margin: 0 0 14px }
h3 { font-size: 16px; margin: 0 0 6px }
p, ul { max-width: 76ch; margin: 0 0 12px }
section { margin-top: 38px; padding-top: 22px; border-top: 1px solid var(--rule) }
.headline { font-size: 19px; line-height: 1.5 }
.plain { color: var(--plain); font-weight: 600 }
.optimised { color: var(--optimised); font-weight: 600 }
.wide { overflow-x: auto }
small { color: var(--muted); font-size: 0.88em }

figure { margin: 0 0 20px }
figure svg { display: block; width: 100%; height: auto; min-width: min(100%, 340px) }
figure svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif !important }
figcaption { color: var(--muted); font-size: 14px; line-height: 1.5; max-width: 92ch; margin-top: 8px }

table { border-collapse: collapse; width: 100%; font-size: 15px; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: 14px }
th, td { padding: 6px 14px 6px 0; vertical-align: baseline; border-bottom: 1px solid var(--rule) }
thead th { border-bottom: 1.5px solid var(--muted) }
.pairs td { white-space: nowrap }
.pairs tbody tr:nth-child(odd) td { border-bottom: 0; padding-bottom: 1px }
.pairs tbody tr:nth-child(even) td { padding-top: 1px }
.prose td:nth-child(n + 3), .prose b, .prose th[scope=row] { white-space: nowrap }

.film { background: var(--panel); border-radius: 8px; padding: 14px 16px; margin: 0 0 16px }
.truth { font-weight: 400; color: var(--muted) }
.truth::before { content: "truth: " }
.answers { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 22px; padding: 0; max-width: none;
  font-size: 14px; margin-bottom: 10px }
.right span { color: var(--right) }
.wrong span, .wrong b { color: var(--wrong) }
.row { display: grid; grid-template-columns: 108px 1fr; gap: 12px; align-items: center; margin-top: 4px }
.row > span { font-size: 13px; line-height: 1.3; color: var(--muted) }
.row > div { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 112px)); gap: 3px }
.row img { display: block; width: 100%; height: auto; border-radius: 2px }

pre { background: var(--panel); border-radius: 8px; padding: 12px 16px; overflow-x: auto; font-size: 14px }
@media (max-width: 640px) { .row { grid-template-columns: 1fr; gap: 2px } }
@media print {
  main { max-width: none; padding: 0 }
  figure, .film, tr { break-inside: avoid }
  h2, h3 { break-after: avoid }
  .film, pre { background: none; border: 1px solid var(--rule) }
}
"""
)
