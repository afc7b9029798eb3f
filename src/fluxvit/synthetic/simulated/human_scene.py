"""Staging a motion capture clip and filming it. Needs the extra ``mocap``.

The world has z up and metres for units. The person walks through recorded poses; nothing is simulated.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fluxvit.synthetic.builder import SPLITS
from fluxvit.synthetic.simulated.extras import require
from fluxvit.synthetic.simulated.human_actions import Action
from fluxvit.synthetic.simulated.human_body import LINKS, SCALE, Outfit, body_urdf, draw_outfit
from fluxvit.synthetic.simulated.human_motion import ANGLES, ROTATIONS, Motion, read_motion
from fluxvit.synthetic.simulated.specs import FRAME_RATES, ClipSpec, draw_size, surface

SPEED = (0.75, 1.35)
"""Speed of the person, 1 as recorded."""

FRAMES = (20, 64)
"""Least and largest number of frames that a frame rate is chosen for."""

BAND = 15.0
"""Degrees of a band of viewpoints. A viewpoint is the angle between where the person faces and where the
camera is, seen from the person: 0 is in front, 180 behind, left or right."""

BANDS: dict[str, tuple[int, ...]] = {
    "train": (0, 1, 3, 4, 6, 7, 9, 10),
    "val": (2, 8),
    "test": (5, 11),
}
"""Bands of each split. They count from 0 on either side, so that a mirrored person is seen from a band of the
same split."""

GUARD = 1.5
"""Degrees at either end of a band that no camera uses."""

ELEVATION = (-2.0, 30.0)
FIELD_OF_VIEW = (32.0, 50.0)
ARM_SPAN = 1.1
"""Metres around the hips that have to be in the picture: a stretched body with an arm overhead."""
WAIST = 0.8
"""Metres above ground that the camera looks at."""
STATIC_PATH = 0.8
"""Longest way from its middle, in metres, that the camera may watch without following."""

SHADOWS = 0.35
"""Share of videos with cast shadows; they double the time to draw a frame."""

# Files of pybullet_data with a scale that makes them 0.3 to 1.2 metres large. Each is in one split only.
# Models with a licence of their own, such as the bicycle and most robots, are left out.
_OBJECTS: dict[str, tuple[tuple[str, float], ...]] = {
    "train": (
        ("soccerball.urdf", 0.5),
        ("r2d2.urdf", 1),
        ("cube_small.urdf", 8),
        ("lego/lego.urdf", 10),
    ),
    "val": (("teddy_vhacd.urdf", 6), ("sphere2.urdf", 0.5)),
    "test": (("jenga/jenga.urdf", 8), ("objects/mug.urdf", 6)),
}
_ABSTRACT_OBJECTS = 1000
"""``random_urdfs`` of pybullet_data; number n belongs to split n modulo 3."""


@dataclass(frozen=True)
class Performance:
    """A planned video: who does what, seen from where.

    Attributes:
        width, height: Pixels.
        fps: Frames per second.
        speed: Speed of the person, 1 as recorded.
        poses: The person in each frame.
        heading: Direction that the person of the take faces, in radians from x towards y.
        mirrored: Whether left and right are exchanged.
        viewpoint: Angle of the camera, in degrees to the left of where the person faces; negative: right.
        outfit: What the person looks like.
    """

    width: int
    height: int
    fps: int
    speed: float
    poses: Motion
    heading: float
    mirrored: bool
    viewpoint: float
    outfit: Outfit

    @property
    def frames(self) -> int:
        return len(self.poses.position)


def load_simulator() -> tuple[Any, Path]:
    """Bullet, and the folder of its data.

    Raises:
        ValueError: They are not installed.
    """
    with _silence():
        client = require("pybullet_utils.bullet_client", "mocap")
        data = require("pybullet_data", "mocap")
    return client, Path(data.getDataPath())


def plan_performance(rng: np.random.Generator, spec: ClipSpec, action: Action, take: Motion) -> Performance:
    """Draw what a video shows of a recorded take."""
    width, height = draw_size(rng, spec.short_sides)
    mirrored = bool(rng.random() < 0.5)
    if mirrored:
        take = take.mirrored()
    heading = take.heading
    take = take.repeated(int(rng.integers(action.cycles[0], action.cycles[1] + 1)))
    first, last = action.core
    start, end = take.duration * np.array([rng.uniform(0, first), rng.uniform(last, 1)])
    speed = rng.uniform(*SPEED)
    fitting = [rate for rate in FRAME_RATES if FRAMES[0] <= (end - start) / speed * rate <= FRAMES[1]]
    fps = int(rng.choice(fitting or [FRAME_RATES[-1]]))
    poses = take.at(np.arange(start, end, speed / fps))
    return Performance(
        width=width,
        height=height,
        fps=fps,
        speed=float(speed),
        poses=poses,
        heading=heading,
        mirrored=mirrored,
        viewpoint=draw_viewpoint(rng, spec.split),
        outfit=draw_outfit(rng),
    )


def draw_viewpoint(rng: np.random.Generator, split: str) -> float:
    """A viewpoint of the split, in degrees from -180 to 180."""
    angle = BAND * rng.choice(BANDS[split]) + rng.uniform(GUARD, BAND - GUARD)
    return float(angle if rng.random() < 0.5 else -angle)


@dataclass(frozen=True)
class _Shot:
    """A camera: the ``targets`` it looks at, ``[T, 3]``, and its position relative to them, in metres."""

    targets: np.ndarray
    offset: np.ndarray
    field_of_view: float
    reach: float


class Theatre:
    """A stage on which performances are filmed one after the other.

    Raises:
        ValueError: Bullet is not installed.
    """

    def __init__(self) -> None:
        client, self._data = load_simulator()
        with _silence():
            self._bullet: Any = client.BulletClient(client.pybullet.DIRECT)
        self._folder = tempfile.TemporaryDirectory(prefix="fluxvit-mocap-")

    def take(self, action: Action) -> Motion:
        """The recorded take of an action."""
        return read_motion(self._data / "data" / "motions" / f"humanoid3d_{action.clip}.txt")

    def film(self, rng: np.random.Generator, split: str, performance: Performance) -> Iterator[np.ndarray]:
        """Draw the frames, uint8 ``[height, width, 3]``, in random surroundings."""
        bullet = self._bullet
        path = _to_stage(performance.poses.position)
        shot = _aim(rng, performance, path)
        with _silence():
            bullet.resetSimulation()
            bullet.setPhysicsEngineParameter(enableFileCaching=0)  # Files of one name change their content.
            bullet.setAdditionalSearchPath(str(self._data))
            person = self._enter(performance.outfit)
            self._build_set(rng, split, shot, path)
        light = {
            "lightDirection": [*rng.uniform(-1.5, 1.5, 2), rng.uniform(1, 2.5)],
            "lightColor": rng.uniform(0.8, 1.0, 3).tolist(),
            "lightAmbientCoeff": rng.uniform(0.4, 0.7),
            "lightDiffuseCoeff": rng.uniform(0.3, 0.6),
            "lightSpecularCoeff": rng.uniform(0, 0.1),
            "shadow": int(rng.random() < SHADOWS),
            "renderer": bullet.ER_TINY_RENDERER,
        }
        width, height = performance.width, performance.height
        projection = bullet.computeProjectionMatrixFOV(shot.field_of_view, width / height, 0.1, 60)
        for frame, target in enumerate(shot.targets):
            self._pose(person, performance.poses, frame, path[frame])
            view = bullet.computeViewMatrix((target + shot.offset).tolist(), target.tolist(), [0, 0, 1])
            pixels = bullet.getCameraImage(width, height, view, projection, **light)[2]
            yield np.reshape(pixels, (height, width, 4))[..., :3].astype(np.uint8)

    def _enter(self, outfit: Outfit) -> int:
        """Load the person, dressed, and return its number."""
        urdf = Path(self._folder.name) / "person.urdf"
        urdf.write_text(body_urdf(self._data / "humanoid" / "humanoid.urdf", outfit), encoding="utf-8")
        bullet = self._bullet
        person = bullet.loadURDF(
            str(urdf), globalScaling=SCALE, useFixedBase=True, flags=bullet.URDF_MAINTAIN_LINK_ORDER
        )
        return int(person)

    def _pose(self, person: int, poses: Motion, frame: int, place: np.ndarray) -> None:
        bullet = self._bullet
        root, *rotations = poses.rotations[frame]
        bullet.resetBasePositionAndOrientation(person, place.tolist(), _xyzw(_upright(root)))
        for name, rotation in zip(ROTATIONS[1:], rotations, strict=True):
            bullet.resetJointStateMultiDof(person, LINKS[name], _xyzw(rotation))
        for name, angle in zip(ANGLES, poses.angles[frame], strict=True):
            bullet.resetJointState(person, LINKS[name], angle)

    def _build_set(self, rng: np.random.Generator, split: str, shot: _Shot, path: np.ndarray) -> None:
        """Build a floor, a wall behind the person, and objects around them."""
        middle, extent = path.mean(0) * (1, 1, 0), np.linalg.norm(np.ptp(path[:, :2], axis=0)) / 2
        depth = rng.uniform(1.8, 5.0) + extent
        away = -shot.offset * (1, 1, 0) / np.linalg.norm(shot.offset[:2])
        aside = np.array([-away[1], away[0], 0])
        turn = np.arctan2(aside[1], aside[0])
        self._lay(rng, split, middle, [0, 0, turn])
        self._lay(rng, split, middle + depth * away, [-np.pi / 2, 0, turn])
        half_width = shot.reach + extent + 0.5
        for _ in range(rng.integers(2, 8)):
            name, scale = _draw_object(rng, split)
            # Behind the person, or beside; never between it and the camera.
            back, side = rng.uniform(-0.3, depth - 0.5), rng.uniform(-half_width, half_width)
            place = middle + back * away + side * aside
            if np.linalg.norm((path - place)[:, :2], axis=1).min() > 1.1:
                self._put(rng, name, scale, place)

    def _lay(self, rng: np.random.Generator, split: str, place: np.ndarray, angles: list[float]) -> None:
        """Lay a large square with a texture: flat, unless turned by ``angles`` about x and z."""
        bullet = self._bullet
        # Many small triangles, because those that reach behind the camera are not drawn.
        ticks = np.linspace(-20, 20, 41)
        vertices = np.stack([*np.meshgrid(ticks, ticks), np.zeros((41, 41))], -1).reshape(-1, 3)
        corner = (np.arange(40)[:, None] * 41 + np.arange(40)).reshape(-1, 1)
        triangles = corner + np.array([0, 1, 42, 0, 42, 41])
        shape = bullet.createVisualShape(
            bullet.GEOM_MESH,
            vertices=vertices.tolist(),
            indices=triangles.ravel().tolist(),
            uvs=(vertices[:, :2] / rng.uniform(1.5, 5)).tolist(),
            normals=[[0, 0, 1]] * len(vertices),
        )
        square = bullet.createMultiBody(0, -1, shape, place.tolist(), bullet.getQuaternionFromEuler(angles))
        image = Path(self._folder.name) / "surface.tga"
        tile = surface(rng, split, 128)
        # With its mirror images a tile fits its neighbours without a seam.
        tile = np.concatenate([tile, tile[::-1]])
        _write_tga(image, np.concatenate([tile, tile[:, ::-1]], 1))
        bullet.changeVisualShape(square, -1, textureUniqueId=bullet.loadTexture(str(image)))

    def _put(self, rng: np.random.Generator, name: str, scale: float, place: np.ndarray) -> None:
        """Put a thing on the floor, turned by a random angle."""
        bullet = self._bullet
        turn = bullet.getQuaternionFromEuler([0, 0, rng.uniform(-np.pi, np.pi)])
        thing = bullet.loadURDF(
            name, place.tolist(), turn, globalScaling=scale * rng.uniform(0.8, 1.2), useFixedBase=True
        )
        links = range(-1, bullet.getNumJoints(thing))
        lowest = min(bullet.getAABB(thing, link)[0][2] for link in links)
        position, turn = bullet.getBasePositionAndOrientation(thing)
        bullet.resetBasePositionAndOrientation(thing, [*position[:2], position[2] - lowest], turn)


def _aim(rng: np.random.Generator, performance: Performance, path: np.ndarray) -> _Shot:
    """A camera that has the whole person in the picture all the time."""
    middle = path.mean(0)
    reach = np.linalg.norm((path - middle)[:, :2], axis=1).max()
    follows = reach > STATIC_PATH or rng.random() < 0.4
    targets = _smooth(path) if follows else np.tile(middle, (len(path), 1))
    targets[:, 2] = WAIST
    radius = ARM_SPAN + np.linalg.norm((path - targets)[:, :2], axis=1).max()
    view = rng.uniform(*FIELD_OF_VIEW)
    distance = radius / np.sin(np.radians(view / 2)) * rng.uniform(0.88, 1.15)
    azimuth = performance.heading + np.radians(performance.viewpoint)
    elevation = np.radians(rng.uniform(*ELEVATION))
    direction = np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)
    return _Shot(targets, distance * np.array(direction), view, radius)


def _smooth(path: np.ndarray) -> np.ndarray:
    """The path as a straight way at an even pace, as close as possible: how a camera follows."""
    time = np.linspace(-1, 1, len(path))
    slope = (path - path.mean(0)).T @ time / (time @ time)
    return path.mean(0) + time[:, None] * slope


def _draw_object(rng: np.random.Generator, split: str) -> tuple[str, float]:
    """File of a thing and its scale; the splits share none."""
    if rng.random() < 0.4:
        return _OBJECTS[split][rng.integers(len(_OBJECTS[split]))]
    count = len(range(SPLITS.index(split), _ABSTRACT_OBJECTS, len(SPLITS)))
    number = int(rng.integers(count)) * len(SPLITS) + SPLITS.index(split)
    return f"random_urdfs/{number:03d}/{number:03d}.urdf", rng.uniform(4, 9)


def _to_stage(position: np.ndarray) -> np.ndarray:
    """From the axes of the clips, where y is up, to those of the stage, where z is."""
    x, y, z = np.moveaxis(position, -1, 0)
    return np.stack([x, -z, y], -1)


def _upright(rotation: np.ndarray) -> np.ndarray:
    """A rotation ``(w, x, y, z)`` followed by a quarter turn about x, which takes y to z."""
    w, x, y, z = rotation
    return np.array([w - x, x + w, y - z, z + y]) * np.sqrt(0.5)


def _xyzw(rotation: np.ndarray) -> list[float]:
    """A rotation in the order that Bullet has."""
    w, x, y, z = rotation.tolist()
    return [x, y, z, w]


def _write_tga(path: Path, pixels: np.ndarray) -> None:
    """Write an image, uint8 ``[H, W, 3]``, in the simplest format that Bullet reads."""
    height, width = pixels.shape[:2]
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, width, height, 24, 32)
    path.write_bytes(header + pixels[..., ::-1].tobytes())


@contextmanager
def _silence() -> Iterator[None]:
    """Bullet writes banners and warnings to both standard streams, past Python: send them nowhere."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(stream) for stream in (1, 2)]
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    try:
        yield
    finally:
        if sys.platform != "win32":
            ctypes.CDLL(None).fflush(None)  # Or what C has buffered would appear later.
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)
