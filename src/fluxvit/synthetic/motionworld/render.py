"""Draws the frames of a scene with NumPy, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

from fluxvit.synthetic.motionworld.raster import bilinear, shifted_crop
from fluxvit.synthetic.motionworld.scene import HOP_HEIGHT, NOISE_TILE_MARGIN, Scene, Thing
from fluxvit.synthetic.motionworld.shapes import CANVAS, RESOLUTION, silhouette
from fluxvit.synthetic.motionworld.textures import texture, tone

LIGHT = np.array([-0.45, -0.6, 0.66])
"""Direction towards the light: from the upper left, in front of the picture."""

BEVEL, RIM, SHADOW = 0.18, 0.06, 0.1
"""Widths of an object's rounded edge, of its dark rim and of its shadow, in half object sizes."""

OBJECT_DETAIL = 0.13
"""Standard deviation of the brightness of an object's texture."""

WRAP_ROOM = 1.3
"""An object that wraps around leaves the frame by this multiple of its canvas: enough for any tilt."""

BACKGROUND_SATURATION = 0.5
"""Share of its colourfulness that a background keeps, so that it stays behind the objects."""


def render(scene: Scene) -> Iterator[np.ndarray]:
    """Draw the frames of a video before compression, uint8 ``[H, W, 3]``."""
    painter = _Painter(scene)
    for row in scene.order:
        yield painter.frame(row)


