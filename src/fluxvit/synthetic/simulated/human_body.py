"""The person of ``mocap``: a body around the skeleton that pybullet_data brings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

SCALE = 0.25
"""Metres per unit of the humanoid's file."""

LINKS = {
    "root": 0,
    "chest": 1,
    "neck": 2,
    "right_hip": 3,
    "right_knee": 4,
    "right_ankle": 5,
    "right_shoulder": 6,
    "right_elbow": 7,
    "right_wrist": 8,
    "left_hip": 9,
    "left_knee": 10,
    "left_ankle": 11,
    "left_shoulder": 12,
    "left_elbow": 13,
    "left_wrist": 14,
}
"""Numbers of the links, each named after the joint that it hangs on."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.75, 0.12, 0.1),
    "orange": (0.9, 0.45, 0.08),
    "yellow": (0.9, 0.8, 0.15),
    "green": (0.12, 0.5, 0.18),
    "blue": (0.12, 0.25, 0.7),
    "purple": (0.45, 0.15, 0.55),
    "pink": (0.9, 0.5, 0.65),
    "brown": (0.38, 0.22, 0.1),
    "white": (0.92, 0.92, 0.9),
    "grey": (0.45, 0.45, 0.47),
    "black": (0.08, 0.08, 0.09),
}

_HAIR = ((0.07, 0.05, 0.04), (0.25, 0.14, 0.07), (0.72, 0.53, 0.28), (0.55, 0.22, 0.1), (0.6, 0.6, 0.6))
_SKIN = ((0.95, 0.78, 0.67), (0.85, 0.62, 0.47), (0.66, 0.44, 0.3), (0.4, 0.26, 0.18), (0.28, 0.18, 0.13))

Point = tuple[float, float, float]

# Shapes of a link: capsules from one point to another, along an axis of the link, and their radius; in units
# of the file, with x forwards and y up. The file itself has spheres and thin bones with gaps between them,
# made for collisions, not to be seen.
_SHAPES: dict[str, tuple[tuple[Point, Point, float], ...]] = {
    "root": (((0, 0.1, 0), (0, 0.95, 0), 0.42), ((0, 0, -0.34), (0, 0, 0.34), 0.36)),
    "chest": (((0, 0.1, 0), (0, 0.7, 0), 0.46), ((0, 0.85, -0.5), (0, 0.85, 0.5), 0.3)),
    "neck": (((0, 0, 0), (0, 0.5, 0), 0.17), ((0, 0.68, 0), (0, 0.78, 0), 0.4)),
    "hip": (((0, -1.69, 0), (0, 0, 0), 0.27),),
    "knee": (((0, -1.64, 0), (0, 0, 0), 0.22),),
    "ankle": (((-0.05, -0.06, 0), (0.42, -0.06, 0), 0.16),),
    "shoulder": (((0, -1.1, 0), (0, 0, 0), 0.2),),
    "elbow": (((0, -1.04, 0), (0, 0, 0), 0.16),),
    "wrist": (((0, -0.2, 0), (0, 0, 0), 0.17),),
}
_HAIR_SHAPE: tuple[Point, Point, float] = ((-0.1, 0.85, 0), (-0.1, 0.87, 0), 0.4)

_TURNS = ("0 1.570796 0", "-1.570796 0 0", "0 0 0")
"""Angles that turn a capsule of a URDF, which lies along z, to x, y and z."""


@dataclass(frozen=True)
class Outfit:
    """What the person looks like.

    Attributes:
        shirt, trousers: Names of colours.
        long_sleeves, shorts: What of the limbs is covered.
        skin, hair, shoes: Colours, red, green and blue in 0..1.
        build: Thickness of body and limbs, 1 for normal.
    """

    shirt: str
    trousers: str
    long_sleeves: bool
    shorts: bool
    skin: tuple[float, ...]
    hair: tuple[float, ...]
    shoes: tuple[float, ...]
    build: float

    @property
    def top(self) -> str:
        """What the body wears, in words."""
        return f"{'an' if self.shirt == 'orange' else 'a'} {self.shirt} shirt"

    @property
    def legs(self) -> str:
        """What the legs wear, in words."""
        return f"{self.trousers} {'shorts' if self.shorts else 'trousers'}"

    def colour(self, link: str) -> tuple[float, ...]:
        """Colour of a link of :data:`LINKS`."""
        part = link.rsplit("_", 1)[-1]
        if part in ("chest", "shoulder") or (part == "elbow" and self.long_sleeves):
            return COLOURS[self.shirt]
        if part in ("root", "hip") or (part == "knee" and not self.shorts):
            return COLOURS[self.trousers]
        return self.shoes if part == "ankle" else self.skin


def draw_outfit(rng: np.random.Generator) -> Outfit:
    """Dress a person at random; shirt and trousers differ in colour."""
    shirt, trousers = rng.choice(list(COLOURS), 2, replace=False)
    return Outfit(
        shirt=str(shirt),
        trousers=str(trousers),
        long_sleeves=bool(rng.random() < 0.5),
        shorts=bool(rng.random() < 0.3),
        skin=_SKIN[rng.integers(len(_SKIN))],
        hair=_HAIR[rng.integers(len(_HAIR))],
        shoes=COLOURS[str(rng.choice(list(COLOURS)))],
        build=float(rng.uniform(0.85, 1.25)),
    )


def body_urdf(skeleton: Path, outfit: Outfit) -> str:
    """The humanoid's description with a body to be seen.

    Args:
        skeleton: ``humanoid/humanoid.urdf`` of pybullet_data.
        outfit: What it looks like.
    """
    # The file ends with a zero byte, which is no XML.
    robot = ElementTree.fromstring(skeleton.read_text(encoding="utf-8").rstrip("\0 \n"))
    for link in robot.iter("link"):
        name = str(link.get("name"))
        # A head does not grow with the body.
        build = 1 if name == "neck" else outfit.build
        for shape in _SHAPES.get(name.rsplit("_", 1)[-1], ()):
            _add_capsule(link, shape, build, outfit.colour(name))
        if name == "neck":
            # Hair tells the back of a head from its face.
            _add_capsule(link, _HAIR_SHAPE, build, outfit.hair)
    return ElementTree.tostring(robot, encoding="unicode")


def _add_capsule(
    link: ElementTree.Element, shape: tuple[Point, Point, float], build: float, colour: tuple[float, ...]
) -> None:
    start, end, radius = (np.array(value, float) for value in shape)
    axis = int(np.abs(end - start).argmax())
    visual = ElementTree.SubElement(link, "visual")
    ElementTree.SubElement(visual, "origin", xyz=_numbers((start + end) / 2), rpy=_TURNS[axis])
    geometry = ElementTree.SubElement(visual, "geometry")
    length = np.linalg.norm(end - start)
    ElementTree.SubElement(geometry, "capsule", length=str(length), radius=str(radius * build))
    # Named after the shape it is for: of materials with one name, Bullet takes the first.
    material = ElementTree.SubElement(visual, "material", name=f"{link.get('name')} {len(link)}")
    ElementTree.SubElement(material, "color", rgba=_numbers((*colour, 1)))


def _numbers(values: Iterable[float]) -> str:
    return " ".join(str(float(value)) for value in values)
