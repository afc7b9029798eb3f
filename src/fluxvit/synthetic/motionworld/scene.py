"""The scene of a video: everything that will be on screen, as numbers, before a pixel is drawn.

A video is a sequence of loops. Rests and acts all start and end in the same state of the whole scene: the
object neutral; camera, background and distractors at their base. So any loop can be played in its other
orientation, and any two acts can change places, without a seam. :func:`draw_scene` draws a table of frames
that is independent of the label; the label decides only a permutation of its rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fluxvit.synthetic.builder import SPLITS, VideoSpec
from fluxvit.synthetic.motionworld.acts import (
    ACTS,
    DEFAULT_FACTORS,
    STATE,
    Factor,
    act_states,
    factor_values,
    playback,
)
from fluxvit.synthetic.motionworld.difficulty import DIFFICULTIES, Difficulty, DifficultyName
from fluxvit.synthetic.motionworld.shapes import OBJECTS
from fluxvit.synthetic.motionworld.textures import TextureRef, draw_texture

ASPECTS: dict[tuple[int, int], float] = {(1, 1): 0.35, (4, 3): 0.3, (16, 9): 0.2, (3, 4): 0.1, (9, 16): 0.05}
"""Aspect ratios, width to height, and how often they occur."""

MIN_ACT_FRAMES = 6

HOP_HEIGHT = 0.75
"""Height of a hop in object sizes."""

NOISE_TILE_MARGIN = 64
"""The sensor noise of a frame is a crop of one tile; crops start anywhere in this many pixels."""


@dataclass(frozen=True)
class SampleSpec(VideoSpec):
    """A video of a MotionWorld.

    Args:
        motion: Motion class.
        object: Object class.
        seed: Seed of the data set.
        difficulty: Name of the preset.
        factors: Binary factors that the motion class is made of.
    """

    motion: int
    object: int
    seed: int = 0
    difficulty: DifficultyName = "easy"
    factors: tuple[Factor, ...] = DEFAULT_FACTORS


@dataclass(frozen=True)
class Thing:
    """The looks of an object. Lengths are in units of the frame's short side, ``tilt`` in radians, clockwise.

    ``saturation`` is the share of its colourfulness that the texture keeps.
    """

    shape: str
    texture: TextureRef
    brightness: float
    saturation: float
    size: float
    tilt: float
    home: tuple[float, float]


@dataclass(frozen=True)
class Event:
    """An act in the video: ``frames`` frames from ``start`` on."""

    act: str
    orientation: int
    start: int
    frames: int


@dataclass(frozen=True)
class Scene:
    """A video of ``T`` frames before it is drawn.

    The arrays are the table of frames; row ``order[t]`` is the frame shown at time ``t``.

    Attributes:
        width, height, fps, crf: Geometry in pixels, frame rate, compression.
        main, visitor, distractors: The objects. The visitor appears in ``pass`` acts only.
        visitor_in_front: Whether the visitor covers the main object or is covered by it.
        background: Texture, mean brightness and its standard deviation.
        states: State of the main object, ``acts.STATE`` ``[T]``.
        camera, sway: Excursion (x, y) of the camera and of the background, in short sides, ``[T, 2]``.
        wander: Excursions of the distractors, ``[D, T, 2]``.
        exposure: Relative brightness, ``[T]``.
        noise: Standard deviation of the sensor noise.
        noise_origin: Corner of the crop of the noise tile, int ``[T, 2]``.
        margin: Largest excursion of camera and of background, in short sides.
        order: The permutation, int ``[T]``. Nothing else in the table depends on the motion label.
        events: The acts in the order in which they are played.
    """

    width: int
    height: int
    fps: int
    crf: int
    main: Thing
    visitor: Thing
    visitor_in_front: bool
    distractors: tuple[Thing, ...]
    background: tuple[TextureRef, float, float]
    states: np.ndarray
    camera: np.ndarray
    sway: np.ndarray
    wander: np.ndarray
    exposure: np.ndarray
    noise: float
    noise_origin: np.ndarray
    margin: tuple[float, float]
    order: np.ndarray
    events: tuple[Event, ...]

    @property
    def frames(self) -> int:
        return len(self.order)


Table = list[tuple[str | None, np.ndarray]]
"""The acts and rests of a clip, and which rows of the table of frames belong to each. A rest has no name."""


def draw_scene(spec: SampleSpec) -> Scene:
    """Draw the scene of a video at random."""
    dial = DIFFICULTIES[spec.difficulty]
    rng = np.random.default_rng([spec.seed, SPLITS.index(spec.split), spec.index])
    width, height, fps = _geometry(rng, dial)

    acts, extra_orientations = _draw_acts(rng, dial, spec.factors)
    table, states = _draw_table(rng, dial, acts, fps)
    slots = [acts[i] for i in rng.permutation(len(acts))]

    lengths = [len(rows) for _, rows in table]
    total = sum(lengths)
    camera = _loops(rng, lengths, fps, dial.shake, 2)
    sway = _loops(rng, lengths, fps, dial.sway, 2)
    exposure = 1 + _loops(rng, lengths, fps, dial.flicker, 1)[:, 0]
    noise_origin = rng.integers(0, NOISE_TILE_MARGIN, (total, 2))

    background, main, visitor, distractors = _draw_things(rng, dial, spec, (width, height), "hop" in acts)
    wander = [_loops(rng, lengths, fps, 0.12, 2) for _ in distractors]
    in_front = bool(rng.random() < 0.4)
    noise, crf = rng.uniform(*dial.noise), int(rng.integers(dial.crf[0], dial.crf[1] + 1))

    # From here on nothing is random: the label only reorders the rows.
    values = factor_values(spec.factors, spec.motion)
    order, events = _play(table, slots, {**extra_orientations, **values})
    return Scene(
        width=width,
        height=height,
        fps=fps,
        crf=crf,
        main=main,
        visitor=visitor,
        visitor_in_front=in_front,
        distractors=distractors,
        background=background,
        states=states,
        camera=camera,
        sway=sway,
        wander=np.array(wander).reshape(len(distractors), total, 2),
        exposure=exposure,
        noise=noise,
        noise_origin=noise_origin,
        margin=(dial.shake, dial.sway),
        order=order,
        events=events,
    )


def _geometry(rng: np.random.Generator, dial: Difficulty) -> tuple[int, int, int]:
    """Width, height and frames per second."""
    across, down = list(ASPECTS)[rng.choice(len(ASPECTS), p=list(ASPECTS.values()))]
    short = int(rng.choice(dial.short_sides))
    width, height = (2 * round(short * side / min(across, down) / 2) for side in (across, down))
    return width, height, int(rng.choice(dial.frame_rates))


def _draw_acts(
    rng: np.random.Generator, dial: Difficulty, factors: tuple[Factor, ...]
) -> tuple[list[str], dict[str, int]]:
    """The acts of a clip, and the orientations of those that are not part of the label."""
    labelled = [name for name in factors if name in ACTS]
    others: list[str] = [name for name in ACTS if name not in factors]
    count = min(len(others), int(rng.integers(dial.extra_acts[0], dial.extra_acts[1] + 1)))
    extra = [str(name) for name in rng.choice(others, count, replace=False)] if count else []
    return labelled + extra, {name: int(rng.integers(2)) for name in extra}


def _draw_table(
    rng: np.random.Generator, dial: Difficulty, acts: list[str], fps: int
) -> tuple[Table, np.ndarray]:
    """Rests and acts with their rows, and the state of the main object in each row.

    There is one rest more than there are acts, and none is empty: neutral frames surround every act.
    """
    table: Table = []
    states, start = [], 0
    for act in [*acts, *[None] * (len(acts) + 1)]:
        if act is None:
            frames = max(1, round(rng.uniform(*dial.rest_seconds) * fps))
            states.append(np.zeros(frames, STATE))
        else:
            # Uniform in the logarithm: as many acts shorter as longer than the geometric mean.
            seconds = np.exp(rng.uniform(*np.log(dial.act_seconds)))
            frames = max(MIN_ACT_FRAMES, round(seconds * fps))
            states.append(act_states(act, frames, ease=rng.uniform(0, 0.5)))
        table.append((act, np.arange(start, start + frames)))
        start += frames
    return table, np.concatenate(states)


def _play(
    table: Table, slots: list[str], orientations: dict[str, int]
) -> tuple[np.ndarray, tuple[Event, ...]]:
    """Permutation of the table's rows, and the events, for acts in the order of ``slots``."""
    if "order" in orientations:
        slots = list(slots)
        slide, lift = slots.index("slide"), slots.index("lift")
        if (slide > lift) != bool(orientations["order"]):
            slots[slide], slots[lift] = slots[lift], slots[slide]
    rows_of = {act: rows for act, rows in table if act}
    rests = [rows for act, rows in table if act is None]
    order, events, now = [rests[0]], [], len(rests[0])
    for act, rest in zip(slots, rests[1:], strict=True):
        rows = rows_of[act]
        events.append(Event(act, orientations[act], now, len(rows)))
        order += [rows[playback(act, orientations[act], len(rows))], rest]
        now += len(rows) + len(rest)
    return np.concatenate(order), tuple(events)


