"""Silhouettes: the object classes, drawn as signed distance fields.

A field is negative inside and positive outside, and about equal to the distance from the outline. Antialiased
edges, a bevel and a soft shadow all come from this one array. Coordinates are x to the right and y *down*. No
silhouette has a mirror axis, so that turning and mirroring stay visible.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

CANVAS = 1.25
"""Half side of the square a silhouette is drawn in; the silhouette itself spans 2 at its longer side."""

RESOLUTION = 128
"""Side of that square in pixels."""

Grid = tuple[np.ndarray, np.ndarray]
Point = tuple[float, float]


def _disc(p: Grid, centre: Point, radius: float) -> np.ndarray:
    return np.hypot(p[0] - centre[0], p[1] - centre[1]) - radius


def _ring(p: Grid, centre: Point, radius: float, thickness: float) -> np.ndarray:
    return np.abs(_disc(p, centre, radius)) - thickness / 2


def _ellipse(p: Grid, centre: Point, a: float, b: float) -> np.ndarray:
    return (np.hypot((p[0] - centre[0]) / a, (p[1] - centre[1]) / b) - 1) * min(a, b)


def _bar(p: Grid, start: Point, end: Point, thickness: float) -> np.ndarray:
    """A stroke with round ends."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = np.clip(((p[0] - start[0]) * dx + (p[1] - start[1]) * dy) / (dx * dx + dy * dy), 0, 1)
    return np.hypot(p[0] - start[0] - along * dx, p[1] - start[1] - along * dy) - thickness / 2


