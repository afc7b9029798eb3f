"""Simulates episodes of Meta-World and films them.

The scripted expert of a task acts until an episode succeeds. Then a camera is chosen that sees gripper and
object, and the recorded states are drawn, only those that the video shows.
"""

from __future__ import annotations

import atexit
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from fluxvit.synthetic.motionworld.textures import draw_texture, texture, tone

INSTALL = "pip install metaworld==3.1.1 mujoco==3.3.0 packaging"
"""How the simulator is installed. gymnasium, which it needs, imports packaging without requiring it."""

ASPECTS = ((4, 3), (1, 1), (16, 9))
"""Aspect ratios, width to height."""

FRAME_RATES = (12, 15, 20, 25, 30)

TRIES = 25
"""Episodes run before a task is given up; the experts succeed in two of three at worst."""

MIN_STEPS = 16
"""An episode that succeeds sooner shows too little."""

AFTERMATH = 24
"""Steps that are simulated after the success."""

SPEEDS = (1, 2, 3, 4)
"""Steps of the simulator, of 12.5 ms each, from one frame to the next."""

FRAMES = (16, 72)
"""Least and largest number of frames that a speed is chosen for."""

# Degrees; at 90 the camera looks along +y, the way the robot faces. Most objects open towards the robot, so
# the ranges are its two sides: right behind it the arm would hide its work, right before it the object would.
AZIMUTHS = ((-30.0, 60.0), (120.0, 210.0))
ELEVATIONS = (-50.0, -15.0)
FIELD_OF_VIEW = (32.0, 50.0)
REACH = 0.16
"""Metres around gripper and object that have to be in the picture, too."""
CAMERAS = 12
"""Cameras that are looked through for one that sees enough."""
ENOUGH = 0.85
"""Share of the sampled positions of gripper and object that a good camera sees."""

_KEPT_MATERIALS = ("basic_floor", "table_wood", "wall_metal")


@dataclass(frozen=True)
class Episode:
    """A successful episode.

    Attributes:
        states: Positions of all joints after each step, ``[N, nq]``.
        points: Gripper and objects after each step, metres, ``[N, P, 3]``.
        success: The step of the success.
    """

    states: np.ndarray
    points: np.ndarray
    success: int


@dataclass(frozen=True)
class Take:
    """What the video shows of an episode.

    Attributes:
        width, height: Pixels.
        fps: Frames per second of the file.
        steps: Steps that are shown, one per frame.
        speed: Steps per frame.
    """

    width: int
    height: int
    fps: int
    steps: np.ndarray
    speed: int


def draw_size(rng: np.random.Generator, short_sides: Sequence[int]) -> tuple[int, int]:
    """Draw the width and height of a video in pixels, both even."""
    across, down = ASPECTS[rng.integers(len(ASPECTS))]
    short = int(rng.choice(short_sides))
    return 2 * round(short * across / down / 2), short


