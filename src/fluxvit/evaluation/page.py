"""What the pages of reports share: the skeleton and its style, sections, tables, and film strips of clips.

Functions return HTML. Arguments called ``content``, ``rows`` or ``caption`` are HTML already; all others are
text, which is escaped here.
"""

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
from fluxvit.terminal import printable

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


def write_page(path: str | Path, title: str, parts: Iterable[str]) -> None:
    """Write an HTML page of its own, atomically; parts that are empty are left out."""
    page = _PAGE.format(title=text(title), style=_STYLE, body="\n".join(filter(None, parts)))
    with atomic_path(path) as partial:
        partial.write_text(page, encoding="utf-8")


def header(title: str, headline: str | None, notes: Iterable[str] = ()) -> str:
    """The top of a page: what it is about, and what came out."""
    paragraphs = [f'<p class="headline">{text(headline)}</p>'] if headline else []
    paragraphs += [f"<p>{text(note)}</p>" for note in notes]
    return f"<header><h1>{text(title)}</h1>{''.join(paragraphs)}</header>"


def facts(title: str, values: Mapping[str, object] | None) -> str:
    """A section of names and values; empty without any."""
    if not values:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in values.items()
    )
    return section(title, f'<div class="wide"><table class="prose">{rows}</table></div>')


def kept_tokens(strips: Sequence[Strip]) -> str:
    """A section of film strips; empty without any."""
    if not strips:
        return ""
    encoded = iter(_encode_within([frames for strip in strips for _, frames in strip.rows], _IMAGE_BYTES))
    films = [_film(strip, [next(encoded) for _ in strip.rows]) for strip in strips]
    intro = (
        "<p>Time runs from left to right. The first row of a clip is what was sampled; in the rows below, "
        "patches whose tokens were dropped are dimmed.</p>"
    )
    return section("What the selector keeps", intro, *films)


def _film(strip: Strip, images: Sequence[Sequence[str]]) -> str:
    """The strips of a clip; ``images`` are the frames of each row as data URIs."""
    columns = max(map(len, images), default=1)
    rows = []
    for (title, _), row in zip(strip.rows, images, strict=True):
        cells = "".join(f'<img src="{uri}" alt="">' for uri in row)
        rows.append(
            f'<div class="row"><span>{text(title)}</span>'
            f'<div role="img" aria-label="{len(row)} frames: {text(title)}" style="--columns: {columns}">'
            f"{cells}</div></div>"
        )
    return (
        f'<article class="film"><h3>{text(strip.title)} <span class="truth">{text(strip.truth)}</span></h3>'
        f'<ul class="answers">{"".join(map(_answer, strip.answers))}</ul>{"".join(rows)}</article>'
    )


def _answer(answer: tuple[int, str, float, bool]) -> str:
    budget, predicted, probability, correct = answer
    css, mark, word = ("right", "✓", "right") if correct else ("wrong", "✗", "wrong")
    return (
        f'<li class="{css}"><span role="img" aria-label="{word}">{mark}</span> {budget} tokens: '
        f"<b>{text(predicted)}</b> {100 * probability:.0f}&nbsp;%</li>"
    )


def section(title: str, *content: str) -> str:
    return f"<section><h2>{text(title)}</h2>{''.join(content)}</section>"


def figure(picture: figures.Picture, caption: str) -> str:
    return f'<figure><div class="wide">{picture.inline()}</div><figcaption>{caption}</figcaption></figure>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, css: str) -> str:
    head = "".join(f'<th scope="col">{text(column)}</th>' for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table class="{css}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def accuracy_cell(score: Mapping[str, Any]) -> str:
    """``81.0 % (77.0 to 84.0)``, and of how many clips."""
    clips = f"{score['correct']} of {score['total']}" if "correct" in score else f"{score['total']}"
    interval = f"{percent(score['low'])} to {percent(score['high'])}"
    return f"{percent(score['accuracy'])}&nbsp;% <small>({interval}; {clips}&nbsp;clips)</small>"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def text(value: object) -> str:
    return html.escape(printable(value))


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
    --baseline-1: #d9b84a; --baseline-2: #5cc5da; --baseline-3: #cf93e0; --baseline-4: #4fc3a1;
  }
}
* { box-sizing: border-box }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 980px; margin: 0 auto; padding: 40px 20px 64px }
h1, .headline, .files, h3, td { overflow-wrap: anywhere }
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
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 0 24px }
figure svg { display: block; width: 100%; height: auto }
figure svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif !important }
figcaption { color: var(--muted); font-size: 14px; line-height: 1.5; max-width: 92ch; margin-top: 8px }

table { border-collapse: collapse; width: 100%; font-size: 15px; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: 14px }
th, td { padding: 6px 14px 6px 0; vertical-align: baseline; border-bottom: 1px solid var(--rule) }
thead th { border-bottom: 1.5px solid var(--muted) }
.points { font-size: 13.5px }
.pairs td, .points td, .points th { white-space: nowrap }
.points td:nth-child(n + 2), .points th:nth-child(n + 2) { padding-right: 8px }
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
  .wide { overflow: visible }
  figure svg { min-width: 0 !important }
  .points { font-size: 9.5px }
  .points td, .points th { padding-right: 6px }
  h2, h3 { break-after: avoid }
  .film, pre { background: none; border: 1px solid var(--rule) }
}
"""
)