class _Painter:
    """Draws rows of a scene's table of frames. Sprites, background and noise are prepared once."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.unit = min(scene.width, scene.height)
        self.main = _Sprite(scene.main)
        self.visitor = _Sprite(scene.visitor) if scene.states["visit"].any() else None
        self.distractors = [_Sprite(thing) for thing in scene.distractors]
        self.margin = (scene.margin[0] + scene.margin[1]) * self.unit + 1
        self.background = self._draw_background()
        # The noise is a function of the row, so frames that change places keep their noise.
        rng = np.random.default_rng(scene.background[0].seed)
        tile = (scene.height + NOISE_TILE_MARGIN, scene.width + NOISE_TILE_MARGIN, 3)
        self.noise = rng.standard_normal(tile, dtype=np.float32) * np.float32(255 * scene.noise)

    def frame(self, row: int) -> np.ndarray:
        """Frame of one row of the table, uint8 ``[H, W, 3]``."""
        scene, unit = self.scene, self.unit
        camera = scene.camera[row] * unit
        x, y = self.margin + camera + scene.sway[row] * unit
        canvas = shifted_crop(self.background, y, x, scene.height, scene.width)
        for thing, sprite, wander in zip(scene.distractors, self.distractors, scene.wander, strict=True):
            x, y = (np.array(thing.home) + wander[row]) * unit - camera
            sprite.paste(canvas, x, y, thing.size * unit / 2, thing.tilt, 1.0)
        layers = [self._paste_visitor, self._paste_main]
        for paste in layers[::-1] if scene.visitor_in_front else layers:
            paste(canvas, row, camera)
        top, left = scene.noise_origin[row]
        canvas *= np.float32(255 * scene.exposure[row])
        canvas += self.noise[top : top + scene.height, left : left + scene.width]
        canvas += 0.5  # the cast below truncates
        return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)

    def _paste_main(self, canvas: np.ndarray, row: int, camera: np.ndarray) -> None:
        scene, thing = self.scene, self.scene.main
        state = scene.states[row]
        radius = thing.size * self.unit / 2
        x = _wrap(thing.home[0] * self.unit, state["slide"], scene.width, self._room(radius))
        y = _wrap(thing.home[1] * self.unit, state["lift"], scene.height, self._room(radius))
        y -= state["hop"] * HOP_HEIGHT * thing.size * self.unit
        angle = thing.tilt + 2 * np.pi * state["spin"]
        self.main.paste(
            canvas, x - camera[0], y - camera[1], radius * np.exp(state["zoom"]), angle, 1 - state["fade"]
        )

    def _paste_visitor(self, canvas: np.ndarray, row: int, camera: np.ndarray) -> None:
        scene, thing = self.scene, self.scene.visitor
        progress = scene.states["visit"][row]
        if self.visitor is None or progress == 0:
            return
        radius = thing.size * self.unit / 2
        room = self._room(radius)
        x = -room + progress * (scene.width + 2 * room)
        # The visitor crosses at about the height of the main object, so that one covers the other.
        y = (scene.main.home[1] + 0.3 * (thing.home[1] - scene.main.home[1])) * self.unit
        self.visitor.paste(canvas, x - camera[0], y - camera[1], radius, thing.tilt, 1.0)

    def _room(self, radius: float) -> float:
        """Distance beyond the edge at which an object is out of sight, whatever the camera does."""
        return WRAP_ROOM * CANVAS * radius + self.scene.margin[0] * self.unit

    def _draw_background(self) -> np.ndarray:
        ref, brightness, spread = self.scene.background
        image = tone(texture(ref), brightness, spread, BACKGROUND_SATURATION)
        height, width = (
            int(np.ceil(side + 2 * self.margin)) + 1 for side in (self.scene.height, self.scene.width)
        )
        step = (len(image) - 1) / max(height, width)
        y, x = np.meshgrid(
            *(np.arange(side, dtype=np.float32) * step for side in (height, width)), indexing="ij"
        )
        return bilinear(image, y, x)


def _wrap(home: float, turns: float, side: int, room: float) -> float:
    """Position after some turns around a loop that leaves the frame by ``room`` pixels on either end."""
    period = side + 2 * room
    return (home + turns * period + room) % period - room


class _Sprite:
    """A shaded, textured object with soft edges and shadow, at several resolutions.

    Pixels are float32 RGBA with colours already multiplied by alpha, so that they may be interpolated.
    """

    def __init__(self, thing: Thing) -> None:
        levels = [_draw(thing)]
        while len(levels[-1]) > 16:
            fine = levels[-1]
            levels.append((fine[::2, ::2] + fine[1::2, ::2] + fine[::2, 1::2] + fine[1::2, 1::2]) / 4)
        self.levels = levels[::-1]

    def paste(
        self, canvas: np.ndarray, x: float, y: float, radius: float, angle: float, opacity: float
    ) -> None:
        """Draw onto ``canvas``, float ``[H, W, 3]``, in place.

        Args:
            canvas: Picture to draw on.
            x, y: Centre in pixels.
            radius: Half the object's longer side in pixels.
            angle: Clockwise turn in radians.
            opacity: 0 to 1.
        """
        half = CANVAS * radius
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        reach = half * (abs(cos) + abs(sin))
        top, bottom = max(0, int(np.ceil(y - reach))), min(canvas.shape[0], int(y + reach) + 1)
        left, right = max(0, int(np.ceil(x - reach))), min(canvas.shape[1], int(x + reach) + 1)
        if opacity <= 0 or top >= bottom or left >= right:
            return
        # The coarsest level with at least one pixel for each of the canvas keeps edges free of aliasing.
        level = next((image for image in self.levels if len(image) >= 2 * half), self.levels[-1])
        scale = np.float32(len(level) / (2 * half))
        dx = (np.arange(left, right, dtype=np.float32) + np.float32(0.5 - x)) * scale
        dy = (np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - y)) * scale
        centre = np.float32(len(level) / 2 - 0.5)
        rgba = bilinear(level, cos * dy - sin * dx + centre, cos * dx + sin * dy + centre)
        if opacity < 1:
            rgba *= np.float32(opacity)
        region = canvas[top:bottom, left:right]
        region *= 1 - rgba[..., 3:]
        region += rgba[..., :3]


def _draw(thing: Thing) -> np.ndarray:
    """Finest level of a sprite, float32 ``[RESOLUTION, RESOLUTION, 4]``."""
    light, cover, alpha = _relief(thing.shape)
    image = texture(thing.texture)[:RESOLUTION, :RESOLUTION]
    colour = tone(image, thing.brightness, OBJECT_DETAIL, thing.saturation)
    return np.concatenate([np.minimum(colour * light, 1) * cover, alpha], -1)


@cache
def _relief(shape: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bevel and dark rim, antialiased edge and soft shadow, which make a silhouette look solid.

    Returns:
        The factor of the texture's brightness, the opacity of the object, and the opacity of object and
        shadow together, each float32 ``[RESOLUTION, RESOLUTION, 1]``.
    """
    depth = -silhouette(shape)
    pixels = RESOLUTION / (2 * CANVAS)  # per unit of the distance field
    slope = np.clip(depth / BEVEL, 0, 1)
    dome_y, dome_x = np.gradient(BEVEL * np.sin(np.pi / 2 * slope) * pixels)
    normal = np.stack([-dome_x, -dome_y, np.ones_like(slope)], -1)
    light = 0.4 + 0.9 * (normal @ LIGHT) / np.linalg.norm(normal, axis=-1)
    light *= 0.75 + 0.25 * np.clip(depth / RIM, 0, 1)

    cover = np.clip(depth * pixels + 0.5, 0, 1)
    shadow = 0.5 * np.exp(-((np.minimum(depth, 0) / SHADOW) ** 2))
    # Sampling outside of the canvas gives its outermost pixels.
    shadow[[0, -1]] = shadow[:, [0, -1]] = 0
    layers = np.stack([light, cover, cover + (1 - cover) * shadow])[..., None].astype(np.float32)
    return layers[0], layers[1], layers[2]