def _loops(
    rng: np.random.Generator, lengths: list[int], fps: int, amplitude: float, channels: int
) -> np.ndarray:
    """Smooth random excursions, one loop from base to base per act or rest, ``[sum(lengths), channels]``.

    Each is a sum of half sine waves with coefficients symmetric about zero. Time reversal only changes signs
    of coefficients, so a loop and its reverse are equally likely. None exceeds ``amplitude``; short loops are
    smaller, so that their speed stays bounded.
    """
    waves = np.arange(1, 5)
    paths = []
    for frames in lengths:
        phase = np.arange(1, frames + 1) / (frames + 1)
        weights = rng.normal(size=(len(waves), channels)) / waves[:, None]
        reach = amplitude * min(1.0, frames / fps)
        path = np.sin(np.pi * phase[:, None] * waves) @ weights / np.abs(weights).sum(0)
        paths.append(reach * path)
    return np.concatenate(paths)


def _draw_things(
    rng: np.random.Generator, dial: Difficulty, spec: SampleSpec, frame: tuple[int, int], hops: bool
) -> tuple[tuple[TextureRef, float, float], Thing, Thing, tuple[Thing, ...]]:
    """Background, main object, visitor and distractors. An object that ``hops`` gets room overhead."""
    across, down = (side / min(frame) for side in frame)
    sign = -1 if rng.random() < dial.dark_objects else 1
    contrast = rng.uniform(*dial.contrast)
    # Background and object lie about symmetrically around a middle grey, so that both keep their texture.
    middle = rng.uniform(0.44, 0.54)
    backdrop = middle - sign * contrast / 2
    background = (draw_texture(rng, spec.split), backdrop, rng.uniform(*dial.background_detail))

    def thing(
        shape: str, brightness: float, saturation: float, size: float, room: float, head: float = 0
    ) -> Thing:
        home = (rng.uniform(room, across - room), rng.uniform(room + head, down - room))
        look = draw_texture(rng, spec.split)
        return Thing(shape, look, brightness, saturation, size, rng.uniform(-0.3, 0.3), home)

    size = rng.uniform(*dial.object_size)
    main = thing(
        OBJECTS[spec.object], middle + sign * contrast / 2, 1.0, size, 0.58 * size, HOP_HEIGHT * size * hops
    )
    others = [name for name in OBJECTS if name != main.shape]
    guest_size = size * rng.uniform(0.55, 0.8)
    guest = thing(str(rng.choice(others)), main.brightness - sign * 0.08, 1.0, guest_size, 0.2 * size)
    distractors = []
    for _ in range(rng.integers(dial.clutter[0], dial.clutter[1] + 1)):
        brightness = backdrop + rng.choice([-1, 1]) * rng.uniform(*dial.distractor_contrast)
        distractors.append(
            thing(str(rng.choice(others)), brightness, 0.5, size * rng.uniform(0.35, 0.65), 0.1)
        )
    return background, main, guest, tuple(distractors)