def _polygon(p: Grid, *corners: Point) -> np.ndarray:
    """Exact distance to a polygon, its sign by the even-odd rule."""
    distance = np.full(p[0].shape, np.inf)
    inside = np.zeros(p[0].shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        distance = np.minimum(distance, _bar(p, (x0, y0), (x1, y1), 0.0))
        if y0 != y1:
            crosses = (y0 > p[1]) != (y1 > p[1])
            inside ^= crosses & (p[0] < (x1 - x0) * (p[1] - y0) / (y1 - y0) + x0)
    return np.where(inside, -distance, distance)


def _join(*fields: np.ndarray) -> np.ndarray:
    return np.minimum.reduce(fields)


def _cut(field: np.ndarray, hole: np.ndarray) -> np.ndarray:
    return np.maximum(field, -hole)


def _arrow(p: Grid) -> np.ndarray:
    head = _polygon(p, (0.15, -0.85), (0.95, -0.3), (0.15, 0.25))
    return _join(_bar(p, (-0.5, 0.8), (-0.5, -0.3), 0.34), _bar(p, (-0.5, -0.3), (0.3, -0.3), 0.34), head)


def _axe(p: Grid) -> np.ndarray:
    blade = _polygon(
        p, (-0.3, -0.72), (0.1, -0.8), (0.5, -1.0), (0.72, -0.5), (0.62, 0.05), (0.1, -0.25), (-0.3, -0.3)
    )
    return _join(_bar(p, (-0.3, -0.85), (-0.2, 0.9), 0.24), blade)


def _boot(p: Grid) -> np.ndarray:
    body = _polygon(
        p,
        (-0.55, -0.9),
        (0.1, -0.9),
        (0.12, 0.05),
        (0.7, 0.25),
        (0.85, 0.5),
        (0.85, 0.75),
        (-0.6, 0.75),
        (-0.5, 0.1),
    )
    arch = _polygon(p, (-0.1, 0.9), (0.3, 0.9), (0.25, 0.68), (-0.05, 0.62))
    return _cut(_join(body - 0.04, _polygon(p, (-0.6, 0.6), (-0.15, 0.6), (-0.15, 0.95), (-0.6, 0.95))), arch)


def _comma(p: Grid) -> np.ndarray:
    tail = _cut(_disc(p, (-0.25, -0.2), 0.85), _disc(p, (-0.5, -0.25), 0.82))
    below = _polygon(p, (-0.6, -0.2), (1.0, -0.5), (1.0, 1.2), (-0.6, 1.2))
    return _join(_disc(p, (0.1, -0.4), 0.5), np.maximum(tail, below))


def _fish(p: Grid) -> np.ndarray:
    body = np.maximum(_disc(p, (0.15, 0.55), 0.95), _disc(p, (0.15, -0.55), 0.95))
    tail = _polygon(p, (-0.45, 0.0), (-1.0, -0.5), (-0.85, 0.05), (-0.95, 0.35))
    fin = _polygon(p, (-0.25, -0.25), (-0.2, -0.75), (0.35, -0.35))
    return _cut(_join(body, tail, fin), _disc(p, (0.55, -0.08), 0.08))


def _flag(p: Grid) -> np.ndarray:
    cloth = _polygon(p, (-0.6, -0.9), (0.8, -0.75), (0.45, -0.35), (0.8, 0.1), (-0.6, 0.05))
    return _join(_bar(p, (-0.62, -0.9), (-0.62, 0.95), 0.2), cloth)


def _hammer(p: Grid) -> np.ndarray:
    head = _polygon(p, (-0.75, -0.9), (0.25, -0.85), (0.25, -0.4), (-0.75, -0.35))
    claw = _polygon(p, (0.2, -0.85), (0.6, -0.72), (0.9, -0.2), (0.55, -0.42), (0.2, -0.45))
    return _join(_bar(p, (-0.1, -0.5), (-0.1, 0.85), 0.28), head, claw)


def _key(p: Grid) -> np.ndarray:
    teeth = _join(_bar(p, (0.0, 0.82), (0.42, 0.82), 0.18), _bar(p, (0.0, 0.45), (0.32, 0.45), 0.18))
    return _join(_ring(p, (0.0, -0.52), 0.34, 0.24), _bar(p, (0.0, -0.15), (0.0, 0.85), 0.24), teeth)


def _letter_f(p: Grid) -> np.ndarray:
    corners = [
        (-0.55, -0.95),
        (0.65, -0.95),
        (0.65, -0.6),
        (-0.15, -0.6),
        (-0.15, -0.15),
        (0.4, -0.15),
        (0.4, 0.2),
    ]
    return _polygon(p, *corners, (-0.15, 0.2), (-0.15, 0.95), (-0.55, 0.95))


def _mug(p: Grid) -> np.ndarray:
    body = _polygon(p, (-0.75, -0.7), (0.3, -0.7), (0.22, 0.75), (-0.67, 0.75)) - 0.05
    return _join(body, _ring(p, (0.4, -0.05), 0.38, 0.2))


def _teapot(p: Grid) -> np.ndarray:
    spout = _polygon(p, (-0.35, 0.35), (-1.0, -0.45), (-0.8, -0.5), (-0.35, -0.1))
    lid = _join(_disc(p, (0.05, -0.55), 0.13), _ellipse(p, (0.05, -0.38), 0.35, 0.12))
    return _join(_ellipse(p, (0.05, 0.12), 0.62, 0.52), spout, lid, _ring(p, (0.65, 0.05), 0.3, 0.16))


def _umbrella(p: Grid) -> np.ndarray:
    scallops = _join(*[_disc(p, (x, 0.02), 0.3) for x in (-0.6, 0.0, 0.6)])
    canopy = _cut(np.maximum(_disc(p, (0.0, 0.0), 0.9), p[1]), scallops)
    hook = np.maximum(_ring(p, (0.2, 0.72), 0.2, 0.16), 0.72 - p[1])
    return _join(canopy, _bar(p, (0.0, -0.5), (0.0, 0.74), 0.16), hook)


_SHAPES: dict[str, Callable[[Grid], np.ndarray]] = {
    "arrow": _arrow,
    "axe": _axe,
    "boot": _boot,
    "comma": _comma,
    "fish": _fish,
    "flag": _flag,
    "hammer": _hammer,
    "key": _key,
    "letter F": _letter_f,
    "mug": _mug,
    "teapot": _teapot,
    "umbrella": _umbrella,
}

OBJECTS: tuple[str, ...] = tuple(_SHAPES)
"""Names of the object classes in the order of their index."""


def _grid(half: float, centre: Point = (0.0, 0.0)) -> Grid:
    """Pixel centres of a square of ``2 * half`` around ``centre``."""
    ticks = (np.arange(RESOLUTION) + 0.5) / RESOLUTION * 2 * half - half
    x, y = np.meshgrid(ticks + centre[0], ticks + centre[1])
    return x, y


@cache
def silhouette(name: str) -> np.ndarray:
    """Signed distance field of an object, float ``[RESOLUTION, RESOLUTION]``, centred and scaled to fit."""
    draw = _SHAPES[name]
    x, y = _grid(CANVAS)
    inside = draw((x, y)) < 0
    left, right, top, bottom = x[inside].min(), x[inside].max(), y[inside].min(), y[inside].max()
    scale = max(right - left, bottom - top) / 2
    field = draw(_grid(CANVAS * scale, ((left + right) / 2, (top + bottom) / 2))) / scale
    field.flags.writeable = False  # one array is shared by all callers
    return field
