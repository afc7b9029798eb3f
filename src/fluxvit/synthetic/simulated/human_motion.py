"""Motion capture clips of DeepMimic: reading, playing at any time, repeating, mirroring.

Axes are those of the files: x forwards, y up, z to the right; metres and seconds. Rotations are unit
quaternions ``(w, x, y, z)``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# A frame is its duration, the position of the root, and then these joints: four numbers each (a rotation), or
# one (an angle in radians).
ROTATIONS = (
    "root",
    "chest",
    "neck",
    "right_hip",
    "right_ankle",
    "right_shoulder",
    "left_hip",
    "left_ankle",
    "left_shoulder",
)
ANGLES = ("right_knee", "right_elbow", "left_knee", "left_elbow")
_LAYOUT = (
    *("root", "chest", "neck"),
    *("right_hip", "right_knee", "right_ankle", "right_shoulder", "right_elbow"),
    *("left_hip", "left_knee", "left_ankle", "left_shoulder", "left_elbow"),
)
_FRAME_NUMBERS = 1 + 3 + 4 * len(ROTATIONS) + len(ANGLES)


@dataclass(frozen=True)
class Motion:
    """A body in motion; also a single pose of it, without the leading axis.

    Attributes:
        seconds: Time between two frames.
        position: Position of the root, ``[T, 3]``.
        rotations: Rotation of the root in the world and of the other joints in their parents,
            ``[T, len(ROTATIONS), 4]``.
        angles: Angles of the hinges, ``[T, len(ANGLES)]``.
    """

    seconds: float
    position: np.ndarray
    rotations: np.ndarray
    angles: np.ndarray

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the last."""
        return (len(self.position) - 1) * self.seconds

    @property
    def heading(self) -> float:
        """The mean direction that the body faces, in radians about the vertical, from x towards -z."""
        w, x, y, z = np.moveaxis(self.rotations[:, 0], -1, 0)
        # First column of the rotation matrix: the body's forward axis. Upright frames weigh most.
        forward = np.array([w * w + x * x - y * y - z * z, 2 * (x * z - w * y)]).sum(1)
        return float(np.arctan2(-forward[1], forward[0]))

    def repeated(self, times: int) -> Motion:
        """The motion, a cycle, repeated several times; each repetition continues where the last one ended."""
        # The last frame of a cycle shows the first pose again.
        step = (self.position[-1] - self.position[0]) * (1, 0, 1)
        positions = [self.position[:-1] + step * number for number in range(times)]
        ends = (self.position[-1:] + step * (times - 1), self.rotations[-1:], self.angles[-1:])
        return Motion(
            self.seconds,
            np.concatenate([*positions, ends[0]]),
            np.concatenate([*[self.rotations[:-1]] * times, ends[1]]),
            np.concatenate([*[self.angles[:-1]] * times, ends[2]]),
        )

    def mirrored(self) -> Motion:
        """Left and right exchanged: the body seen in a mirror along its path."""
        exchange = [_other_side(name) for name in ROTATIONS]
        rotations = self.rotations[:, [ROTATIONS.index(name) for name in exchange]] * (1, -1, -1, 1)
        hinges = [ANGLES.index(_other_side(name)) for name in ANGLES]
        return Motion(self.seconds, self.position * (1, 1, -1), rotations, self.angles[:, hinges])

    def at(self, times: np.ndarray) -> Motion:
        """Poses at ``times`` in seconds, clamped to the motion; between frames they are interpolated."""
        place = np.clip(times / self.seconds, 0, len(self.position) - 1)
        before = np.minimum(place.astype(int), len(self.position) - 2)
        share = (place - before)[:, None]

        def blend(values: np.ndarray) -> np.ndarray:
            weight = share.reshape(-1, *[1] * (values.ndim - 1))
            return values[before] * (1 - weight) + values[before + 1] * weight

        # Neighbouring frames are a few degrees apart, where a normalised blend is as good as a slerp.
        rotations = blend(self.rotations)
        rotations /= np.linalg.norm(rotations, axis=-1, keepdims=True)
        return Motion(self.seconds, blend(self.position), rotations, blend(self.angles))


def read_motion(path: Path) -> Motion:
    """Read a clip.

    Raises:
        ValueError: The file is not a clip of the humanoid.
    """
    frames = np.array(json.loads(path.read_text(encoding="utf-8"))["Frames"], float)
    if frames.ndim != 2 or frames.shape[1] != _FRAME_NUMBERS or len(frames) < 2:
        raise ValueError(f"{path}: frames of {frames.shape[1:]} numbers, not of {_FRAME_NUMBERS}")
    columns, start = {}, 4
    for name in _LAYOUT:
        width = 4 if name in ROTATIONS else 1
        columns[name] = frames[:, start : start + width]
        start += width
    rotations = np.stack([columns[name] for name in ROTATIONS], 1)
    return Motion(
        seconds=float(frames[0, 0]),
        position=frames[:, 1:4],
        rotations=_continuous(rotations),
        angles=np.concatenate([columns[name] for name in ANGLES], 1),
    )


def _continuous(rotations: np.ndarray) -> np.ndarray:
    """The same rotations with signs that do not jump: q and -q are one rotation."""
    flips = (rotations[1:] * rotations[:-1]).sum(-1) < 0
    signs = np.where(np.cumsum(flips, axis=0) % 2, -1.0, 1.0)
    return np.concatenate([rotations[:1], rotations[1:] * signs[..., None]])


def _other_side(joint: str) -> str:
    if joint.startswith("left"):
        return joint.replace("left", "right")
    return joint.replace("right", "left")