def plan_take(rng: np.random.Generator, short_sides: Sequence[int], episode: Episode) -> Take:
    """Draw size, crop in time and speed of a video."""
    width, height = draw_size(rng, short_sides)
    start = int(rng.uniform(0, 0.3) * episode.success)
    end = min(episode.success + int(rng.integers(AFTERMATH + 1)), len(episode.states) - 1)
    fitting = [speed for speed in SPEEDS if FRAMES[0] <= (end - start) // speed + 1 <= FRAMES[1]]
    speed = int(rng.choice(fitting or [SPEEDS[-1 if end - start > FRAMES[1] else 0]]))
    return Take(width, height, int(rng.choice(FRAME_RATES)), np.arange(start, end + 1, speed), speed)


def load_simulator() -> tuple[ModuleType, ModuleType, ModuleType]:
    """MuJoCo, and the modules of environments and of experts of Meta-World.

    Raises:
        ValueError: They are not installed.
    """
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # Read when MuJoCo is imported: draw without a display.
    try:
        mujoco = import_module("mujoco")
        return mujoco, import_module("metaworld.env_dict"), import_module("metaworld.policies")
    except ImportError as error:
        raise ValueError(f"{error}; install it with: {INSTALL}") from error


class Studio:
    """The table of one task, with a camera. It is costly to set up, so videos of a task share it.

    Args:
        task: Name of the task.
        buffer: Largest width and height to be drawn, pixels.

    Raises:
        ValueError: Meta-World is not installed.
    """

    def __init__(self, task: str, buffer: tuple[int, int] = (640, 480)) -> None:
        self._mujoco, environments, policies = load_simulator()
        mujoco = self._mujoco
        name = f"{task}-v3"
        self._name = name
        self._policy = policies.ENV_POLICY_MAP[name]
        self._env = environments.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{name}-goal-observable"](seed=0)
        # Unlike the benchmark, every reset draws another start, from the seed.
        self._env._freeze_rand_vec, self._env.seeded_rand_vec = False, True
        self._model, self._data = self._env.model, self._env.data
        quality, buffers = self._model.vis.quality, self._model.vis.global_
        # Drawing shadows, reflections and many samples on a CPU takes several times as long as all the rest.
        quality.shadowsize = quality.offsamples = 0
        self._model.mat_reflectance[:] = 0
        buffers.offwidth, buffers.offheight = buffer
        self._gl = mujoco.GLContext(*buffer)
        self._gl.make_current()
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(self._model, maxgeom=2000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._options = mujoco.MjvOption()
        self._options.sitegroup[:] = 0  # Markers of goals: a film of the real thing has none.
        self._looks = {
            field: getattr(self._model, field).copy()
            for field in ("mat_rgba", "geom_rgba", "light_diffuse", "light_dir", "tex_data")
        }

        atexit.register(self.close)  # Later OpenGL is gone, and complains.

    def close(self) -> None:
        """Give back what OpenGL holds."""
        atexit.unregister(self.close)
        self._context.free()
        self._gl.free()

    def run(self, rng: np.random.Generator) -> Episode:
        """Run episodes from random starts until one succeeds.

        Raises:
            RuntimeError: None did.
        """
        for _ in range(TRIES):
            episode = self._try(int(rng.integers(2**31)), rng.uniform(0, 0.1))
            if episode is not None:
                return episode
        raise RuntimeError(f"{self._name}: the scripted expert failed {TRIES} times in a row")

    def _try(self, seed: int, unsteadiness: float) -> Episode | None:
        env = self._env
        env.seed(seed)
        hand = np.random.default_rng(seed)
        observation, _ = env.reset()
        policy = self._policy()
        states, points, success = [], [], None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About actions beyond -1..1, which are clipped here.
            for step in range(env.max_path_length):
                action = np.clip(policy.get_action(observation), -1, 1)
                action[:3] = np.clip(action[:3] + unsteadiness * hand.normal(size=3), -1, 1)
                observation, _, _, _, info = env.step(action)
                states.append(env.data.qpos.copy())
                points.append(_points(observation))
                if success is None and info["success"]:
                    success = step
                if success is not None and step >= success + AFTERMATH:
                    break
        if success is None or success < MIN_STEPS:
            return None
        return Episode(np.stack(states), np.stack(points), success)

    def film(
        self, rng: np.random.Generator, split: str, episode: Episode, take: Take
    ) -> Iterator[np.ndarray]:
        """Draw the frames, uint8 ``[height, width, 3]``, in a random light and from a random side."""
        mujoco = self._mujoco
        self._gl.make_current()
        self._dress(rng, split)
        camera, drift = self._place_camera(rng, episode.points[take.steps], episode.states[take.steps])
        viewport = mujoco.MjrRect(0, 0, take.width, take.height)
        pixels = np.empty((take.height, take.width, 3), np.uint8)
        azimuth = camera.azimuth
        for moment, step in zip(np.linspace(-0.5, 0.5, len(take.steps)), take.steps, strict=True):
            self._pose(episode.states[step])
            camera.azimuth = azimuth + drift * moment
            everything = mujoco.mjtCatBit.mjCAT_ALL.value
            mujoco.mjv_updateScene(
                self._model, self._data, self._options, None, camera, everything, self._scene
            )
            mujoco.mjr_render(viewport, self._scene, self._context)
            mujoco.mjr_readPixels(pixels, None, viewport, self._context)
            yield pixels[::-1].copy()

    def _pose(self, state: np.ndarray) -> None:
        self._data.qpos[:] = state
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_camlight(self._model, self._data)

    def _dress(self, rng: np.random.Generator, split: str) -> None:
        """Give robot, objects, table and floor random colours and textures, and turn the lights."""
        model = self._model
        for field, values in self._looks.items():
            getattr(model, field)[:] = values
        for number in range(model.nmat):
            if model.material(number).name not in _KEPT_MATERIALS:
                model.mat_rgba[number, :3] = np.clip(
                    model.mat_rgba[number, :3] * rng.uniform(0.45, 1.3, 3) + rng.uniform(0, 0.15), 0, 1
                )
        red = np.isclose(self._looks["geom_rgba"][:, :3], (0.5, 0.1, 0.1)).all(1)
        model.geom_rgba[red, :3] = rng.uniform(0.08, 0.75, 3)
        model.light_diffuse[:] *= rng.uniform(0.2, 1.8, (model.nlight, 1))
        model.light_dir[:] += rng.normal(scale=0.25, size=(model.nlight, 3))
        model.light_dir[:] /= np.linalg.norm(model.light_dir, axis=1, keepdims=True)
        model.vis.headlight.ambient[:] = rng.uniform(0.2, 0.5)
        model.vis.headlight.diffuse[:] = rng.uniform(0.2, 0.5)
        for number in range(model.ntex):
            name = model.texture(number).name
            if name in ("T_table", "T_floor"):
                self._paint(number, _surface(rng, split, int(model.tex_width[number])))
            elif not name:  # The sky.
                sky = rng.uniform(0.2, 0.9) + rng.uniform(-0.12, 0.12, 3)
                self._paint(number, (np.clip(sky, 0, 1) * 255).astype(np.uint8))

    def _paint(self, number: int, pixels: np.ndarray) -> None:
        model = self._model
        size = model.tex_height[number], model.tex_width[number], 3
        start = model.tex_adr[number]
        model.tex_data[start : start + np.prod(size)] = np.broadcast_to(pixels, size).ravel()
        self._mujoco.mjr_uploadTexture(model, self._context, number)

    def _place_camera(
        self, rng: np.random.Generator, points: np.ndarray, states: np.ndarray
    ) -> tuple[Any, float]:
        """A camera that sees gripper and objects during the take, and its drift in degrees."""
        low, high = points.min((0, 1)), points.max((0, 1))
        radius = np.linalg.norm(high - low) / 2 + REACH
        view = self._model.vis.global_.fovy = rng.uniform(*FIELD_OF_VIEW)
        moments = np.linspace(0, len(points) - 1, 6).round().astype(int)
        best, most = None, -1.0
        for _ in range(CAMERAS):
            camera = self._mujoco.MjvCamera()
            camera.lookat[:] = (low + high) / 2 + rng.normal(scale=0.15 * REACH, size=3)
            camera.distance = radius / np.sin(np.radians(view / 2)) * rng.uniform(0.85, 1.25)
            camera.azimuth = rng.uniform(*AZIMUTHS[rng.integers(len(AZIMUTHS))])
            camera.elevation = rng.uniform(*ELEVATIONS)
            seen = self._visible(_eye(camera), points[moments], states[moments])
            if seen > most:
                best, most = camera, seen
            if seen >= ENOUGH:
                break
        return best, rng.uniform(-8, 8)

    def _visible(self, eye: np.ndarray, points: np.ndarray, states: np.ndarray) -> float:
        """Share of points that nothing hides from an eye, each at its moment."""
        groups = np.array([1, 1, 1, 0, 0, 0], np.uint8)  # Groups 3 to 5 are collision shapes, never drawn.
        hit, seen = np.zeros(1, np.int32), []
        for state, there in zip(states, points, strict=True):
            self._pose(state)
            for point in there:
                way = point - eye
                length = np.linalg.norm(way)
                free = self._mujoco.mj_ray(self._model, self._data, eye, way / length, groups, 1, -1, hit)
                # The surface of what is looked at lies a little before its centre.
                seen.append(free < 0 or free > length - 0.07)
        return float(np.mean(seen))


def _surface(rng: np.random.Generator, split: str, side: int) -> np.ndarray:
    """A texture for the table or the floor, uint8 ``[side, side, 3]``; the splits share none."""
    pixels = texture(draw_texture(rng, split))
    pixels = tone(pixels, rng.uniform(0.35, 0.75), rng.uniform(0.04, 0.15), rng.uniform(0.2, 1.0))
    ticks = np.linspace(0, len(pixels) - 1, side).round().astype(int)
    return (pixels[ticks][:, ticks] * 255).round().astype(np.uint8)


def _points(observation: np.ndarray) -> np.ndarray:
    """Positions of the gripper and of one or two objects in an observation, ``[P, 3]``."""
    gripper, first, second = observation[0:3], observation[4:7], observation[11:14]
    return np.stack([gripper, first, second if second.any() else first])


def _eye(camera: Any) -> np.ndarray:
    """The position of a camera."""
    azimuth, elevation = np.radians([camera.azimuth, camera.elevation])
    forward = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    return np.asarray(camera.lookat - camera.distance * np.array(forward))
